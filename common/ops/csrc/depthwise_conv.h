// What the depthwise convolution's entry points and its kernels share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "sizes.h"

extern "C" {

// y = sum over taps of weight x, zeros around x: maps (planes, depth, height, width), dense, a plane
// being an item's channel; weight (channels, kernel, kernel, kernel), or (channels, 1, kernel,
// kernel) where depth is 1. Sums are double. The second entry point writes the gradient of the
// weight for that of y, `y`. Must agree with _DepthwiseConv in depthwise_conv.py.
struct DepthwiseConv {
    int64_t planes, channels, depth, height, width, kernel_depth, kernel;
    int32_t threads, isa;
    const float* x;
    float *weight, *y;
};
}

namespace {

struct DepthwiseConvPlan {
    const DepthwiseConv& conv;
    int64_t rows, task_rows, tasks_per_plane, taps;
    std::vector<double> sums;  // of the weight's gradient: [task][tap]

    explicit DepthwiseConvPlan(const DepthwiseConv& conv) : conv(conv) {
        require_positive({conv.planes, conv.channels, conv.depth, conv.height, conv.width, conv.kernel});
        rows = conv.depth * conv.height;
        task_rows = std::max<int64_t>(1, (1 << 14) / conv.width);
        tasks_per_plane = ceil_div(rows, task_rows);
        taps = conv.kernel_depth * conv.kernel * conv.kernel;
    }

    int64_t tasks() const { return conv.planes * tasks_per_plane; }

    // f(row, other, tap) for each of the task's rows of y, each row of x that it sees, and the first
    // of the taps along that row. A row is given by its first element.
    template <class F>
    void each_row(int64_t task, F f) const {
        const int64_t plane = task / tasks_per_plane, begin = task % tasks_per_plane * task_rows;
        const int64_t reach_depth = conv.kernel_depth / 2, reach = conv.kernel / 2;
        for (int64_t row = begin; row < std::min(rows, begin + task_rows); ++row) {
            const int64_t d = row / conv.height, h = row % conv.height;
            for (int64_t i = 0; i < conv.kernel_depth; ++i)
                for (int64_t j = 0; j < conv.kernel; ++j) {
                    const int64_t from_d = d + i - reach_depth, from_h = h + j - reach;
                    if (from_d < 0 || from_d >= conv.depth || from_h < 0 || from_h >= conv.height) continue;
                    f((plane * rows + row) * conv.width,
                      (plane * rows + from_d * conv.height + from_h) * conv.width,
                      (i * conv.kernel + j) * conv.kernel);
                }
        }
    }
    float* weight(int64_t task) const {
        return conv.weight + task / tasks_per_plane % conv.channels * taps;
    }
};

}  // namespace
