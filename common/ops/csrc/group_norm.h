// What the group norm's entry points and its kernels share.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "sizes.h"

extern "C" {

// Rows of channels, (batch, rows, channels), dense. Must agree with _GroupNorm in norms.py.
//   y = (x - mean) rstd weight + bias, and ReLU of it where `relu` is
// mean and rstd = (var + eps)^-1/2 are (batch, groups), over all rows of a group's channels, which
// are next to each other. Forward writes mean, rstd and y; backward reads mean and rstd.
struct GroupNorm {
    int64_t batch, rows, channels, groups;
    int32_t threads, isa, relu, unused;
    double eps;
    const float *x, *weight, *bias;
    double *mean, *rstd;
    float* y;
    const float* dy;
    float *dx, *dweight, *dbias;
};
}

namespace {

// How a norm is divided: by its shape alone, so that results do not depend on the threads.
struct GroupNormPlan {
    static constexpr int64_t TASK = 1 << 15, BLOCK = 1 << 12;  // elements: a core's caches hold them

    const GroupNorm& norm;
    int64_t task_rows, tasks_per_item;
    std::vector<double> sums;    // [task][2][channels]
    std::vector<float> factors;  // [batch][4][channels]

    explicit GroupNormPlan(const GroupNorm& norm) : norm(norm) {
        require_positive({norm.batch, norm.rows, norm.channels, norm.groups});
        task_rows = std::max<int64_t>(1, TASK / norm.channels);
        tasks_per_item = ceil_div(norm.rows, task_rows);
        sums.resize(2 * tasks() * norm.channels), factors.resize(4 * norm.batch * norm.channels);
    }

    int64_t tasks() const { return norm.batch * tasks_per_item; }

    struct Rows {
        int64_t item, begin, count;  // begin: from the first row of the first item
    };
    Rows rows_of(int64_t task) const {
        const int64_t item = task / tasks_per_item, begin = task % tasks_per_item * task_rows;
        return {item, item * norm.rows + begin, std::min(task_rows, norm.rows - begin)};
    }
    int64_t block_rows() const { return std::max<int64_t>(1, BLOCK / norm.channels); }
    int64_t scratch_floats() const { return norm.relu ? block_rows() * norm.channels + 16 : 0; }

    // A task's sums.
    double* first(int64_t task) { return &sums[2 * task * norm.channels]; }
    double* second(int64_t task) { return first(task) + norm.channels; }

    // An item's factors of the last pass, by channel.
    float* factor(int64_t item, int which) { return &factors[(4 * item + which) * norm.channels]; }
    float* scale(int64_t item) { return factor(item, 0); }
    float* shift(int64_t item) { return factor(item, 1); }
    float* from_x(int64_t item) { return factor(item, 2); }
    float* offset(int64_t item) { return factor(item, 3); }

    // The sums of all of an item's tasks: [2][channels].
    std::vector<double> total(int64_t item) {
        std::vector<double> sum(2 * norm.channels);
        for (int64_t task = item * tasks_per_item; task < (item + 1) * tasks_per_item; ++task)
            for (int64_t i = 0; i < 2 * norm.channels; ++i) sum[i] += first(task)[i];
        return sum;
    }

    void find_mean(int64_t item) {
        const std::vector<double> sum = total(item);
        const int64_t width = norm.channels / norm.groups;
        const double count = double(norm.rows) * width;
        for (int64_t group = 0; group < norm.groups; ++group) {
            double first = 0, second = 0;
            for (int64_t c = group * width; c < (group + 1) * width; ++c)
                first += sum[c], second += sum[norm.channels + c];
            const double mean = first / count, variance = second / count - mean * mean;
            norm.mean[item * norm.groups + group] = mean;
            // Rounding may leave less than nothing of it; NaN stays NaN.
            norm.rstd[item * norm.groups + group] = 1 / std::sqrt((variance < 0 ? 0 : variance) + norm.eps);
        }
    }

    void find_scale(int64_t item) {
        const int64_t width = norm.channels / norm.groups;
        for (int64_t c = 0; c < norm.channels; ++c) {
            const int64_t group = item * norm.groups + c / width;
            const double factor = norm.rstd[group] * norm.weight[c];
            scale(item)[c] = float(factor);
            shift(item)[c] = float(norm.bias[c] - norm.mean[group] * factor);
        }
    }

    // Of the loss by x, with g the gradient before the ReLU, z = (x - mean) rstd, and m the mean
    // over a group: rstd (weight g - m(weight g) - z m(weight g z)).
    void find_gradient(int64_t item, std::vector<double>& dweight, std::vector<double>& dbias) {
        const std::vector<double> sum = total(item);
        const int64_t width = norm.channels / norm.groups;
        const double count = double(norm.rows) * width;
        for (int64_t i = 0; i < norm.groups; ++i) {
            const double mean = norm.mean[item * norm.groups + i], rstd = norm.rstd[item * norm.groups + i];
            double of_g = 0, of_gz = 0;
            for (int64_t c = i * width; c < (i + 1) * width; ++c) {
                const double g = sum[c], gz = (sum[norm.channels + c] - mean * g) * rstd;
                dweight[c] += gz, dbias[c] += g;
                of_g += norm.weight[c] * g, of_gz += norm.weight[c] * gz;
            }
            const double by_x = -rstd * rstd * of_gz / count;
            for (int64_t c = i * width; c < (i + 1) * width; ++c) {
                from_x(item)[c] = float(by_x);
                offset(item)[c] = float(-rstd * of_g / count - by_x * mean);
            }
        }
    }
};

}  // namespace
