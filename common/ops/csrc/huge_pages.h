// Fresh memory at the price of few page faults.
#pragma once

#include <cstdint>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

// Asks for huge pages under memory that is about to be written for the first time: page faults of
// a large fresh output cost more than the scan that fills it.
void expect_writes(float* data, int64_t floats) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t page = 1 << 21, from = reinterpret_cast<uintptr_t>(data);
    const uintptr_t first = (from + page - 1) / page * page;
    const uintptr_t end = (from + 4 * floats) / page * page;
    if (data && first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#else
    (void)data, (void)floats;
#endif
}

}  // namespace
