// What the layer norm's entry point and its kernel share.
#pragma once

#include <cstdint>

extern "C" {

// y = (r - mean(r)) / sqrt(var(r) + eps) weight + bias of each row r = x + scale skip; x, skip and
// y are dense, and y may be x. Must agree with _LayerNorm in layer_norm.py.
struct LayerNorm {
    int64_t rows, width;
    int32_t threads, isa;
    const float *x, *skip, *scale, *weight, *bias;  // skip: or null; scale: a number, or null for 1
    float* y;
    float eps;
};
}
