// What the causal convolution's entry points and its kernels share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "sizes.h"
#include "tiles.h"

extern "C" {

// y = SiLU(bias + sum_j weight_j x_{t - kernel + 1 + j}). Must agree with _Conv in
// mamba_mixer_cpp.py. x can be read from token -before, and x and dy up to length + after.
struct Conv {
    int64_t batch, channels, length, kernel, before, after;
    int32_t threads, isa;
    View x, weight, bias;  // weight: by channel c and tap l
    View y;
    View dy, dx, dweight, dbias;
};
}

namespace {

// How a convolution is divided, and what its tasks share.
struct ConvPlan {
    const Conv& conv;
    int64_t padded, tasks_per_item, tokens, threads;  // channels, padded; tokens of a task
    std::vector<float> weight, bias;                  // weight: [tap][padded]
    std::vector<float> sums;                          // backward: [task][tap, then bias][padded]

    explicit ConvPlan(const Conv& conv) : conv(conv), padded(ceil_div(conv.channels, PAD) * PAD) {
        require_positive({conv.batch, conv.channels, conv.length, conv.kernel});
        const int64_t tiles = ceil_div(conv.length, TILE), taps = conv.kernel;
        const double work = double(conv.batch) * conv.length * padded;
        threads = std::max<int64_t>(1, std::min<int64_t>(conv.threads, int64_t(work / 3e4)));
        tokens = ceil_div(tiles, std::min(tiles, 4 * threads)) * TILE;
        tasks_per_item = ceil_div(conv.length, tokens);
        weight.resize(taps * padded), bias.resize(padded);
        for (int64_t d = 0; d < conv.channels; ++d) {
            bias[d] = conv.bias.data[d * conv.bias.c];
            for (int64_t j = 0; j < taps; ++j) weight[j * padded + d] = conv.weight.at(0, d)[j * conv.weight.l];
        }
    }
    int64_t tasks() const { return conv.batch * tasks_per_item; }
    int64_t sums_at(int64_t task) const { return task * (conv.kernel + 1) * padded; }
    int64_t scratch_floats() const { return 3 * (TILE + 2 * conv.kernel) * COLUMN; }
};

}  // namespace
