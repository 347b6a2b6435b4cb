// What one task of the layer norm does. Compiled once per instruction set, see kernels-inl.h.

#include <cmath>
#include <cstdint>

#include "layer_norm.h"
#include "vector-inl.h"

namespace {
namespace INSTRUCTION_SET {

inline float sum_of(V x) {
    float total = 0;
    for (int lane = 0; lane < W; ++lane) total += x[lane];
    return total;
}

// sum_i f(y_i) over a row, W numbers at a time, then one at a time; f takes a V or a float.
template <class F>
inline float sum_over(const float* y, int64_t width, F f) {
    V sum = {};
    float rest = 0;
    int64_t i = 0;
    for (; i + W <= width; i += W) sum += f(load(y + i));
    for (; i < width; ++i) rest += f(y[i]);
    return sum_of(sum) + rest;
}

void layer_norm_task(const LayerNorm& norm, int64_t begin, int64_t end) {
    const int64_t width = norm.width, whole = width / W * W;
    for (int64_t row = begin; row < end; ++row) {
        const float* x = norm.x + row * width;
        float* y = norm.y + row * width;
        if (norm.skip) {
            const float *skip = norm.skip + row * width, scale = norm.scale ? *norm.scale : 1.0f;
            for (int64_t i = 0; i < whole; i += W) store(y + i, load(x + i) + scale * load(skip + i));
            for (int64_t i = whole; i < width; ++i) y[i] = x[i] + scale * skip[i];
            x = y;
        }
        const float mean = sum_over(x, width, [](auto v) { return v; }) / width;
        const float variance = sum_over(x, width, [=](auto v) { return (v - mean) * (v - mean); }) / width;
        const float factor = 1.0f / std::sqrt(variance + norm.eps);
        for (int64_t i = 0; i < whole; i += W)
            store(y + i, (load(x + i) - mean) * factor * load(norm.weight + i) + load(norm.bias + i));
        for (int64_t i = whole; i < width; ++i)
            y[i] = (x[i] - mean) * factor * norm.weight[i] + norm.bias[i];
    }
}

}  // namespace INSTRUCTION_SET
}  // namespace
