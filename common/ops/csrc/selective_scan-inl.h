// What one task of the selective scan does. Compiled once per instruction set, see kernels-inl.h.
//
// A task walks a range of tokens in tiles of TILE tokens and, within a tile, its channels in
// columns of COLUMN channels. Kernels read token-major scratch memory that stays in cache, where
// lanes without a channel are zero. Tensors whose channels are not next to each other are copied
// there first; others are read and written where they are.

#ifndef SELECTIVE_SCAN_INL_H
#define SELECTIVE_SCAN_INL_H

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <type_traits>

#include "arena.h"
#include "selective_scan.h"
#include "sizes.h"
#include "tiles-inl.h"
#include "tiles.h"
#include "vector-inl.h"

namespace {
namespace INSTRUCTION_SET {

constexpr int MAXN = REGISTERS / 2;  // states that a kernel keeps in registers

// ---- kernels: N states of W channels over the tokens of a tile ---------------------------------
// Per-channel values of token t are at [t * COLUMN], per-state values of B and C at [t * n].

struct Lanes {
    int tokens, n;
    const float *delta, *x, *dy;  // step sizes, delta u, gradient of the ungated output
    const float *B, *C;
    const float *A, *A2;  // [N][W]: A and A log2(e)
};

// h_t = exp(delta A) h_{t-1} + x_t B_t; y_t += C_t h_t. Keeps every h and decay where asked.
template <int N, bool KEEP>
inline void forward_lanes(const Lanes& in, float* state, float* y, float* hs, float* decays) {
    V h[N];
    UNROLL for (int s = 0; s < N; ++s) h[s] = load(state + s * W);
    const float *B = in.B, *C = in.C;
    for (int t = 0; t < in.tokens; ++t, B += in.n, C += in.n) {
        V delta = load(in.delta + t * COLUMN), x = load(in.x + t * COLUMN);
        V sum = load(y + t * COLUMN);
        UNROLL for (int s = 0; s < N; ++s) {
            V exponent = delta * load(in.A2 + s * W);
            V decay = KEEP ? exp2_or_nan(exponent) : exp2(exponent);
            h[s] = decay * h[s] + x * B[s];
            sum += h[s] * C[s];
            if (KEEP) {
                store(hs + (t * N + s) * W, h[s]);
                store(decays + (t * N + s) * W, decay);
            }
        }
        store(y + t * COLUMN, sum);
    }
    UNROLL for (int s = 0; s < N; ++s) store(state + s * W, h[s]);
}

// The adjoint alone, from the last token to the first: g = exp(delta A) (g + C_t dy_t).
template <int N>
inline void adjoint_lanes(const Lanes& in, float* adjoint) {
    V g[N];
    UNROLL for (int s = 0; s < N; ++s) g[s] = load(adjoint + s * W);
    for (int t = in.tokens - 1; t >= 0; --t) {
        V delta = load(in.delta + t * COLUMN), dy = load(in.dy + t * COLUMN);
        UNROLL for (int s = 0; s < N; ++s)
            g[s] = (g[s] + dy * in.C[t * in.n + s]) * exp2_or_nan(delta * load(in.A2 + s * W));
    }
    UNROLL for (int s = 0; s < N; ++s) store(adjoint + s * W, g[s]);
}

// Gradients of a tile. state: h before it. adjoint: gradient of h after it, from later tokens; on
// return of h before it. gB_t = sum_s g B, gA_t = sum_s g decay h A.
// kept: 2 * (TILE + 1) * N * W floats.
template <int N>
inline void backward_lanes(const Lanes& in, const float* state, float* adjoint, float* y, float* gB,
                           float* gA, float* dA, float* dB, float* dC, float* kept) {
    float *hs = kept + N * W, *decays = kept + (TILE + 1) * N * W;  // hs[-1] is the state before
    std::memcpy(kept, state, N * W * sizeof(float));
    float last[N * W];
    std::memcpy(last, state, sizeof last);
    forward_lanes<N, true>(in, last, y, hs, decays);

    V g[N], da[N];
    UNROLL for (int s = 0; s < N; ++s) g[s] = load(adjoint + s * W), da[s] = load(dA + s * W);
    constexpr int GROUP = N < W ? W / N : 1;  // tokens whose products fill whole vectors of sums
    for (int first = (in.tokens - 1) / GROUP * GROUP; first >= 0; first -= GROUP) {
        V for_B[GROUP * N], for_C[GROUP * N];
        if constexpr (GROUP > 1)
            for (int i = (in.tokens - first) * N; i < GROUP * N; ++i) for_B[i] = for_C[i] = V{};
        for (int t = GROUP > 1 ? std::min(first + GROUP, in.tokens) - 1 : first; t >= first; --t) {
            V delta = load(in.delta + t * COLUMN), x = load(in.x + t * COLUMN);
            V dy = load(in.dy + t * COLUMN);
            V sum_B = load(gB + t * COLUMN), sum_A = load(gA + t * COLUMN);
            const float *B = in.B + t * in.n, *C = in.C + t * in.n;
            UNROLL for (int s = 0; s < N; ++s) {
                V now = g[s] + dy * C[s];
                for_C[(t - first) * N + s] = dy * load(hs + (t * N + s) * W);
                for_B[(t - first) * N + s] = now * x;
                sum_B += now * B[s];
                g[s] = now * load(decays + (t * N + s) * W);
                V q = g[s] * load(hs + ((t - 1) * N + s) * W);  // the gradient of delta_t A
                da[s] += q * delta;
                sum_A += q * load(in.A + s * W);
            }
            store(gB + t * COLUMN, sum_B);
            store(gA + t * COLUMN, sum_A);
        }
        for (int i = 0; i < GROUP * N; i += W) {
            V b = sum_lanes(for_B + i), c = sum_lanes(for_C + i);
            if (N >= W || N == in.n) {
                float *b_to = dB + first * in.n + i, *c_to = dC + first * in.n + i;
                store(b_to, load(b_to) + b);
                store(c_to, load(c_to) + c);
            } else {
                for (int lane = 0; lane < W; ++lane) {
                    int at = (first + (i + lane) / N) * in.n + (i + lane) % N;
                    dB[at] += b[lane];
                    dC[at] += c[lane];
                }
            }
        }
    }
    UNROLL for (int s = 0; s < N; ++s) store(adjoint + s * W, g[s]), store(dA + s * W, da[s]);
}

// Calls f(number of states as a constant, first state) until all n states are done.
template <class F>
inline void for_states(int n, F f) {
    int s = 0;
    for (; s + MAXN <= n; s += MAXN) f(std::integral_constant<int, MAXN>(), s);
    for (; s + 4 <= n; s += 4) f(std::integral_constant<int, 4>(), s);
    for (; s < n; ++s) f(std::integral_constant<int, 1>(), s);
}

// ---- tasks -------------------------------------------------------------------------------------

// A tensor's part in a tile and column: scratch memory, or the caller's own where that can be read
// or written whole vectors at a time.
template <class Float>
struct Tile {
    Float* data;
    const int64_t* rows;
    Float* at(int token, int channel) const { return data + rows[token] + channel; }
};

// One tile and column: parameters from its first channel on, inputs, and scratch memory.
struct Inputs {
    int tokens, lanes, n;
    bool use_softplus;
    const float *A, *A2, *D, *bias;  // A and A2: [lanes / W][n][W]
    const float *B, *C;              // [TILE][n]
    Tile<const float> u, raw;        // raw: step sizes before bias and softplus
    float *delta, *x;                // [TILE][COLUMN]: step sizes, step sizes times u

    // f(token, channel, offset into scratch memory) for every vector
    template <class F>
    void each(F f) const {
        for (int c = 0; c < lanes; c += W)
            for (int t = 0; t < tokens; ++t) f(t, c, t * COLUMN + c);
    }
    void find_steps() const {
        each([&](int t, int c, int i) {
            V d = load(raw.at(t, c)) + load(bias + c);
            if (use_softplus) d = softplus(d);
            store(delta + i, d);
            store(x + i, d * load(u.at(t, c)));
        });
    }
    Lanes lanes_at(int c, int s, const float* dy) const {
        const int64_t a = int64_t(c) * n + s * W;
        return {tokens, n, delta + c, x + c, dy + c, B + s, C + s, A + a, A2 + a};
    }
};

inline float* new_tile(Arena& arena) { return arena.take(TILE * COLUMN); }

// From the state before the tile to that after it, and the output; y is scratch memory.
inline void forward_column(const Inputs& in, float* state, float* y, const Tile<const float>& z,
                           const Tile<float>& out, bool adds) {
    std::fill(y, y + in.tokens * COLUMN, 0.0f);
    for (int lane = 0; lane < in.lanes; lane += W)
        for_states(in.n, [&](auto N, int s) {
            forward_lanes<N, false>(in.lanes_at(lane, s, y), state + lane * in.n + s * W, y + lane,
                                    nullptr, nullptr);
        });
    in.each([&](int t, int c, int i) {
        V sum = load(y + i) + load(in.D + c) * load(in.u.at(t, c));
        if (z.data) {
            V gate = load(z.at(t, c));
            sum *= gate * sigmoid(gate);
        }
        if (adds) sum += load(out.at(t, c));
        store(out.at(t, c), sum);
    });
}

// The gradients of a tile and column; y, where it is there, is the output again. What belongs to a
// token may be where the same token of dy, z or raw is.
struct Gradients {
    Tile<float> du{}, ddelta{}, dz{}, y{};
    float *dB, *dC;            // [TILE][n], added to
    float *dA, *dD, *dbias;    // as A, D and bias, added to
    float *dy_ungated, *ungated, *gB, *gA, *kept;  // scratch memory

    explicit Gradients(Arena& arena) {
        for (float** tile : {&dy_ungated, &ungated, &gB, &gA}) *tile = new_tile(arena);
    }
    void start(const Inputs& in, const Tile<const float>& dy, const Tile<const float>& z) const {
        in.each([&](int t, int c, int i) {
            V out = load(dy.at(t, c));
            if (z.data) {
                V gate = load(z.at(t, c));
                out *= gate * sigmoid(gate);
            }
            store(dy_ungated + i, out);
            for (float* sum : {ungated, gB, gA}) store(sum + i, V{});
        });
    }
    // state: before the tile. adjoint: after it, then before it.
    void find(const Inputs& in, const Tile<const float>& dy, const Tile<const float>& z,
              const float* state, float* adjoint, bool adds) const {
        const int n = in.n;
        for (int lane = 0; lane < in.lanes; lane += W)
            for_states(n, [&](auto N, int s) {
                const int64_t at = lane * n + s * W;
                float da[N * W] = {};  // of this tile alone: two levels of sums round less than one
                backward_lanes<N>(in.lanes_at(lane, s, dy_ungated), state + at, adjoint + at,
                                  ungated + lane, gB + lane, gA + lane, da, dB + s, dC + s, kept);
                for (int i = 0; i < N; ++i)
                    store(dA + at + i * W, load(dA + at + i * W) + load(da + i * W));
            });
        for (int lane = 0; lane < in.lanes; lane += W) {
            V skip = load(in.D + lane), bias = load(in.bias + lane);
            V sum_D = {}, sum_bias = {};
            for (int t = 0; t < in.tokens; ++t) {
                const int i = t * COLUMN + lane;
                V out = load(dy_ungated + i), u = load(in.u.at(t, lane)), by_input = load(gB + i);
                V sum = load(ungated + i) + skip * u;
                V by_step = load(gA + i) + u * by_input;
                if (in.use_softplus) by_step *= sigmoid(load(in.raw.at(t, lane)) + bias);
                V by_u = load(in.delta + i) * by_input + skip * out;
                if (adds) by_u += load(du.at(t, lane));
                store(du.at(t, lane), by_u);
                store(ddelta.at(t, lane), by_step);
                sum_D += out * u;
                sum_bias += by_step;
                if (z.data) {
                    V gate = load(z.at(t, lane)), s = sigmoid(gate);
                    V slope = s * (1.0f + gate * (1.0f - s));
                    store(dz.at(t, lane), load(dy.at(t, lane)) * sum * slope);
                    sum *= gate * s;
                }
                if (y.data) store(y.at(t, lane), sum);
            }
            store(dD + lane, load(dD + lane) + sum_D);
            store(dbias + lane, load(dbias + lane) + sum_bias);
        }
    }
};

// The same where the caller's tensors are.
struct Column : Inputs {
    const Scan& scan;
    const Plan& plan;
    const Task& task;
    int64_t c0;  // first channel
    int64_t p0;  // first channel, counted with the padding of groups
    int channels;

    Column(const Plan& plan, const Task& task, int tokens, int64_t c, const float* B,
           const float* C, Arena& arena)
        : scan(plan.scan), plan(plan), task(task) {
        c0 = task.group * plan.group_channels + c;
        p0 = task.group * plan.group_padded + c;
        channels = int(std::min<int64_t>({COLUMN, task.c1 - c, plan.group_channels - c}));
        this->tokens = tokens, lanes = (channels + W - 1) / W * W, n = int(scan.states);
        use_softplus = scan.softplus;
        A = &plan.A[p0 * n], A2 = &plan.A2[p0 * n], D = &plan.D[p0], bias = &plan.bias[p0];
        this->B = B, this->C = C;
        delta = new_tile(arena), x = new_tile(arena);
    }
    bool in_place(const View& view) const { return view.c == 1 && channels == lanes; }

    Tile<const float> read(const View& from, const Rows& rows, Arena& arena) const {
        if (!from.data) return {};
        const float* first = from.at(task.batch, c0);
        if (in_place(from)) return {first, rows.at};
        float* to = new_tile(arena);
        gather(first, from.c, rows, tokens, channels, lanes, to, COLUMN);
        return {to, SCRATCH.at};
    }
    // Where to put an output; then, from there, to its tensor. What is added to is there already.
    Tile<float> place(const View& to, const Rows& rows, bool adds, Arena& arena) const {
        if (!to.data) return {};
        if (in_place(to)) return {to.at(task.batch, c0), rows.at};
        float* scratch = new_tile(arena);
        if (adds)
            gather(to.at(task.batch, c0), to.c, rows, tokens, channels, lanes, scratch, COLUMN);
        return {scratch, SCRATCH.at};
    }
    void write(const Tile<float>& from, const View& to, const Rows& rows) const {
        if (to.data && !in_place(to))
            scatter(from.data, COLUMN, tokens, channels, to.at(task.batch, c0), to.c, rows);
    }
    void add_steps(float* elapsed) const {
        each([&](int, int c, int i) {
            store(elapsed + p0 + c, load(elapsed + p0 + c) + load(delta + i));
        });
    }
};

// B and C of a tile, [TILE][n].
struct Maps {
    float *B, *C;
    Maps(const Plan& plan, Arena& arena)
        : B(arena.take(TILE * plan.scan.states)), C(arena.take(TILE * plan.scan.states)) {}
    void read(const Plan& plan, const Task& task, int64_t t0, int tokens) {
        const int n = int(plan.scan.states);
        const View* from = &plan.scan.B;
        for (float* to : {B, C}) {
            const Rows rows(plan.scan, *from, t0, tokens);
            gather(from->at(task.batch, task.group), from->n, rows, tokens, n, n, to, n);
            from = &plan.scan.C;
        }
    }
};

// ---- one state ---------------------------------------------------------------------------------
// There is little arithmetic to a byte, so a token's channels are done in registers from input to
// output, and memory is walked in the order it lies in. For whole vectors of channels next to each
// other. What belongs to a channel, a state say, is in an array that stays in cache.

inline bool one_state(const Plan& plan, std::initializer_list<const View*> views) {
    bool in_place = plan.scan.states == 1 && plan.group_channels % W == 0;
    for (const View* view : views) in_place &= !view->data || view->c == 1;
    return in_place;
}

void forward_one_state(const Plan& plan, const Task& task, float* state, float* elapsed,
                       Arena arena) {
    const Scan& scan = plan.scan;
    const bool use_softplus = scan.softplus, ends_only = elapsed != nullptr;
    const int64_t c0 = task.group * plan.group_channels + task.c0;
    const int64_t p0 = task.group * plan.group_padded + task.c0;
    const int64_t channels = std::min(task.c1, plan.group_channels) - task.c0;
    const float *bias = &plan.bias[p0], *A2 = &plan.A2[p0], *D = &plan.D[p0];
    float* h = state + p0;
    // Processors do not foresee a walk that skips other parts' channels or goes down a column.
    const int64_t ahead = std::min(MOST_AHEAD, ceil_div(LANES_AHEAD, channels));
    Maps maps(plan, arena);
    for (int64_t t0 = task.t0; t0 < task.t1; t0 += TILE) {
        const int tokens = int(std::min(TILE, task.t1 - t0));
        const int rows = int(std::min(TILE + ahead, task.t1 - t0));
        const Rows u_rows(scan, scan.u, t0, rows), delta_rows(scan, scan.delta, t0, rows);
        const Rows y_rows(scan, scan.y, t0, rows), z_rows(scan, scan.z, t0, rows);
        maps.read(plan, task, t0, tokens);
        if (scan.saved.data && !ends_only)
            std::memcpy(scan.saved.data + plan.saved_at(task.batch, t0, p0), h,
                        channels * sizeof(float));
        for (int t = 0; t < tokens; ++t) {
            const float* u = scan.u.at(task.batch, c0) + u_rows.at[t];
            const float* raw = scan.delta.at(task.batch, c0) + delta_rows.at[t];
            const float* z = scan.z.data ? scan.z.at(task.batch, c0) + z_rows.at[t] : nullptr;
            float* y = scan.y.at(task.batch, c0) + y_rows.at[t];
            const V B = splat(maps.B[t]), C = splat(maps.C[t]);
            const int later = int(std::min<int64_t>(t + ahead, rows - 1));
            const int64_t u_later = u_rows.at[later] - u_rows.at[t];
            const int64_t delta_later = delta_rows.at[later] - delta_rows.at[t];
            const int64_t y_later = y_rows.at[later] - y_rows.at[t];
            for (int64_t c = 0; c < channels; c += W) {
                __builtin_prefetch(u + u_later + c);
                __builtin_prefetch(raw + delta_later + c);
                __builtin_prefetch(y + y_later + c, 1);
                V delta = load(raw + c) + load(bias + c), in = load(u + c);
                if (use_softplus) delta = softplus(delta);
                V now = exp2(delta * load(A2 + c)) * load(h + c) + delta * in * B;
                store(h + c, now);
                if (ends_only) {
                    store(elapsed + p0 + c, load(elapsed + p0 + c) + delta);
                    continue;
                }
                V out = now * C + load(D + c) * in;
                if (z) {
                    V gate = load(z + c);
                    out *= gate * sigmoid(gate);
                }
                if (scan.order) out += load(y + c);
                store(y + c, out);
            }
        }
    }
}

// Without a gate.
void backward_one_state(Plan& plan, const Task& task, float* adjoint, Arena arena) {
    const Scan& scan = plan.scan;
    const bool use_softplus = scan.softplus;
    const int64_t channels = std::min(task.c1, plan.group_channels) - task.c0;
    Maps maps(plan, arena);
    float *dB = arena.take(TILE), *dC = arena.take(TILE);
    float *sums_B = arena.take(TILE * W), *sums_C = arena.take(TILE * W);  // by lane
    float *delta = arena.take(TILE * COLUMN), *slope = arena.take(TILE * COLUMN);
    float* decay = arena.take(TILE * COLUMN);
    float *before = arena.take((TILE + 1) * COLUMN), *h = before + COLUMN;  // state around a token
    const int ahead = LANES_AHEAD / COLUMN;
    for (int64_t t0 = task.t0 + (task.t1 - task.t0 - 1) / TILE * TILE; t0 >= task.t0; t0 -= TILE) {
        const int tokens = int(std::min(TILE, task.t1 - t0));
        const Rows u_rows(scan, scan.u, t0, tokens), delta_rows(scan, scan.delta, t0, tokens);
        const Rows dy_rows(scan, scan.dy, t0, tokens), du_rows(scan, scan.du, t0, tokens);
        const Rows ddelta_rows(scan, scan.ddelta, t0, tokens);
        maps.read(plan, task, t0, tokens);
        for (float* sums : {sums_B, sums_C}) std::fill(sums, sums + TILE * W, 0.0f);
        for (int64_t c = task.c0; c < task.c0 + channels; c += COLUMN) {
            const int lanes = int(std::min(COLUMN, task.c0 + channels - c));
            const int64_t c0 = task.group * plan.group_channels + c;
            const int64_t p0 = task.group * plan.group_padded + c;
            std::memcpy(before, scan.saved.data + plan.saved_at(task.batch, t0, p0),
                        lanes * sizeof(float));
            for (int t = 0; t < tokens; ++t) {
                const float* u = scan.u.at(task.batch, c0) + u_rows.at[t];
                const float* raw = scan.delta.at(task.batch, c0) + delta_rows.at[t];
                const float* dy = scan.dy.at(task.batch, c0) + dy_rows.at[t];
                const float* du = scan.du.at(task.batch, c0) + du_rows.at[t];
                const float* ddelta = scan.ddelta.at(task.batch, c0) + ddelta_rows.at[t];
                const V B = splat(maps.B[t]);
                const int later = std::min(t + ahead, tokens - 1);
                const int64_t u_later = u_rows.at[later] - u_rows.at[t];
                const int64_t delta_later = delta_rows.at[later] - delta_rows.at[t];
                for (int lane = 0; lane < lanes; lane += W) {
                    const int i = t * COLUMN + lane;
                    __builtin_prefetch(u + u_later + lane);
                    __builtin_prefetch(raw + delta_later + lane);
                    __builtin_prefetch(dy + lane);  // for the walk back
                    __builtin_prefetch(du + lane, 1);
                    __builtin_prefetch(ddelta + lane, 1);
                    V step = load(raw + lane) + load(&plan.bias[p0 + lane]);
                    if (use_softplus) {
                        V w = exp_of_minus_abs(step);
                        store(slope + i, sigmoid(step, w));
                        step = softplus(step, w);
                    } else {
                        store(slope + i, splat(1.0f));
                    }
                    V factor = exp2_or_nan(step * load(&plan.A2[p0 + lane]));
                    store(delta + i, step);
                    store(decay + i, factor);
                    store(h + i, factor * load(before + i) + step * load(u + lane) * B);
                }
            }
            for (int lane = 0; lane < lanes; lane += W) {
                const float* u = scan.u.at(task.batch, c0 + lane);
                const float* dy = scan.dy.at(task.batch, c0 + lane);
                float* du = scan.du.at(task.batch, c0 + lane);
                float* ddelta = scan.ddelta.at(task.batch, c0 + lane);
                const int64_t p = p0 + lane;
                const V A = load(&plan.A[p]), D = load(&plan.D[p]);
                V g = load(adjoint + p), sum_A = {}, sum_D = {}, sum_bias = {};
                for (int t = tokens - 1; t >= 0; --t) {
                    const int i = t * COLUMN + lane;
                    V in = load(u + u_rows.at[t]), out = load(dy + dy_rows.at[t]);
                    V step = load(delta + i), now = g + out * maps.C[t];
                    store(sums_C + t * W, load(sums_C + t * W) + out * load(h + i));
                    store(sums_B + t * W, load(sums_B + t * W) + now * step * in);
                    g = now * load(decay + i);
                    V by_input = now * maps.B[t], by_decay = g * load(before + i);
                    V by_step = (by_decay * A + in * by_input) * load(slope + i);
                    V by_u = step * by_input + D * out;
                    if (scan.order) by_u += load(du + du_rows.at[t]);
                    store(du + du_rows.at[t], by_u);
                    store(ddelta + ddelta_rows.at[t], by_step);
                    sum_A += by_decay * step;
                    sum_D += out * in;
                    sum_bias += by_step;
                }
                store(adjoint + p, g);
                float *dA = plan.dA(task) + p, *dD = plan.dD(task) + p, *dbias = plan.dbias(task) + p;
                store(dA, load(dA) + sum_A);
                store(dD, load(dD) + sum_D);
                store(dbias, load(dbias) + sum_bias);
            }
        }
        for (int t = 0; t < tokens; t += W) {
            store(dB + t, sum_lanes((V*)(sums_B + t * W)));
            store(dC + t, sum_lanes((V*)(sums_C + t * W)));
        }
        scatter(dB, 1, tokens, 1, plan.dB(task), 1, Rows(scan, scan.dB, t0, tokens));
        scatter(dC, 1, tokens, 1, plan.dC(task), 1, Rows(scan, scan.dC, t0, tokens));
    }
}

// state, here and below: [padded channel / W][n][W], so that a channel's states start at p * n.
// ends_only: leaves y alone, adds the step sizes to `elapsed` (per padded channel).
void forward_task(const Plan& plan, const Task& task, float* state, float* elapsed, Arena arena) {
    const Scan& scan = plan.scan;
    if (one_state(plan, {&scan.u, &scan.delta, &scan.y, &scan.z}))
        return forward_one_state(plan, task, state, elapsed, arena);
    const int n = int(scan.states);
    const bool ends_only = elapsed != nullptr;
    Maps maps(plan, arena);
    for (int64_t t0 = task.t0; t0 < task.t1; t0 += TILE) {
        const int tokens = int(std::min(TILE, task.t1 - t0));
        const Rows u_rows(scan, scan.u, t0, tokens), delta_rows(scan, scan.delta, t0, tokens);
        const Rows y_rows(scan, scan.y, t0, tokens), z_rows(scan, scan.z, t0, tokens);
        maps.read(plan, task, t0, tokens);
        for (int64_t c = task.c0; c < task.c1; c += COLUMN) {
            Arena here = arena;
            Column column(plan, task, tokens, c, maps.B, maps.C, here);
            float *y = new_tile(here), *h = state + column.p0 * n;
            if (scan.saved.data && !ends_only)
                std::memcpy(scan.saved.data + plan.saved_at(task.batch, t0, column.p0), h,
                            column.lanes * n * sizeof(float));
            column.u = column.read(scan.u, u_rows, here);
            column.raw = column.read(scan.delta, delta_rows, here);
            column.find_steps();
            if (ends_only) {
                std::fill(y, y + tokens * COLUMN, 0.0f);
                for (int lane = 0; lane < column.lanes; lane += W)
                    for_states(n, [&](auto N, int s) {
                        forward_lanes<N, false>(column.lanes_at(lane, s, y), h + lane * n + s * W,
                                                y + lane, nullptr, nullptr);
                    });
                column.add_steps(elapsed);
                continue;
            }
            const Tile<float> out = column.place(scan.y, y_rows, scan.order, here);
            forward_column(column, h, y, column.read(scan.z, z_rows, here), out, scan.order);
            column.write(out, scan.y, y_rows);
        }
    }
}

// The gradients of a task's tokens, from the last tile to the first. With `elapsed`, as above, only
// the adjoint and the step sizes.
void backward_task(Plan& plan, const Task& task, float* adjoint, float* elapsed,
                   Arena arena) {
    const Scan& scan = plan.scan;
    const bool ends_only = elapsed != nullptr;
    if (one_state(plan, {&scan.u, &scan.delta, &scan.dy, &scan.du, &scan.ddelta}) &&
        !scan.z.data && !ends_only)
        return backward_one_state(plan, task, adjoint, arena);
    const int n = int(scan.states);
    Maps maps(plan, arena);
    float *dB = arena.take(TILE * n), *dC = arena.take(TILE * n);
    float* kept = arena.take(2 * (TILE + 1) * MAXN * W);
    for (int64_t t0 = task.t0 + (task.t1 - task.t0 - 1) / TILE * TILE; t0 >= task.t0; t0 -= TILE) {
        const int tokens = int(std::min(TILE, task.t1 - t0));
        const Rows u_rows(scan, scan.u, t0, tokens), delta_rows(scan, scan.delta, t0, tokens);
        const Rows dy_rows(scan, scan.dy, t0, tokens), z_rows(scan, scan.z, t0, tokens);
        const Rows du_rows(scan, scan.du, t0, tokens), dz_rows(scan, scan.dz, t0, tokens);
        const Rows ddelta_rows(scan, scan.ddelta, t0, tokens);
        maps.read(plan, task, t0, tokens);
        std::fill(dB, dB + TILE * n, 0.0f);
        std::fill(dC, dC + TILE * n, 0.0f);
        for (int64_t c = task.c0; c < task.c1; c += COLUMN) {
            Arena here = arena;
            Column column(plan, task, tokens, c, maps.B, maps.C, here);
            Gradients gradients(here);
            float* g = adjoint + column.p0 * n;
            column.u = column.read(scan.u, u_rows, here);
            column.raw = column.read(scan.delta, delta_rows, here);
            const Tile<const float> dy = column.read(scan.dy, dy_rows, here);
            const Tile<const float> z = column.read(scan.z, z_rows, here);
            column.find_steps();
            gradients.start(column, dy, z);
            if (ends_only) {
                for (int lane = 0; lane < column.lanes; lane += W)
                    for_states(n, [&](auto N, int s) {
                        adjoint_lanes<N>(column.lanes_at(lane, s, gradients.dy_ungated),
                                         g + lane * n + s * W);
                    });
                column.add_steps(elapsed);
                continue;
            }
            gradients.du = column.place(scan.du, du_rows, scan.order, here);
            gradients.ddelta = column.place(scan.ddelta, ddelta_rows, false, here);
            gradients.dz = column.place(scan.dz, dz_rows, false, here);
            gradients.dA = plan.dA(task) + column.p0 * n;
            gradients.dD = plan.dD(task) + column.p0;
            gradients.dbias = plan.dbias(task) + column.p0;
            gradients.dB = dB, gradients.dC = dC, gradients.kept = kept;
            gradients.find(column, dy, z, scan.saved.data + plan.saved_at(task.batch, t0, column.p0),
                           g, scan.order);
            column.write(gradients.du, scan.du, du_rows);
            column.write(gradients.ddelta, scan.ddelta, ddelta_rows);
            column.write(gradients.dz, scan.dz, dz_rows);
        }
        if (!ends_only) {
            scatter(dB, n, tokens, n, plan.dB(task), 1, Rows(scan, scan.dB, t0, tokens));
            scatter(dC, n, tokens, n, plan.dC(task), 1, Rows(scan, scan.dC, t0, tokens));
        }
    }
}

}  // namespace INSTRUCTION_SET
}  // namespace

#endif  // SELECTIVE_SCAN_INL_H
