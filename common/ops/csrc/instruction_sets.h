// The one place that compiles the kernels for every instruction set, and the choice among these.
#pragma once

#include <algorithm>

#include "kernels.h"

// Without a choice, portable. It comes first: what all share is compiled with it, for any machine.
#include "kernels-inl.h"
#undef INSTRUCTION_SET
#undef W

#if defined(__x86_64__)

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define INSTRUCTION_SET avx2
#define W 8
#include "kernels-inl.h"
#undef INSTRUCTION_SET
#undef W
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f")
#endif
#define INSTRUCTION_SET avx512
#define W 16
#include "kernels-inl.h"
#undef INSTRUCTION_SET
#undef W
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // __x86_64__

namespace {

int best_isa() {
#if defined(__x86_64__)
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    return __builtin_cpu_supports("avx512f") ? 2 : 1;
#else
    return 0;
#endif
}

const Kernels& kernels_for(int highest) {
#if defined(__x86_64__)
    const int level = std::min(highest, best_isa());
    if (level >= 2) return avx512::kernels;
    if (level == 1) return avx2::kernels;
#endif
    (void)highest;
    return portable::kernels;
}

}  // namespace
