// What one task of the Mamba mixer does, a chunk of an item's tokens. Compiled once per instruction
// set, see kernels-inl.h.
//
// Scratch memory has the chunk's tokens in rows of padded width; lanes without a channel are zero.

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "arena.h"
#include "mamba_mixer.h"
#include "parallel.h"
#include "products-inl.h"
#include "selective_scan-inl.h"
#include "tiles-inl.h"
#include "tiles.h"
#include "vector-inl.h"

namespace {
namespace INSTRUCTION_SET {

// The taps of W channels: in registers where their number is a constant K, in memory where K is 0.
template <int K>
struct Taps {
    static constexpr int count = K;
    V w[K];
    Taps(const float* weight, int64_t row, int) {
        UNROLL for (int j = 0; j < K; ++j) w[j] = load(weight + j * row);
    }
    V at(int j) const { return w[j]; }
};
template <>
struct Taps<0> {
    const float* weight;
    int64_t row;
    int count;
    Taps(const float* weight, int64_t row, int count) : weight(weight), row(row), count(count) {}
    V at(int j) const { return load(weight + j * row); }
};

// bias + sum_j w_j x_j, over rows of scratch memory
template <class T>
inline V convolve(const T& taps, V bias, const float* x, int64_t row) {
    UNROLL for (int j = 0; j < taps.count; ++j) bias += taps.at(j) * load(x + j * row);
    return bias;
}

inline Right right(const Packed& weight) { return {weight.data.data(), weight.panel, 2 * W}; }

// What lies between x and the scan.
struct MixerChunk {
    const MixerPlan& plan;
    const Mixer& mixer;
    int64_t item, number, t0, tokens;
    float *x, *before_conv;  // with `reach` tokens before the chunk's; 0 where there are none
    float *gate, *u, *maps, *raw, *B, *C;
    uint16_t* rounded;
    int64_t rows[TILE];  // of a tile, in scratch memory of width d

    MixerChunk(const MixerPlan& plan, int64_t item, int64_t number, Arena& arena)
        : plan(plan), mixer(plan.mixer), item(item), number(number), t0(number * mixer.chunk) {
        const int64_t n = mixer.states, most = mixer.chunk;
        tokens = std::min(most, mixer.length - t0);
        x = arena.take((plan.reach + most) * plan.c);
        before_conv = arena.take((plan.reach + most) * plan.d);
        gate = arena.take(most * plan.d), u = arena.take(most * plan.d);
        maps = arena.take(most * plan.m), raw = arena.take(most * plan.d);
        B = arena.take(most * n), C = arena.take(most * n);
        rounded = reinterpret_cast<uint16_t*>(arena.take(plan.rounded_floats()));
        for (int64_t t = 0; t < TILE; ++t) rows[t] = t * plan.d;
    }

    // f(taps, bias, first channel) for every W channels
    template <class F>
    void for_taps(F f) const {
        for (int64_t p = 0; p < plan.d; p += W) {
            const V bias = load(&plan.tap_bias[p]);
            if (mixer.taps == 4)
                f(Taps<4>(&plan.taps[p], plan.d, 4), bias, p);
            else
                f(Taps<0>(&plan.taps[p], plan.d, int(mixer.taps)), bias, p);
        }
    }

    void read(const View& view, int64_t first, int64_t channels, int64_t padded, float* to) const {
        gather(view.at(item, 0) + first * view.l, view.c, EvenRows(view.l), int(t0 + tokens - first),
               int(channels), int(padded), to, int(padded));
    }

    // to = a weight, or to += a weight, of rows of a
    void product(int64_t count, int64_t columns, int64_t depth, const float* a, int64_t a_row,
                 const Packed& weight, float* to, int64_t row, bool adds = false) const {
        if (weight.lines.empty())
            multiply(count, columns, depth, {a, a_row, 1}, right(weight), to, row, adds);
        else
            multiply_tiles(count, columns, depth, a, a_row, weight.lines.data(), to, row, adds, rounded);
    }

    void find() const {
        const int64_t d = plan.d, c = plan.c, m = plan.m, reach = plan.reach, n = mixer.states;
        const int64_t missing = std::max<int64_t>(0, reach - t0);
        std::fill(x, x + missing * c, 0.0f);
        read(mixer.x, t0 - reach + missing, mixer.channels, c, x + missing * c);
        product(reach + tokens, d, mixer.channels, x, c, plan.to_u, before_conv, d);
        product(tokens, d, mixer.channels, x + reach * c, c, plan.to_gate, gate, d);
        for_taps([&](const auto& taps, V bias, int64_t p) {
            for (int64_t i = p; i < p + tokens * d; i += d) {
                V sum = convolve(taps, bias, before_conv + i, d);
                store(u + i, sum * sigmoid(sum));
            }
        });
        product(tokens, mixer.rank + 2 * n, mixer.inner, u, d, plan.to_maps, maps, m);
        product(tokens, d, mixer.rank, maps, m, plan.to_steps, raw, d);
        for (int64_t t = 0; t < tokens; ++t)
            for (int64_t s = 0; s < n; ++s) {
                B[t * n + s] = maps[t * m + mixer.rank + s];
                C[t * n + s] = maps[t * m + mixer.rank + n + s];
            }
    }

    // x from token t and channel p on
    Tile<float> tile(float* x, int64_t t, int64_t p) const { return {x + t * plan.d + p, rows}; }
    Tile<const float> input(const float* x, int64_t t, int64_t p) const {
        return {x + t * plan.d + p, rows};
    }

    // The chunk's channels from p on and tokens from t on.
    Inputs inputs(int64_t t, int64_t p, float* delta, float* x_scratch) const {
        const int64_t n = mixer.states;
        Inputs in{};
        in.tokens = int(std::min(TILE, tokens - t));
        in.lanes = int(std::min(plan.column, plan.d - p));
        in.n = int(n), in.use_softplus = true;
        in.A = &plan.A[p * n], in.A2 = &plan.A2[p * n], in.D = &plan.D[p], in.bias = &plan.bias[p];
        in.B = B + t * n, in.C = C + t * n;
        in.u = input(u, t, p), in.raw = input(raw, t, p);
        in.delta = delta, in.x = x_scratch;
        return in;
    }
};

void mixer_forward_task(MixerPlan& plan, int64_t task, Arena arena) {
    const Mixer& mixer = plan.mixer;
    const int64_t n = mixer.states, d = plan.d, number = task / mixer.batch;
    const ThreadsTiles tiles(plan.tiled);
    const MixerChunk chunk(plan, task % mixer.batch, number, arena);
    float *delta = new_tile(arena), *x = new_tile(arena), *y = new_tile(arena);
    float* out = arena.take(mixer.chunk * plan.o);
    chunk.find();
    for (int64_t i = 0; i < plan.columns(); ++i) {
        std::atomic<int64_t>& scanned = plan.scanned[chunk.item * plan.columns() + i];
        const int64_t p = i * plan.column;
        float* h = &plan.carried[(chunk.item * d + p) * n];
        await(scanned, number);
        for (int64_t t = 0; t < chunk.tokens; t += TILE) {
            const Inputs in = chunk.inputs(t, p, delta, x);
            if (mixer.saved)
                std::memcpy(plan.saved_at(chunk.item, chunk.t0 + t, p), h, in.lanes * n * sizeof(float));
            in.find_steps();
            forward_column(in, h, y, chunk.input(chunk.gate, t, p), chunk.tile(chunk.gate, t, p), false);
        }
        scanned.store(number + 1, std::memory_order_release);
    }
    chunk.product(chunk.tokens, mixer.outputs, mixer.inner, chunk.gate, d, plan.to_out, out, plan.o);
    scatter(out, int(plan.o), int(chunk.tokens), int(mixer.outputs),
            mixer.out.at(chunk.item, 0) + chunk.t0 * mixer.out.l, mixer.out.c, EvenRows(mixer.out.l));
}

void mixer_backward_task(MixerPlan& plan, int64_t task, Arena arena) {
    const Mixer& mixer = plan.mixer;
    const int64_t n = mixer.states, rank = mixer.rank, d = plan.d, c = plan.c, o = plan.o, m = plan.m;
    const int64_t reach = plan.reach, maps = rank + 2 * n, step = task / mixer.batch;
    const ThreadsTiles tiles(plan.tiled);
    const MixerChunk chunk(plan, task % mixer.batch, plan.chunks - 1 - step, arena);
    const int64_t tokens = chunk.tokens, most = mixer.chunk;
    float *delta = new_tile(arena), *x = new_tile(arena);
    Gradients gradients(arena);
    gradients.kept = arena.take(2 * (TILE + 1) * MAXN * W);
    float *dout = arena.take(most * o), *dx = arena.take(most * c), *dmaps = arena.take(most * m);
    float *dy = arena.take(most * d), *du = arena.take((most + reach) * d);
    float *dB = arena.take(most * n), *dC = arena.take(most * n);
    float* small = arena.take((mixer.taps + 3 + n) * d);  // sums as from MixerSums::taps on
    float *dtaps = small, *dA = dtaps + (mixer.taps + 1) * d, *dD = dA + n * d, *dbias = dD + d;
    chunk.find();
    chunk.read(mixer.out, chunk.t0, mixer.outputs, o, dout);
    chunk.product(tokens, d, mixer.outputs, dout, o, plan.back_out, dy, d);

    std::fill(dB, dB + tokens * n, 0.0f), std::fill(dC, dC + tokens * n, 0.0f);
    std::fill(small, small + (mixer.taps + 3 + n) * d, 0.0f);
    float *y = dy, *ddelta = chunk.raw, *dgate = chunk.gate;  // each in place of what it is from
    for (int64_t i = 0; i < plan.columns(); ++i) {
        std::atomic<int64_t>& scanned = plan.scanned[chunk.item * plan.columns() + i];
        const int64_t p = i * plan.column;
        float* g = &plan.carried[(chunk.item * d + p) * n];
        await(scanned, step);
        gradients.dA = dA + p * n, gradients.dD = dD + p, gradients.dbias = dbias + p;
        for (int64_t t = (tokens - 1) / TILE * TILE; t >= 0; t -= TILE) {
            const Inputs in = chunk.inputs(t, p, delta, x);
            const Tile<const float> from = chunk.input(dy, t, p), gate = chunk.input(chunk.gate, t, p);
            gradients.du = chunk.tile(du, t, p), gradients.ddelta = chunk.tile(ddelta, t, p);
            gradients.dz = chunk.tile(dgate, t, p), gradients.y = chunk.tile(y, t, p);
            gradients.dB = dB + t * n, gradients.dC = dC + t * n;
            in.find_steps();
            gradients.start(in, from, gate);
            gradients.find(in, from, gate, plan.saved_at(chunk.item, chunk.t0 + t, p), g, false);
        }
        scanned.store(step + 1, std::memory_order_release);
    }

    chunk.product(tokens, rank, mixer.inner, ddelta, d, plan.back_steps, dmaps, m);
    for (int64_t t = 0; t < tokens; ++t)
        for (int64_t s = 0; s < n; ++s) {
            dmaps[t * m + rank + s] = dB[t * n + s];
            dmaps[t * m + rank + n + s] = dC[t * n + s];
        }
    chunk.product(tokens, d, maps, dmaps, m, plan.back_maps, du, d, true);

    // Through the convolution, whose gradient reaches to tokens of the chunk after.
    if (step > 0) {
        await(plan.convolved[chunk.item], step);
        const float* later = plan.head_at(chunk.item, chunk.number + 1);
        std::copy(later, later + reach * d, du + tokens * d);
    } else {
        std::fill(du + tokens * d, du + (tokens + reach) * d, 0.0f);
    }
    chunk.for_taps([&](const auto& taps, V bias, int64_t p) {
        for (int64_t i = p; i < p + tokens * d; i += d) {
            V sum = convolve(taps, bias, chunk.before_conv + i, d), s = sigmoid(sum);
            store(du + i, load(du + i) * (s * (1.0f + sum * (1.0f - s))));
        }
    });
    if (chunk.number > 0) std::copy(du, du + reach * d, plan.head_at(chunk.item, chunk.number));
    plan.convolved[chunk.item].store(step + 1, std::memory_order_release);
    float* before_conv = du;  // its gradient, in place: no token needs that of an earlier one
    chunk.for_taps([&](const auto& taps, V, int64_t p) {
        for (int j = 0; j <= taps.count; ++j) {
            V sum = {};
            for (int64_t i = p; i < p + tokens * d; i += d)
                sum += j < taps.count ? load(du + i) * load(chunk.before_conv + i + j * d) : load(du + i);
            store(dtaps + j * d + p, sum);
        }
        for (int64_t i = p; i < p + tokens * d; i += d) {
            V sum = {};
            UNROLL for (int j = 0; j < taps.count; ++j) sum += taps.at(j) * load(du + i + (reach - j) * d);
            store(before_conv + i, sum);
        }
    });
    chunk.product(tokens, mixer.channels, mixer.inner, before_conv, d, plan.back_u, dx, c);
    chunk.product(tokens, mixer.channels, mixer.inner, dgate, d, plan.back_gate, dx, c, true);
    scatter(dx, int(c), int(tokens), int(mixer.channels),
            mixer.dx.at(chunk.item, 0) + chunk.t0 * mixer.dx.l, mixer.dx.c, EvenRows(mixer.dx.l));

    std::atomic<int64_t>& added = plan.added[task % MixerPlan::SLOTS];
    float* slot = plan.slot(task % MixerPlan::SLOTS);
    const bool adds = task >= MixerPlan::SLOTS;
    await(added, task / MixerPlan::SLOTS);
    auto add = [&](int64_t to, int64_t rows, const float* left, int64_t left_row, const float* from,
                   int64_t columns) {
        multiply(rows, columns, tokens, {left, 1, left_row}, {from, 2 * W, columns}, slot + to,
                 columns, adds);
    };
    add(plan.sums.from_x, mixer.inner, before_conv, d, chunk.x + reach * c, c);
    add(plan.sums.from_x_gate, mixer.inner, dgate, d, chunk.x + reach * c, c);
    add(plan.sums.maps, maps, dmaps, m, chunk.u, d);
    add(plan.sums.dt, rank, chunk.maps, m, ddelta, d);
    add(plan.sums.out, mixer.outputs, dout, o, y, d);
    float* sums = slot + plan.sums.taps;
    for (int64_t i = 0; i < (mixer.taps + 3 + n) * d; i += W)
        store(sums + i, adds ? load(sums + i) + load(small + i) : load(small + i));
    added.store(task / MixerPlan::SLOTS + 1, std::memory_order_release);
}

}  // namespace INSTRUCTION_SET
}  // namespace
