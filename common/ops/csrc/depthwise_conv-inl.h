// What one task of the depthwise convolution does. Compiled once per instruction set, see
// kernels-inl.h.

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "arena.h"
#include "depthwise_conv.h"
#include "vector-inl.h"

namespace {
namespace INSTRUCTION_SET {

// f(w, n) for the places w of a row that see x at w + shift, HALF at a time (n is HALF), then one.
template <class F>
inline void along_row(int64_t width, int64_t shift, F f) {
    int64_t w = std::max<int64_t>(0, -shift);
    const int64_t end = width - std::max<int64_t>(0, shift);
    for (; w + HALF <= end; w += HALF) f(w, std::integral_constant<int, HALF>());
    for (; w < end; ++w) f(w, std::integral_constant<int, 1>());
}

void depthwise_conv_task(DepthwiseConvPlan& plan, int64_t task, Arena arena) {
    const DepthwiseConv& conv = plan.conv;
    const float* weight = plan.weight(task);
    double* sum = reinterpret_cast<double*>(arena.take(2 * conv.width));
    int64_t current = -1;
    auto finish = [&] {
        if (current >= 0)
            for (int64_t w = 0; w < conv.width; ++w) conv.y[current + w] = float(sum[w]);
    };
    plan.each_row(task, [&](int64_t row, int64_t other, int64_t tap) {
        if (row != current) finish(), current = row, std::fill(sum, sum + conv.width, 0.0);
        for (int64_t k = 0; k < conv.kernel; ++k) {
            const double factor = weight[tap + k];
            const float* x = conv.x + other + k - conv.kernel / 2;
            along_row(conv.width, k - conv.kernel / 2, [&](int64_t w, auto n) {
                if constexpr (n == 1) sum[w] += factor * x[w];
                else add_to(sum + w, factor * widen(x + w));
            });
        }
    });
    finish();
}

void depthwise_conv_gradient_task(DepthwiseConvPlan& plan, int64_t task, Arena) {
    const DepthwiseConv& conv = plan.conv;
    double* sums = &plan.sums[task * plan.taps];
    plan.each_row(task, [&](int64_t row, int64_t other, int64_t tap) {
        const float* dy = conv.y + row;
        for (int64_t k = 0; k < conv.kernel; ++k) {
            const float* x = conv.x + other + k - conv.kernel / 2;
            Wide sum = {};
            double rest = 0;
            along_row(conv.width, k - conv.kernel / 2, [&](int64_t w, auto n) {
                if constexpr (n == 1) rest += double(dy[w]) * x[w];
                else sum += widen(dy + w) * widen(x + w);
            });
            for (int lane = 0; lane < HALF; ++lane) rest += sum[lane];
            sums[tap + k] += rest;
        }
    });
}

}  // namespace INSTRUCTION_SET
}  // namespace
