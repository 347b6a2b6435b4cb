// The scratch memory of a task.
#pragma once

#include <cstdint>

#include "sizes.h"

namespace {

// Hands out pieces of one allocation; a copy starts again from where the original stood.
struct Arena {
    float* next;
    float* take(int64_t floats) {
        float* piece = next;
        next += ceil_div(floats, 16) * 16;
        return piece;
    }
};

}  // namespace
