// What the Mamba mixer's entry points and its kernels share.
//
// Tokens of an item are done chunk by chunk, each by one thread from input to output in memory that
// stays in its cache. A chunk's scan goes on from the state that the chunk before left, column by
// column, so that threads follow each other closely through the chunks of one item. Which thread
// runs a chunk, and how many there are, never matters to the result.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <vector>

#include "sizes.h"
#include "tile_products.h"
#include "tiles.h"

extern "C" {

// Weights and their gradients are dense, in the shapes that mamba_mixer.py gives them. Must agree
// with _Mixer in mamba_mixer_cpp.py.
struct Mixer {
    int64_t batch, length, channels, inner, states, rank, taps, outputs;
    int64_t chunk;  // tokens, a multiple of TILE that is not below taps - 1
    int32_t threads, isa, bfloat16, unused;  // bfloat16: in products with weights, by tiles
    View x, out;  // backward: out is its gradient
    const float *in_proj, *conv_weight, *conv_bias, *x_proj, *dt_proj, *dt_bias, *A, *D, *out_proj;
    float* saved;  // [batch][tile][padded inner][states]: before each; forward writes unless null
    View dx;
    float *din_proj, *dconv_weight, *dconv_bias, *dx_proj, *ddt_proj, *ddt_bias, *dA, *dD, *dout_proj;
};
}

namespace {

// A weight for multiply(): [panel of columns][depth][columns of a panel], 0 where there is none; or
// for multiply_tiles().
struct Packed {
    int64_t panel = 0;  // floats of a panel
    std::vector<float> data;
    std::vector<Line> lines;

    Packed() = default;
    Packed(int64_t width, int64_t columns, int64_t depth, const float* weight, int64_t by_column,
           int64_t by_depth, bool tiled = false) {
        if (tiled) {
            lines = in_lines(columns, depth, weight, by_column, by_depth);
            return;
        }
        panel = width * depth;
        data.resize(ceil_div(ceil_div(columns, PAD) * PAD, width) * panel);
        for (int64_t first = 0; first < columns; first += width)
            for (int64_t k = 0; k < depth; ++k)
                for (int64_t c = first; c < std::min(columns, first + width); ++c)
                    data[first * depth + k * width + c - first] = weight[c * by_column + k * by_depth];
    }
};

// Sums of the weights' gradients, each where it starts: rows of padded width.
struct MixerSums {
    int64_t from_x, from_x_gate, maps, dt, out, taps, A, D, bias, floats;
};

struct MixerPlan {
    static constexpr int64_t SLOTS = 4;  // sums that chunks add to in turn

    const Mixer& mixer;
    int64_t width;                                   // W of the instruction set
    int64_t d, c, o, m;                              // inner, channels, outputs, maps: padded
    int64_t reach, chunks, tiles, column, threads;   // column: channels scanned between two waits
    bool tiled;                                      // products with weights, but for steps of few ranks
    // Products, tokens times weight. Of in_proj the halves for u and for the gate.
    Packed to_u, to_gate, to_maps, to_steps, to_out;
    Packed back_u, back_gate, back_maps, back_steps, back_out;
    std::vector<float> taps, tap_bias;    // [tap][d]
    std::vector<float> A, A2, D, bias;    // A: [d / W][n][W]; A2 = A log2(e)
    std::vector<float> carried;           // [batch][d / W][n][W]: the state, or the adjoint
    std::unique_ptr<std::atomic<int64_t>[]> scanned;    // [batch][column]: chunks
    // Backward.
    std::vector<float> heads;  // [batch][chunk][reach][d]: the convolution's gradient of first tokens
    std::unique_ptr<std::atomic<int64_t>[]> convolved;  // [batch]: chunks that wrote these
    MixerSums sums;
    std::unique_ptr<float[]> slots;  // the first chunk of each writes it
    std::atomic<int64_t> added[SLOTS] = {};

    MixerPlan(const Mixer& mixer, int64_t width, bool backward) : mixer(mixer), width(width) {
        const int64_t n = mixer.states, rank = mixer.rank, inner = mixer.inner, c_in = mixer.channels;
        require_positive({mixer.batch, mixer.length, c_in, inner, n, rank, mixer.taps, mixer.outputs,
                          mixer.chunk});
        auto padded = [](int64_t size) { return ceil_div(size, PAD) * PAD; };
        d = padded(inner), c = padded(c_in), o = padded(mixer.outputs), m = padded(rank + 2 * n);
        reach = mixer.taps - 1;
        chunks = ceil_div(mixer.length, mixer.chunk), tiles = ceil_div(mixer.length, TILE);
        const double work = double(mixer.batch) * mixer.length * d * (8 * n + 2 * c + m + o);
        threads = std::max<int64_t>(1, std::min<int64_t>(mixer.threads, int64_t(work / 3e5)));
        threads = std::min(threads, mixer.batch * chunks);
        column = threads == 1 ? COLUMN : std::min(COLUMN, std::max(PAD, d / (2 * threads) / PAD * PAD));

        tiled = mixer.bfloat16 && width == 16 && has_tiles();
        const int64_t panel = 2 * width;
        const float* gate = mixer.in_proj + inner * c_in;
        to_u = Packed(panel, inner, c_in, mixer.in_proj, c_in, 1, tiled);
        to_gate = Packed(panel, inner, c_in, gate, c_in, 1, tiled);
        to_maps = Packed(panel, rank + 2 * n, inner, mixer.x_proj, inner, 1, tiled);
        to_steps = Packed(panel, inner, rank, mixer.dt_proj, rank, 1);
        if (backward) {
            back_u = Packed(panel, c_in, inner, mixer.in_proj, 1, c_in, tiled);
            back_gate = Packed(panel, c_in, inner, gate, 1, c_in, tiled);
            back_maps = Packed(panel, inner, rank + 2 * n, mixer.x_proj, 1, inner, tiled);
            back_steps = Packed(panel, rank, inner, mixer.dt_proj, 1, rank);
            back_out = Packed(panel, inner, mixer.outputs, mixer.out_proj, 1, inner, tiled);
        } else {
            to_out = Packed(panel, mixer.outputs, inner, mixer.out_proj, inner, 1, tiled);
        }
        taps.resize(mixer.taps * d), tap_bias.resize(d);
        A.resize(d * n), A2.resize(d * n), D.resize(d), bias.resize(d);
        for (int64_t p = 0; p < inner; ++p) {
            for (int64_t j = 0; j < mixer.taps; ++j)
                taps[j * d + p] = mixer.conv_weight[p * mixer.taps + j];
            for (int64_t s = 0; s < n; ++s) {
                const float a = mixer.A[p * n + s];
                A[state_at(p, s)] = a;
                // NAN's low bits are 0: exp2 keeps it.
                A2[state_at(p, s)] = std::isnan(a) ? NAN : float(a * 1.4426950408889634);
            }
            tap_bias[p] = mixer.conv_bias[p], D[p] = mixer.D[p], bias[p] = mixer.dt_bias[p];
        }
        carried.resize(mixer.batch * d * n);
        scanned.reset(new std::atomic<int64_t>[mixer.batch * columns()]());
        if (!backward) return;
        heads.resize(mixer.batch * chunks * reach * d);
        convolved.reset(new std::atomic<int64_t>[mixer.batch]());
        int64_t next = 0;
        auto place = [&](int64_t rows, int64_t row) {
            next += rows * row;
            return next - rows * row;
        };
        sums = {place(inner, c),          place(inner, c),         place(rank + 2 * n, d),
                place(rank, d),           place(mixer.outputs, d), place(mixer.taps + 1, d),
                place(n, d),              place(1, d),             place(1, d), 0};
        sums.floats = next;
        slots.reset(new float[std::min(SLOTS, mixer.batch * chunks) * next]);
    }

    float* slot(int64_t number) { return &slots[number * sums.floats]; }
    int64_t columns() const { return ceil_div(d, column); }
    int64_t state_at(int64_t p, int64_t s) const {
        return (p / width * mixer.states + s) * width + p % width;
    }
    float* saved_at(int64_t item, int64_t t0, int64_t p) const {
        return mixer.saved + ((item * tiles + t0 / TILE) * d + p) * mixer.states;
    }
    float* head_at(int64_t item, int64_t chunk) {  // nothing where there is one tap
        return heads.data() + (item * chunks + chunk) * reach * d;
    }

    int64_t rounded_floats() const {  // that hold a chunk's left factor in bfloat16
        return tiled ? (ceil_div(reach + mixer.chunk, 32) * 32) * lines_of(std::max({c, d, o, m})) : 0;
    }
    int64_t scratch_floats(bool backward) const {  // the most that a task takes from its arena
        const int64_t n = mixer.states, tokens = mixer.chunk, all = tokens + reach;
        const int64_t before = all * (c + d) + tokens * (3 * d + m + 2 * n) + rounded_floats() + 16;
        if (!backward) return before + tokens * o + 3 * TILE * COLUMN + 16 * 12;
        return before + tokens * (o + 2 * d + c + m + 2 * n) + reach * d + (mixer.taps + 3 + n) * d +
               6 * TILE * COLUMN + 2 * (TILE + 1) * 16 * 16 + 16 * 24;
    }
};

}  // namespace
