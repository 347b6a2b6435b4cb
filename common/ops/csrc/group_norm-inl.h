// What one task of the group norm does. Compiled once per instruction set, see kernels-inl.h.
//
// Sums are double: a volume has millions of sites, and the error of a plain float32 sum grows with
// their number. Widening is free, since the sites come from memory slower than they are added.

#include <algorithm>
#include <cstdint>

#include "arena.h"
#include "group_norm.h"
#include "vector-inl.h"

namespace {
namespace INSTRUCTION_SET {

// x scale + shift: what the ReLU, if any, is applied to.
inline V normalised(V x, const float* scale, const float* shift) { return x * load(scale) + load(shift); }
inline float normalised(float x, const float* scale, const float* shift) { return x * *scale + *shift; }

// Adds the sums over rows of a and of a b, for the first K times HALF channels.
template <int K>
void add_sums_of(const float* a, const float* b, int64_t rows, int64_t channels, double* sum_a,
                 double* sum_ab) {
    Wide first[K] = {}, second[K] = {};
    for (int64_t row = 0; row < rows; ++row, a += channels, b += channels)
        UNROLL for (int k = 0; k < K; ++k) {
            const Wide x = widen(a + k * HALF);
            first[k] += x, second[k] += x * widen(b + k * HALF);
        }
    UNROLL for (int k = 0; k < K; ++k) add_to(sum_a + k * HALF, first[k]), add_to(sum_ab + k * HALF, second[k]);
}

// The same for all channels.
void add_sums(const float* a, const float* b, int64_t rows, int64_t channels, double* sum_a, double* sum_ab) {
    constexpr int MOST = REGISTERS / 4;
    int64_t c = 0;
    for (; c + MOST * HALF <= channels; c += MOST * HALF)
        add_sums_of<MOST>(a + c, b + c, rows, channels, sum_a + c, sum_ab + c);
    for (; c + HALF <= channels; c += HALF)
        add_sums_of<1>(a + c, b + c, rows, channels, sum_a + c, sum_ab + c);
    for (; c < channels; ++c)
        for (int64_t row = 0; row < rows; ++row) {
            const double x = a[row * channels + c];
            sum_a[c] += x, sum_ab[c] += x * b[row * channels + c];
        }
}

// The sums of x and x^2, by channel.
void group_norm_sums(GroupNormPlan& plan, int64_t task) {
    const GroupNorm& norm = plan.norm;
    const GroupNormPlan::Rows rows = plan.rows_of(task);
    const float* x = norm.x + rows.begin * norm.channels;
    add_sums(x, x, rows.count, norm.channels, plan.first(task), plan.second(task));
}

template <bool RELU>
void normalise(GroupNormPlan& plan, int64_t task) {
    const GroupNorm& norm = plan.norm;
    const GroupNormPlan::Rows rows = plan.rows_of(task);
    const int64_t channels = norm.channels, whole = channels / W * W;
    const float *scale = plan.scale(rows.item), *shift = plan.shift(rows.item);
    for (int64_t row = rows.begin; row < rows.begin + rows.count; ++row) {
        const float* x = norm.x + row * channels;
        float* y = norm.y + row * channels;
        for (int64_t c = 0; c < whole; c += W) {
            const V v = normalised(load(x + c), scale + c, shift + c);
            store(y + c, RELU ? at_least(0.0f, v) : v);
        }
        for (int64_t c = whole; c < channels; ++c) {
            const float v = normalised(x[c], scale + c, shift + c);
            y[c] = RELU && v < 0.0f ? 0.0f : v;
        }
    }
}

void group_norm_normalise(GroupNormPlan& plan, int64_t task) {
    plan.norm.relu ? normalise<true>(plan, task) : normalise<false>(plan, task);
}

// The gradient before the ReLU: dy where that let x through. NaN passes, as in the forward pass.
inline V before_relu(V dy, V v) { return v <= 0.0f ? splat(0.0f) : dy; }

// The sums of g and g x by channel, g the gradient before the ReLU.
void group_norm_gradient_sums(GroupNormPlan& plan, int64_t task, Arena arena) {
    const GroupNorm& norm = plan.norm;
    const GroupNormPlan::Rows rows = plan.rows_of(task);
    const int64_t channels = norm.channels, whole = channels / W * W;
    const float *x = norm.x + rows.begin * channels, *dy = norm.dy + rows.begin * channels;
    double *first = plan.first(task), *second = plan.second(task);
    if (!norm.relu) return add_sums(dy, x, rows.count, channels, first, second);
    const float *scale = plan.scale(rows.item), *shift = plan.shift(rows.item);
    const int64_t block = plan.block_rows();
    float* g = arena.take(block * channels);
    for (int64_t begin = 0; begin < rows.count; begin += block) {
        const int64_t count = std::min(block, rows.count - begin);
        for (int64_t row = 0; row < count; ++row) {
            const float *xr = x + (begin + row) * channels, *dr = dy + (begin + row) * channels;
            float* gr = g + row * channels;
            for (int64_t c = 0; c < whole; c += W)
                store(gr + c, before_relu(load(dr + c), normalised(load(xr + c), scale + c, shift + c)));
            for (int64_t c = whole; c < channels; ++c)
                gr[c] = normalised(xr[c], scale + c, shift + c) <= 0.0f ? 0.0f : dr[c];
        }
        add_sums(g, x + begin * channels, count, channels, first, second);
    }
}

// dx = scale g + from_x x + offset, g as above
template <bool RELU>
void differentiate(GroupNormPlan& plan, int64_t task) {
    const GroupNorm& norm = plan.norm;
    const GroupNormPlan::Rows rows = plan.rows_of(task);
    const int64_t channels = norm.channels, whole = channels / W * W;
    const float *scale = plan.scale(rows.item), *shift = plan.shift(rows.item);
    const float *from_x = plan.from_x(rows.item), *offset = plan.offset(rows.item);
    for (int64_t row = rows.begin; row < rows.begin + rows.count; ++row) {
        const float *x = norm.x + row * channels, *dy = norm.dy + row * channels;
        float* dx = norm.dx + row * channels;
        for (int64_t c = 0; c < whole; c += W) {
            const V v = load(x + c);
            V g = load(dy + c);
            if (RELU) g = before_relu(g, normalised(v, scale + c, shift + c));
            store(dx + c, g * load(scale + c) + (v * load(from_x + c) + load(offset + c)));
        }
        for (int64_t c = whole; c < channels; ++c) {
            const float g = RELU && normalised(x[c], scale + c, shift + c) <= 0.0f ? 0.0f : dy[c];
            dx[c] = g * scale[c] + (x[c] * from_x[c] + offset[c]);
        }
    }
}

void group_norm_differentiate(GroupNormPlan& plan, int64_t task) {
    plan.norm.relu ? differentiate<true>(plan, task) : differentiate<false>(plan, task);
}

}  // namespace INSTRUCTION_SET
}  // namespace
