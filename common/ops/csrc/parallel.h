// Threads, and the tasks that they share out among themselves.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <system_error>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "arena.h"

namespace {

// A decaying state passes through subnormal numbers, on which some processors are 100 times slower.
class FlushSubnormals {
#if defined(__x86_64__)
    unsigned before = _mm_getcsr();

public:
    FlushSubnormals() { _mm_setcsr(before | 0x8040); }
    ~FlushSubnormals() { _mm_setcsr(before); }
#elif defined(__aarch64__)
    uint64_t before;

public:
    FlushSubnormals() {
        asm volatile("mrs %0, fpcr" : "=r"(before));
        asm volatile("msr fpcr, %0" : : "r"(before | (1ull << 24)));
    }
    ~FlushSubnormals() { asm volatile("msr fpcr, %0" : : "r"(before)); }
#endif
};

// Runs a function on so many threads at once, with the signature of OpenMP's GOMP_parallel. The
// caller's own team where it has one: threads that wait for its next task keep their cores busy.
using Team = void (*)(void (*)(void*), void*, unsigned, unsigned);
Team team = nullptr;

// f(index, arena) for every index, each thread with scratch memory of its own. Without a team
// threads are made anew: that takes microseconds, and a pool would not survive a fork. `team_size`
// is the caller's number of threads: a team that shrinks ends threads, to make them anew next time.
template <class F>
void parallel(int64_t threads, int64_t team_size, int64_t scratch, int64_t count, F f) {
    threads = std::max<int64_t>(1, std::min(threads, count));
    std::unique_ptr<float[]> memory(new float[threads * scratch + 16]);
    float* base = memory.get() + (16 - reinterpret_cast<uintptr_t>(memory.get()) / 4 % 16) % 16;
    std::atomic<int64_t> next{0}, arrived{0};
    auto work = [&] {
        const int64_t thread = arrived++;
        if (thread >= threads) return;
        FlushSubnormals flush;
        const Arena arena{base + thread * scratch};
        for (int64_t i; (i = next++) < count;) f(i, arena);
    };
    if (threads == 1) return work();
    if (team)
        return team([](void* w) { (*static_cast<decltype(work)*>(w))(); }, &work,
                    unsigned(team_size), 0);
    std::vector<std::thread> others;
    others.reserve(threads);
    try {
        for (int64_t i = 1; i < threads; ++i) others.emplace_back(work);
    } catch (const std::system_error&) {  // no more threads to be had: those there are do it all
    }
    work();
    for (std::thread& thread : others) thread.join();
}

// Until tasks that were taken earlier have counted so far: these run, so it comes. Whoever has lost
// its core to another process gets it back sooner from threads that yield theirs.
inline void await(const std::atomic<int64_t>& counter, int64_t value) {
    for (int i = 0; counter.load(std::memory_order_acquire) < value; ++i)
        if (i > 1000) std::this_thread::yield();
}

}  // namespace
