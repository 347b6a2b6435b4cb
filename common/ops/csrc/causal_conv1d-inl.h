// What one task of the causal depthwise convolution with SiLU does. Compiled once per instruction
// set, see kernels-inl.h.
//
// A task walks a range of tokens in tiles of TILE tokens and COLUMN channels, copied with as many
// tokens around them as the taps reach into scratch memory; 0 where the sequence has none.

#include <algorithm>
#include <cstdint>

#include "arena.h"
#include "causal_conv1d.h"
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
inline V convolve(const T& taps, V bias, const float* x) {
    UNROLL for (int j = 0; j < taps.count; ++j) bias += taps.at(j) * load(x + j * COLUMN);
    return bias;
}

struct ConvColumn {
    const Conv& conv;
    int64_t batch, c0;
    int channels, lanes;

    // to[t] = from[first + t] for t < rows; 0 where that is outside begin <= token < end
    void read(const View& from, int64_t first, int64_t rows, int64_t begin, int64_t end,
              float* to) const {
        const int64_t low = std::min(first + rows, std::max(first, begin));
        const int64_t high = std::max(low, std::min(first + rows, end));
        std::fill(to, to + (low - first) * COLUMN, 0.0f);
        gather(from.at(batch, c0) + low * from.l, from.c, EvenRows(from.l), int(high - low),
               channels, lanes, to + (low - first) * COLUMN, COLUMN);
        std::fill(to + (high - first) * COLUMN, to + rows * COLUMN, 0.0f);
    }
    void write(const float* from, int tokens, const View& to, int64_t t0) const {
        scatter(from, COLUMN, tokens, channels, to.at(batch, c0) + t0 * to.l, to.c, EvenRows(to.l));
    }
};

// f(column, first token, tokens) for every tile and column of a task
template <class F>
inline void for_columns(const ConvPlan& plan, int64_t task, F f) {
    const Conv& conv = plan.conv;
    const int64_t begin = task % plan.tasks_per_item * plan.tokens;
    const int64_t end = std::min(conv.length, begin + plan.tokens);
    for (int64_t t0 = begin; t0 < end; t0 += TILE)
        for (int64_t c0 = 0; c0 < conv.channels; c0 += COLUMN) {
            const int channels = int(std::min(COLUMN, conv.channels - c0));
            const ConvColumn column{conv, task / plan.tasks_per_item, c0, channels,
                                    (channels + W - 1) / W * W};
            f(column, t0, int(std::min(TILE, end - t0)));
        }
}

// f(taps of W channels, their bias, first of them within the column) for a column's channels
template <class F>
inline void for_lanes(const ConvPlan& plan, const ConvColumn& column, F f) {
    const int taps = int(plan.conv.kernel);
    for (int lane = 0; lane < column.lanes; lane += W) {
        const int64_t p = column.c0 + lane;
        const V bias = load(&plan.bias[p]);
        if (taps == 4)
            f(Taps<4>(&plan.weight[p], plan.padded, taps), bias, lane);
        else
            f(Taps<0>(&plan.weight[p], plan.padded, taps), bias, lane);
    }
}

void conv_forward_task(const ConvPlan& plan, int64_t task, Arena arena) {
    const Conv& conv = plan.conv;
    const int64_t reach = conv.kernel - 1;
    float *x = arena.take((TILE + reach) * COLUMN), *y = arena.take(TILE * COLUMN);
    for_columns(plan, task, [&](const ConvColumn& column, int64_t t0, int tokens) {
        column.read(conv.x, t0 - reach, tokens + reach, -conv.before, conv.length, x);
        for_lanes(plan, column, [&](const auto& taps, V bias, int lane) {
            for (int t = lane; t < tokens * COLUMN; t += COLUMN) {
                V sum = convolve(taps, bias, x + t);
                store(y + t, sum * sigmoid(sum));
            }
        });
        column.write(y, tokens, conv.y, t0);
    });
}

void conv_backward_task(ConvPlan& plan, int64_t task, Arena arena) {
    const Conv& conv = plan.conv;
    const int64_t reach = conv.kernel - 1, end = conv.length + conv.after;
    float* x = arena.take((TILE + 2 * reach) * COLUMN);
    float* g = arena.take((TILE + reach) * COLUMN);  // the gradient of y, then of the sum
    float* dx = arena.take(TILE * COLUMN);
    for_columns(plan, task, [&](const ConvColumn& column, int64_t t0, int tokens) {
        column.read(conv.x, t0 - reach, tokens + 2 * reach, -conv.before, end, x);
        column.read(conv.dy, t0, tokens + reach, 0, end, g);
        for_lanes(plan, column, [&](const auto& taps, V bias, int lane) {
            for (int t = lane; t < (tokens + reach) * COLUMN; t += COLUMN) {
                V sum = convolve(taps, bias, x + t), s = sigmoid(sum);
                store(g + t, load(g + t) * (s * (1.0f + sum * (1.0f - s))));
            }
            for (int t = lane; t < tokens * COLUMN; t += COLUMN) {
                V sum = {};
                UNROLL for (int j = 0; j < taps.count; ++j)
                    sum += taps.at(j) * load(g + t + (reach - j) * COLUMN);
                store(dx + t, sum);
            }
            float* sums = &plan.sums[plan.sums_at(task) + column.c0 + lane];
            for (int j = 0; j <= taps.count; ++j, sums += plan.padded) {
                V sum = {};
                for (int t = lane; t < tokens * COLUMN; t += COLUMN)
                    sum += j < taps.count ? load(g + t) * load(x + t + j * COLUMN) : load(g + t);
                store(sums, load(sums) + sum);
            }
        });
        column.write(dx, tokens, conv.dx, t0);
    });
}

}  // namespace INSTRUCTION_SET
}  // namespace
