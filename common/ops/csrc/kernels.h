// What the entry points call of the code that is compiled once per instruction set.
#pragma once

#include <cstdint>

#include "arena.h"
#include "depthwise_conv.h"
#include "group_norm.h"
#include "layer_norm.h"
#include "mamba_mixer.h"
#include "selective_scan.h"

namespace {

struct Kernels {
    int width;  // W
    void (*forward)(const Plan&, const Task&, float* state, float* elapsed, Arena);
    void (*backward)(Plan&, const Task&, float* adjoint, float* elapsed, Arena);
    void (*mixer_forward)(MixerPlan&, int64_t task, Arena);
    void (*mixer_backward)(MixerPlan&, int64_t task, Arena);
    void (*layer_norm)(const LayerNorm&, int64_t begin, int64_t end);
    void (*group_norm_sums)(GroupNormPlan&, int64_t task);
    void (*group_norm_normalise)(GroupNormPlan&, int64_t task);
    void (*group_norm_gradient_sums)(GroupNormPlan&, int64_t task, Arena);
    void (*group_norm_differentiate)(GroupNormPlan&, int64_t task);
    void (*depthwise_conv)(DepthwiseConvPlan&, int64_t task, Arena);
    void (*depthwise_conv_gradient)(DepthwiseConvPlan&, int64_t task, Arena);
};

}  // namespace
