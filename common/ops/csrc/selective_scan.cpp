// The selective scan on a CPU, and the causal convolution before it, forward and backward, float32:
// entry points, threads, and the choice of instruction set. The arithmetic is in
// selective_scan_kernels.h and causal_conv1d_kernels.h. Beside them stand layer and group norm
// and a depthwise convolution.
//
// No torch, no Python, no OpenMP: tensors come as pointers with strides. Work is divided into tasks
// of (batch, group, part of the group's channels, chunk of tokens). Which thread runs a task never
// matters to the result, and the division depends on shape and thread count alone, so equal calls
// give equal bits.
//
// Tokens lie on a grid, one row of it for a sequence, and are walked in an order (see Rows), so
// that a map's orders are scans of the same memory. They run one after another; the first writes y
// and du, the others add to them.
//
// With more than one chunk, tasks first find the state that their chunk adds to a zero state, then
// a short loop carries states over the chunks by exp(A sum(delta)), then every chunk starts from
// its true state. Backward alike, for the adjoint, from the last chunk to the first.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <new>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

extern "C" {

// Strides in elements, by batch, order, channel (or group), row and column of the grid, and state;
// data may be null for an optional argument. Must agree with _View and _Scan in cpp.py.
struct View {
    float* data;
    int64_t b, k, c, h, l, n;
    float* at(int64_t batch, int64_t channel) const { return data + batch * b + channel * c; }
};

struct Scan {
    int64_t batch, channels, groups, height, width, states;
    int32_t orders;  // 1, or 4 with arguments of their own
    int32_t order;   // the one of these that is scanned
    int32_t softplus, threads;
    int32_t isa;  // the highest that may be used: 0 portable, 1 AVX2, 2 AVX-512
    int32_t unused;
    View u, delta, A, B, C, D, z, bias;
    View y, last;  // backward writes y again, unless null
    View saved;  // forward writes, backward reads, see Plan::saved_at; not there: not wanted
    View dy, dlast;
    View du, ddelta, dA, dB, dC, dD, dz, dbias;  // dB and dC: an order's are contiguous
    View first, dfirst;  // the state before the first token, null for 0; its gradient
    int64_t length() const { return height * width; }
};

// y = SiLU(bias + sum_j weight_j x_{t - kernel + 1 + j}). Must agree with _Conv in
// mamba_mixer_cpp.py. x can be read from token -before, and x and dy up to length + after.
struct Conv {
    int64_t batch, channels, length, kernel, before, after;
    int32_t threads, isa;
    View x, weight, bias;  // weight: by channel c and tap l
    View y;
    View dy, dx, dweight, dbias;
};

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

#include "depthwise_conv.h"
#include "group_norm.h"
#include "sizes.h"

#ifndef SOURCE_HASH
#define SOURCE_HASH ""
#endif

namespace {

constexpr int64_t TILE = 64;    // tokens; also the distance of saved states
constexpr int64_t COLUMN = 64;  // channels
constexpr int64_t PAD = 16;     // a group's channels are padded to a multiple, for every W
constexpr int64_t LANES_AHEAD = 512;  // channels times tokens that are fetched before their turn
constexpr int64_t MOST_AHEAD = 16;    // tokens
constexpr float LOG2E = 1.44269504f;

// Where the tokens of a tile are in a tensor, from its first element at the same batch and channel.
// Orders: 0 row by row, 1 column by column, 2 and 3 the same from the last token to the first.
struct Rows {
    int64_t at[TILE + MOST_AHEAD];
    bool adjacent;  // each right after the one before

    Rows(const Scan& scan, const View& view, int64_t t0, int64_t tokens) {
        int64_t lines = scan.height, line = scan.width, step = view.l, next_line = view.h;
        if (scan.order % 2) std::swap(lines, line), std::swap(step, next_line);
        int64_t i = t0 % line, offset = t0 / line * next_line + i * step;
        if (scan.order >= 2) {
            offset = (lines - 1) * next_line + (line - 1) * step - offset;
            step = -step, next_line = -next_line;
        }
        for (int64_t t = 0; t < tokens; ++t) {
            at[t] = offset;
            offset += step;
            if (++i == line) i = 0, offset += next_line - line * step;
        }
        adjacent = true;
        for (int64_t t = 1; t < tokens; ++t) adjacent &= at[t] - at[t - 1] == 1;
    }
};

// The same for tokens that lie evenly.
struct EvenRows {
    struct {
        int64_t step;
        int64_t operator[](int64_t token) const { return token * step; }
    } at;
    bool adjacent;
    explicit EvenRows(int64_t step) : at{step}, adjacent(step == 1) {}
};

// Rows of a tile in scratch memory.
struct ScratchRows {
    int64_t at[TILE];
    constexpr ScratchRows() : at() {
        for (int64_t t = 0; t < TILE; ++t) at[t] = t * COLUMN;
    }
};
constexpr ScratchRows SCRATCH;

struct Task {
    int64_t batch, group, part, chunk;
    int64_t c0, c1;  // channels within the group, c1 possibly in the padding
    int64_t t0, t1;  // tokens
};

// Hands out pieces of one allocation; a copy starts again from where the original stood.
struct Arena {
    float* next;
    float* take(int64_t floats) {
        float* piece = next;
        next += ceil_div(floats, 16) * 16;
        return piece;
    }
};

// How a call is divided, and what its tasks share.
struct Plan {
    const Scan& scan;
    int width;  // W of the instruction set
    int64_t group_channels, group_padded, padded;  // channels of a group, padded, of all groups
    int64_t parts, chunks, threads;
    std::vector<float> A, A2, D, bias;  // A: [padded / W][n][W]; A2 = A log2(e)
    std::vector<Task> tasks;
    std::vector<float> carried;  // state before each chunk, or adjoint after it
    std::vector<float> elapsed;  // sum of delta over each chunk
    // Backward: sums by (batch, chunk), and by part after the first, which has the output itself.
    std::vector<float> sums_A, sums_D, sums_bias;
    std::unique_ptr<float[]> sums_B, sums_C;

    Plan(const Scan& scan, int width) : scan(scan), width(width) {
        require_positive({scan.batch, scan.channels, scan.groups, scan.height, scan.width, scan.states});
        group_channels = scan.channels / scan.groups;
        group_padded = ceil_div(group_channels, PAD) * PAD;
        padded = scan.groups * group_padded;
        divide();
        const int64_t n = scan.states;
        A.resize(padded * n), A2.resize(padded * n), D.resize(padded), bias.resize(padded);
        carried.resize(scan.batch * chunks * padded * n), elapsed.resize(carried.size() / n);
        for (int64_t d = 0; d < scan.channels; ++d) {
            const int64_t p = with_padding(d);
            for (int64_t s = 0; s < n; ++s) {
                const float a = scan.A.data[d * scan.A.c + s * scan.A.n];
                A[state_at(p, s)] = a;
                // NAN's low bits are 0: exp2 keeps it.
                A2[state_at(p, s)] = std::isnan(a) ? NAN : float(a * 1.4426950408889634);
            }
            if (scan.D.data) D[p] = scan.D.data[d * scan.D.c];
            if (scan.bias.data) bias[p] = scan.bias.data[d * scan.bias.c];
        }
    }

    // The division with the shortest longest thread. Chunks cost a second pass over the states.
    void divide() {
        const int64_t blocks = group_padded / PAD, tiles = ceil_div(scan.length(), TILE);
        const int64_t groups = scan.batch * scan.groups;
        const double states =
            double(groups) * scan.orders * group_padded * scan.length() * (scan.states + 3);
        threads = std::max<int64_t>(1, std::min<int64_t>(scan.threads, int64_t(states / 1e5)));
        parts = chunks = 1;
        double best = 1e300;
        for (int64_t k = 1; k <= std::min(tiles, 2 * threads); k = k < 4 ? k + 1 : k + k / 2)
            for (int64_t p = 1; p <= std::min(blocks, 2 * threads); ++p) {
                double cost = double(ceil_div(groups * p * k, threads)) * ceil_div(blocks, p) *
                              ceil_div(tiles, k) * (k > 1 ? 1.7 : 1.0);
                if (cost < 0.97 * best) best = cost, parts = p, chunks = k;
            }
        const int64_t channels = ceil_div(blocks, parts) * PAD, tokens = ceil_div(tiles, chunks) * TILE;
        parts = ceil_div(group_padded, channels), chunks = ceil_div(scan.length(), tokens);
        for (int64_t b = 0; b < scan.batch; ++b)
            for (int64_t g = 0; g < scan.groups; ++g)
                for (int64_t p = 0; p < parts; ++p)
                    for (int64_t k = 0; k < chunks; ++k)
                        tasks.push_back({b, g, p, k, p * channels,
                                         std::min(group_padded, (p + 1) * channels), k * tokens,
                                         std::min(scan.length(), (k + 1) * tokens)});
        threads = std::min<int64_t>(threads, tasks.size());
    }

    int64_t map_size() const { return scan.batch * scan.groups * scan.length() * scan.states; }

    void make_sums() {
        const int64_t rows = scan.batch * chunks * padded;
        sums_A.assign(rows * scan.states, 0), sums_D.assign(rows, 0), sums_bias.assign(rows, 0);
        sums_B.reset(new float[(parts - 1) * map_size()]);
        sums_C.reset(new float[(parts - 1) * map_size()]);
    }

    int64_t with_padding(int64_t channel) const {
        return channel / group_channels * group_padded + channel % group_channels;
    }
    int64_t slot(int64_t batch, int64_t chunk) const { return (batch * chunks + chunk) * padded; }
    float* carried_at(int64_t batch, int64_t chunk) {
        return &carried[slot(batch, chunk) * scan.states];
    }
    int64_t state_at(int64_t p, int64_t s) const {
        return (p / width * scan.states + s) * width + p % width;
    }
    // [batch][tile][padded / W][n][W]: the state before each tile
    int64_t saved_at(int64_t batch, int64_t t0, int64_t p) const {
        return ((batch * ceil_div(scan.length(), TILE) + t0 / TILE) * padded + p) * scan.states;
    }
    float* dA(const Task& t) { return &sums_A[slot(t.batch, t.chunk) * scan.states]; }
    float* dD(const Task& t) { return &sums_D[slot(t.batch, t.chunk)]; }
    float* dbias(const Task& t) { return &sums_bias[slot(t.batch, t.chunk)]; }
    // Laid out as dB and dC are.
    float* dB(const Task& t) {
        return (t.part ? &sums_B[(t.part - 1) * map_size()] : scan.dB.data) +
               (scan.dB.at(t.batch, t.group) - scan.dB.data);
    }
    float* dC(const Task& t) {
        return (t.part ? &sums_C[(t.part - 1) * map_size()] : scan.dC.data) +
               (scan.dC.at(t.batch, t.group) - scan.dC.data);
    }

    int64_t scratch_floats() const {  // the most that a task takes from its arena
        return 4 * TILE * (scan.states + PAD) + 2 * (TILE + 1) * 16 * 16 + 14 * TILE * COLUMN;
    }
};

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

// from (row by row, 4 x 4) to its transpose
inline void transpose_4x4(const float* from, int64_t from_row, float* to, int64_t to_row) {
#if defined(__x86_64__)
    __m128 a = _mm_loadu_ps(from), b = _mm_loadu_ps(from + from_row);
    __m128 c = _mm_loadu_ps(from + 2 * from_row), d = _mm_loadu_ps(from + 3 * from_row);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(to, a), _mm_storeu_ps(to + to_row, b);
    _mm_storeu_ps(to + 2 * to_row, c), _mm_storeu_ps(to + 3 * to_row, d);
#else
    for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) to[j * to_row + i] = from[i * from_row + j];
#endif
}

#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

namespace portable {
#define W 4
#if defined(__aarch64__)
#define MAXN 16
#else
#define MAXN 8
#endif
#include "selective_scan_kernels.h"
#include "causal_conv1d_kernels.h"
#include "layer_norm_kernels.h"
#include "group_norm_kernels.h"
#include "depthwise_conv_kernels.h"
#undef W
#undef MAXN
}  // namespace portable

#if defined(__x86_64__)

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
namespace avx2 {
#define W 8
#define MAXN 8
#include "selective_scan_kernels.h"
#include "causal_conv1d_kernels.h"
#include "layer_norm_kernels.h"
#include "group_norm_kernels.h"
#include "depthwise_conv_kernels.h"
#undef W
#undef MAXN
}  // namespace avx2
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f")
#endif
namespace avx512 {
#define W 16
#define MAXN 16
#include "selective_scan_kernels.h"
#include "causal_conv1d_kernels.h"
#include "layer_norm_kernels.h"
#include "group_norm_kernels.h"
#include "depthwise_conv_kernels.h"
#undef W
#undef MAXN
}  // namespace avx512
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // __x86_64__

struct Isa {
    int width;
    decltype(&portable::forward_task) forward;
    decltype(&portable::backward_task) backward;
    decltype(&portable::conv_forward_task) conv_forward;
    decltype(&portable::conv_backward_task) conv_backward;
    decltype(&portable::layer_norm_task) layer_norm;
    decltype(&portable::group_norm_sums) group_norm_sums, group_norm_normalise;
    decltype(&portable::group_norm_gradient_sums) group_norm_gradient_sums;
    decltype(&portable::group_norm_differentiate) group_norm_differentiate;
    decltype(&portable::depthwise_conv_task) depthwise_conv, depthwise_conv_gradient;
};

int best_isa() {
#if defined(__x86_64__)
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    return __builtin_cpu_supports("avx512f") ? 2 : 1;
#else
    return 0;
#endif
}

#define ISA(width, name)                                                                              \
    {width, name::forward_task, name::backward_task, name::conv_forward_task, name::conv_backward_task, \
     name::layer_norm_task, name::group_norm_sums, name::group_norm_normalise,                       \
     name::group_norm_gradient_sums, name::group_norm_differentiate,                               \
     name::depthwise_conv_task, name::depthwise_conv_gradient_task}

Isa choose_isa(int highest) {
#if defined(__x86_64__)
    const int level = std::min(highest, best_isa());
    if (level >= 2) return ISA(16, avx512);
    if (level == 1) return ISA(8, avx2);
#endif
    (void)highest;
    return ISA(4, portable);
}

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

template <class F>
void parallel(const Plan& plan, int64_t count, F f) {
    parallel(plan.threads, plan.scan.threads, plan.scratch_floats(), count, f);
}

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

// to += exp(A elapsed) from, over all channels and states
void carry(const Plan& plan, const float* elapsed, const float* from, float* to) {
    const int64_t n = plan.scan.states, w = plan.width;
    for (int64_t i = 0; i < plan.padded * n; ++i)
        to[i] += std::exp(plan.A[i] * elapsed[i / (n * w) * w + i % w]) * from[i];
}

// between a tensor (b, d, n), where there is one, and what is carried to or from a chunk
void copy_states(Plan& plan, int64_t chunk, const View& view, bool from_view) {
    if (!view.data) return;
    const Scan& scan = plan.scan;
    for (int64_t b = 0; b < scan.batch; ++b)
        for (int64_t d = 0; d < scan.channels; ++d)
            for (int64_t s = 0; s < scan.states; ++s) {
                float& theirs = view.at(b, d)[s * view.n];
                float& ours =
                    plan.carried_at(b, chunk)[plan.state_at(plan.with_padding(d), s)];
                from_view ? ours = theirs : theirs = ours;
            }
}

// The gradients that several tasks have parts of.
void add_up(Plan& plan) {
    const Scan& scan = plan.scan;
    const int64_t n = scan.states, slice = 1 << 14, maps = plan.map_size();
    if (plan.parts > 1)
        parallel(plan, ceil_div(maps, slice), [&](int64_t i, Arena) {
            const int64_t end = std::min(maps, (i + 1) * slice);
            for (int64_t p = 0; p + 1 < plan.parts; ++p)
                for (int64_t j = i * slice; j < end; ++j) {
                    scan.dB.data[j] += plan.sums_B[p * maps + j];
                    scan.dC.data[j] += plan.sums_C[p * maps + j];
                }
        });
    for (int64_t d = 0; d < scan.channels; ++d) {
        const int64_t p = plan.with_padding(d), slots = scan.batch * plan.chunks;
        auto sum = [&](const std::vector<float>& x, int64_t stride, int64_t at) {
            float total = 0;
            for (int64_t i = 0; i < slots; ++i) total += x[i * stride + at];
            return total;
        };
        for (int64_t s = 0; s < n; ++s)
            scan.dA.data[d * scan.dA.c + s * scan.dA.n] =
                sum(plan.sums_A, plan.padded * n, plan.state_at(p, s));
        if (scan.dD.data) scan.dD.data[d * scan.dD.c] = sum(plan.sums_D, plan.padded, p);
        if (scan.dbias.data) scan.dbias.data[d * scan.dbias.c] = sum(plan.sums_bias, plan.padded, p);
    }
}

// The scan of each order, its arguments at their place.
std::vector<Scan> in_orders(const Scan& call) {
    require_positive({call.orders});
    std::vector<Scan> scans(call.orders, call);
    for (int32_t k = 0; k < call.orders; ++k) {
        Scan& scan = scans[k];
        scan.order = k;
        for (View* view : {&scan.delta, &scan.A, &scan.B, &scan.C, &scan.D, &scan.bias, &scan.saved,
                           &scan.ddelta, &scan.dA, &scan.dB, &scan.dC, &scan.dD, &scan.dbias})
            if (view->data) view->data += k * view->k;
    }
    return scans;
}

std::vector<Plan> make_plans(const std::vector<Scan>& scans, int width) {
    std::vector<Plan> plans;
    plans.reserve(scans.size());
    for (const Scan& scan : scans) plans.emplace_back(scan, width);
    return plans;
}

// f(plan, task, arena) for every task of every order, in any succession.
template <class F>
void all_at_once(std::vector<Plan>& plans, F f) {
    const int64_t tasks = plans[0].tasks.size();
    parallel(plans[0], plans.size() * tasks, [&](int64_t i, Arena arena) {
        f(plans[i / tasks], plans[i / tasks].tasks[i % tasks], arena);
    });
}

// The same with one order after another at every token: within a task that has all tokens of its
// channels, else with all tasks of an order before those of the next.
template <class F>
void in_turn(std::vector<Plan>& plans, F f) {
    const int64_t tasks = plans[0].tasks.size();
    if (plans[0].chunks == 1) {
        parallel(plans[0], tasks, [&](int64_t i, Arena arena) {
            for (Plan& plan : plans) f(plan, plan.tasks[i], arena);
        });
        return;
    }
    for (Plan& plan : plans)
        parallel(plan, tasks, [&](int64_t i, Arena arena) { f(plan, plan.tasks[i], arena); });
}

void forward(const Scan& call) {
    const Isa isa = choose_isa(call.isa);
    const std::vector<Scan> scans = in_orders(call);
    std::vector<Plan> plans = make_plans(scans, isa.width);
    const int64_t size = call.batch * call.channels * call.length();
    expect_writes(call.y.data, size);
    for (const Plan& plan : plans)
        expect_writes(plan.scan.saved.data, plan.saved_at(call.batch, 0, 0));
    copy_states(plans[0], 0, call.first, true);
    if (plans[0].chunks > 1) {
        all_at_once(plans, [&](Plan& plan, const Task& task, Arena arena) {
            if (task.chunk + 1 < plan.chunks)
                isa.forward(plan, task, plan.carried_at(task.batch, task.chunk + 1),
                            &plan.elapsed[plan.slot(task.batch, task.chunk)], arena);
        });
        for (Plan& plan : plans)
            for (int64_t b = 0; b < call.batch; ++b)
                for (int64_t k = 0; k + 1 < plan.chunks; ++k)
                    carry(plan, &plan.elapsed[plan.slot(b, k)], plan.carried_at(b, k),
                          plan.carried_at(b, k + 1));
    }
    in_turn(plans, [&](Plan& plan, const Task& task, Arena arena) {
        isa.forward(plan, task, plan.carried_at(task.batch, task.chunk), nullptr, arena);
    });
    copy_states(plans[0], plans[0].chunks - 1, call.last, false);
}

void backward(const Scan& call) {
    const Isa isa = choose_isa(call.isa);
    const std::vector<Scan> scans = in_orders(call);
    std::vector<Plan> plans = make_plans(scans, isa.width);
    const int64_t size = call.batch * call.channels * call.length();
    for (float* x : {call.du.data, call.dz.data}) expect_writes(x, size);
    for (Plan& plan : plans) {
        plan.make_sums();
        expect_writes(plan.scan.ddelta.data, size);
        for (float* x : {plan.scan.dB.data, plan.scan.dC.data}) expect_writes(x, plan.map_size());
        if (plan.parts > 1)
            for (float* x : {plan.sums_B.get(), plan.sums_C.get()})
                expect_writes(x, (plan.parts - 1) * plan.map_size());
    }
    copy_states(plans[0], plans[0].chunks - 1, call.dlast, true);
    if (plans[0].chunks > 1) {
        all_at_once(plans, [&](Plan& plan, const Task& task, Arena arena) {
            if (task.chunk > 0)
                isa.backward(plan, task, plan.carried_at(task.batch, task.chunk - 1),
                             &plan.elapsed[plan.slot(task.batch, task.chunk)], arena);
        });
        for (Plan& plan : plans)
            for (int64_t b = 0; b < call.batch; ++b)
                for (int64_t k = plan.chunks - 1; k > 0; --k)
                    carry(plan, &plan.elapsed[plan.slot(b, k)], plan.carried_at(b, k),
                          plan.carried_at(b, k - 1));
    }
    in_turn(plans, [&](Plan& plan, const Task& task, Arena arena) {
        isa.backward(plan, task, plan.carried_at(task.batch, task.chunk), nullptr, arena);
    });
    copy_states(plans[0], 0, call.dfirst, false);
    for (Plan& plan : plans) add_up(plan);
}

void conv_forward(const Conv& conv) {
    const Isa isa = choose_isa(conv.isa);
    const ConvPlan plan(conv);
    parallel(plan.threads, conv.threads, plan.scratch_floats(), plan.tasks(),
             [&](int64_t i, Arena arena) { isa.conv_forward(plan, i, arena); });
}

void conv_backward(const Conv& conv) {
    const Isa isa = choose_isa(conv.isa);
    ConvPlan plan(conv);
    plan.sums.resize(plan.sums_at(plan.tasks()));
    parallel(plan.threads, conv.threads, plan.scratch_floats(), plan.tasks(),
             [&](int64_t i, Arena arena) { isa.conv_backward(plan, i, arena); });
    for (int64_t d = 0; d < conv.channels; ++d)
        for (int64_t j = 0; j <= conv.kernel; ++j) {
            float total = 0;
            for (int64_t i = 0; i < plan.tasks(); ++i)
                total += plan.sums[plan.sums_at(i) + j * plan.padded + d];
            (j < conv.kernel ? conv.dweight.at(0, d)[j * conv.dweight.l] : *conv.dbias.at(0, d)) = total;
        }
}

void layer_norm(const LayerNorm& norm) {
    require_positive({norm.width});
    const Isa isa = choose_isa(norm.isa);
    const int64_t rows = ceil_div(1 << 14, norm.width);  // of a task
    parallel(norm.threads, norm.threads, 0, ceil_div(norm.rows, rows), [&](int64_t i, Arena) {
        isa.layer_norm(norm, i * rows, std::min(norm.rows, (i + 1) * rows));
    });
}

void norm_forward(const GroupNorm& norm) {
    const Isa isa = choose_isa(norm.isa);
    GroupNormPlan plan(norm);
    auto all = [&](auto task) {
        parallel(norm.threads, norm.threads, 0, plan.tasks(), [&](int64_t i, Arena) { task(plan, i); });
    };
    expect_writes(norm.y, norm.batch * norm.rows * norm.channels);
    all(isa.group_norm_sums);
    for (int64_t item = 0; item < norm.batch; ++item) plan.find_mean(item), plan.find_scale(item);
    all(isa.group_norm_normalise);
}

void norm_backward(const GroupNorm& norm) {
    const Isa isa = choose_isa(norm.isa);
    GroupNormPlan plan(norm);
    std::vector<double> dweight(norm.channels), dbias(norm.channels);
    expect_writes(norm.dx, norm.batch * norm.rows * norm.channels);
    for (int64_t item = 0; item < norm.batch; ++item) plan.find_scale(item);
    parallel(norm.threads, norm.threads, plan.scratch_floats(), plan.tasks(),
             [&](int64_t i, Arena arena) { isa.group_norm_gradient_sums(plan, i, arena); });
    for (int64_t item = 0; item < norm.batch; ++item) plan.find_gradient(item, dweight, dbias);
    parallel(norm.threads, norm.threads, 0, plan.tasks(),
             [&](int64_t i, Arena) { isa.group_norm_differentiate(plan, i); });
    for (int64_t c = 0; c < norm.channels; ++c)
        norm.dweight[c] = float(dweight[c]), norm.dbias[c] = float(dbias[c]);
}

void depthwise_forward(const DepthwiseConv& conv) {
    const Isa isa = choose_isa(conv.isa);
    DepthwiseConvPlan plan(conv);
    parallel(conv.threads, conv.threads, 2 * conv.width + 16, plan.tasks(),
             [&](int64_t i, Arena arena) { isa.depthwise_conv(plan, i, arena); });
}

void depthwise_gradient(const DepthwiseConv& conv) {
    const Isa isa = choose_isa(conv.isa);
    DepthwiseConvPlan plan(conv);
    plan.sums.resize(plan.tasks() * plan.taps);
    parallel(conv.threads, conv.threads, 0, plan.tasks(),
             [&](int64_t i, Arena arena) { isa.depthwise_conv_gradient(plan, i, arena); });
    std::vector<double> total(conv.channels * plan.taps);
    for (int64_t task = 0; task < plan.tasks(); ++task)
        for (int64_t tap = 0; tap < plan.taps; ++tap)
            total[(plan.weight(task) - conv.weight) + tap] += plan.sums[task * plan.taps + tap];
    for (size_t i = 0; i < total.size(); ++i) conv.weight[i] = float(total[i]);
}

template <class Arguments>
int guarded(void (*run)(const Arguments&), const Arguments* arguments) {
    try {
        run(*arguments);
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    } catch (const std::invalid_argument&) {
        return 2;
    }
}

}  // namespace

// 0, or 1 where memory ran out, or 2 where a size is not positive.
extern "C" int selective_scan_forward(const Scan* scan) { return guarded(forward, scan); }
extern "C" int selective_scan_backward(const Scan* scan) { return guarded(backward, scan); }

extern "C" int causal_conv1d_forward(const Conv* conv) { return guarded(conv_forward, conv); }
extern "C" int causal_conv1d_backward(const Conv* conv) { return guarded(conv_backward, conv); }

extern "C" int layer_norm_forward(const LayerNorm* norm) { return guarded(layer_norm, norm); }

extern "C" int group_norm_forward(const GroupNorm* norm) { return guarded(norm_forward, norm); }
extern "C" int group_norm_backward(const GroupNorm* norm) { return guarded(norm_backward, norm); }

extern "C" int depthwise_conv_forward(const DepthwiseConv* conv) { return guarded(depthwise_forward, conv); }
extern "C" int depthwise_conv_gradient(const DepthwiseConv* conv) { return guarded(depthwise_gradient, conv); }

extern "C" void selective_scan_expect_writes(float* data, int64_t floats) {
    expect_writes(data, floats);
}

extern "C" void selective_scan_use_team(Team theirs) { team = theirs; }

// What this machine has: 0 portable, 1 AVX2, 2 AVX-512.
extern "C" int selective_scan_isa() { return best_isa(); }

// What the library was built from, so that a stale one is noticed.
extern "C" const char* selective_scan_source() { return SOURCE_HASH; }
