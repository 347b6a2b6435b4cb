// What the selective scan's entry points and its kernels share.
//
// Work is divided into tasks of (batch, group, part of the group's channels, chunk of tokens).
// Which thread runs a task never matters to the result, and the division depends on shape and
// thread count alone, so equal calls give equal bits.
//
// Tokens lie on a grid, one row of it for a sequence, and are walked in an order (see Rows), so
// that a map's orders are scans of the same memory. They run one after another; the first writes y
// and du, the others add to them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "sizes.h"
#include "tiles.h"

extern "C" {

// Must agree with _Scan in cpp.py.
struct Scan {
    int64_t batch, channels, groups, height, width, states;
    int32_t orders;  // 1, or 4 with arguments of their own
    int32_t order;   // the one of these that is scanned
    int32_t softplus, threads;
    int32_t isa;  // the highest that may be used: 0 portable, 1 AVX2, 2 AVX-512
    int32_t unused;
    View u, delta, A, B, C, D, z, bias;
    View y, last;
    View saved;  // forward writes, backward reads, see Plan::saved_at; not there: not wanted
    View dy, dlast;
    View du, ddelta, dA, dB, dC, dD, dz, dbias;  // dB and dC: an order's are contiguous
    int64_t length() const { return height * width; }
};
}

namespace {

constexpr int64_t LANES_AHEAD = 512;  // channels times tokens that are fetched before their turn
constexpr int64_t MOST_AHEAD = 16;    // tokens

// What EvenRows is, for tokens of the grid in an order: 0 row by row, 1 column by column, 2 and 3 the
// same from the last token to the first.
struct Rows {
    int64_t at[TILE + MOST_AHEAD];
    bool adjacent;

    Rows(const Scan& scan, const View& view, int64_t t0, int64_t tokens) {
        int64_t lines = scan.height, line = scan.width, step = view.l, next_line = view.h;
        if (scan.order % 2) std::swap(lines, line), std::swap(step, next_line);
        int64_t i = t0 % line, offset = t0 / line * next_line + i * step;
        if (scan.order >= 2) {
            offset = (lines - 1) * next_line + (line - 1) * step - offset;
            step = -step, next_line = -next_line;
        }
        for (int64_t t = 0; t < tokens; ++t) {
            at[t] = offset;
            offset += step;
            if (++i == line) i = 0, offset += next_line - line * step;
        }
        adjacent = true;
        for (int64_t t = 1; t < tokens; ++t) adjacent &= at[t] - at[t - 1] == 1;
    }
};

// Rows of a tile in scratch memory.
struct ScratchRows {
    int64_t at[TILE];
    constexpr ScratchRows() : at() {
        for (int64_t t = 0; t < TILE; ++t) at[t] = t * COLUMN;
    }
};
constexpr ScratchRows SCRATCH;

struct Task {
    int64_t batch, group, part, chunk;
    int64_t c0, c1;  // channels within the group, c1 possibly in the padding
    int64_t t0, t1;  // tokens
};

// How a call is divided, and what its tasks share.
struct Plan {
    const Scan& scan;
    int width;  // W of the instruction set
    int64_t group_channels, group_padded, padded;  // channels of a group, padded, of all groups
    int64_t parts, chunks, threads;
    std::vector<float> A, A2, D, bias;  // A: [padded / W][n][W]; A2 = A log2(e)
    std::vector<Task> tasks;
    std::vector<float> carried;  // state before each chunk, or adjoint after it
    std::vector<float> elapsed;  // sum of delta over each chunk
    // Backward: sums by (batch, chunk), and by part after the first, which has the output itself.
    std::vector<float> sums_A, sums_D, sums_bias;
    std::unique_ptr<float[]> sums_B, sums_C;

    Plan(const Scan& scan, int width) : scan(scan), width(width) {
        require_positive({scan.batch, scan.channels, scan.groups, scan.height, scan.width, scan.states});
        group_channels = scan.channels / scan.groups;
        group_padded = ceil_div(group_channels, PAD) * PAD;
        padded = scan.groups * group_padded;
        divide();
        const int64_t n = scan.states;
        A.resize(padded * n), A2.resize(padded * n), D.resize(padded), bias.resize(padded);
        carried.resize(scan.batch * chunks * padded * n), elapsed.resize(carried.size() / n);
        for (int64_t d = 0; d < scan.channels; ++d) {
            const int64_t p = with_padding(d);
            for (int64_t s = 0; s < n; ++s) {
                const float a = scan.A.data[d * scan.A.c + s * scan.A.n];
                A[state_at(p, s)] = a;
                // NAN's low bits are 0: exp2 keeps it.
                A2[state_at(p, s)] = std::isnan(a) ? NAN : float(a * 1.4426950408889634);
            }
            if (scan.D.data) D[p] = scan.D.data[d * scan.D.c];
            if (scan.bias.data) bias[p] = scan.bias.data[d * scan.bias.c];
        }
    }

    // The division with the shortest longest thread. Chunks cost a second pass over the states.
    void divide() {
        const int64_t blocks = group_padded / PAD, tiles = ceil_div(scan.length(), TILE);
        const int64_t groups = scan.batch * scan.groups;
        const double states =
            double(groups) * scan.orders * group_padded * scan.length() * (scan.states + 3);
        threads = std::max<int64_t>(1, std::min<int64_t>(scan.threads, int64_t(states / 1e5)));
        parts = chunks = 1;
        double best = 1e300;
        for (int64_t k = 1; k <= std::min(tiles, 2 * threads); k = k < 4 ? k + 1 : k + k / 2)
            for (int64_t p = 1; p <= std::min(blocks, 2 * threads); ++p) {
                double cost = double(ceil_div(groups * p * k, threads)) * ceil_div(blocks, p) *
                              ceil_div(tiles, k) * (k > 1 ? 1.7 : 1.0);
                if (cost < 0.97 * best) best = cost, parts = p, chunks = k;
            }
        const int64_t channels = ceil_div(blocks, parts) * PAD, tokens = ceil_div(tiles, chunks) * TILE;
        parts = ceil_div(group_padded, channels), chunks = ceil_div(scan.length(), tokens);
        for (int64_t b = 0; b < scan.batch; ++b)
            for (int64_t g = 0; g < scan.groups; ++g)
                for (int64_t p = 0; p < parts; ++p)
                    for (int64_t k = 0; k < chunks; ++k)
                        tasks.push_back({b, g, p, k, p * channels,
                                         std::min(group_padded, (p + 1) * channels), k * tokens,
                                         std::min(scan.length(), (k + 1) * tokens)});
        threads = std::min<int64_t>(threads, tasks.size());
    }

    int64_t map_size() const { return scan.batch * scan.groups * scan.length() * scan.states; }

    void make_sums() {
        const int64_t rows = scan.batch * chunks * padded;
        sums_A.assign(rows * scan.states, 0), sums_D.assign(rows, 0), sums_bias.assign(rows, 0);
        sums_B.reset(new float[(parts - 1) * map_size()]);
        sums_C.reset(new float[(parts - 1) * map_size()]);
    }

    int64_t with_padding(int64_t channel) const {
        return channel / group_channels * group_padded + channel % group_channels;
    }
    int64_t slot(int64_t batch, int64_t chunk) const { return (batch * chunks + chunk) * padded; }
    float* carried_at(int64_t batch, int64_t chunk) {
        return &carried[slot(batch, chunk) * scan.states];
    }
    int64_t state_at(int64_t p, int64_t s) const {
        return (p / width * scan.states + s) * width + p % width;
    }
    // [batch][tile][padded / W][n][W]: the state before each tile
    int64_t saved_at(int64_t batch, int64_t t0, int64_t p) const {
        return ((batch * ceil_div(scan.length(), TILE) + t0 / TILE) * padded + p) * scan.states;
    }
    float* dA(const Task& t) { return &sums_A[slot(t.batch, t.chunk) * scan.states]; }
    float* dD(const Task& t) { return &sums_D[slot(t.batch, t.chunk)]; }
    float* dbias(const Task& t) { return &sums_bias[slot(t.batch, t.chunk)]; }
    // Laid out as dB and dC are.
    float* dB(const Task& t) {
        return (t.part ? &sums_B[(t.part - 1) * map_size()] : scan.dB.data) +
               (scan.dB.at(t.batch, t.group) - scan.dB.data);
    }
    float* dC(const Task& t) {
        return (t.part ? &sums_C[(t.part - 1) * map_size()] : scan.dC.data) +
               (scan.dC.at(t.batch, t.group) - scan.dC.data);
    }

    int64_t scratch_floats() const {  // the most that a task takes from its arena
        return 4 * TILE * (scan.states + PAD) + 2 * (TILE + 1) * 16 * 16 + 14 * TILE * COLUMN;
    }
};

}  // namespace
