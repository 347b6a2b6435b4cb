// The library's entry points: the selective scan and the causal convolution before it, forward and
// backward, float32, on a CPU; beside them layer and group norm and a depthwise convolution. The
// arithmetic is in the *_kernels.h files.
//
// No torch, no Python, no OpenMP: tensors come as pointers with strides.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <new>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "arena.h"
#include "causal_conv1d.h"
#include "depthwise_conv.h"
#include "group_norm.h"
#include "huge_pages.h"
#include "layer_norm.h"
#include "parallel.h"
#include "selective_scan.h"
#include "sizes.h"

#ifndef SOURCE_HASH
#define SOURCE_HASH ""
#endif

namespace {

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

template <class F>
void parallel(const Plan& plan, int64_t count, F f) {
    parallel(plan.threads, plan.scan.threads, plan.scratch_floats(), count, f);
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

// With more than one chunk, tasks first find the state that their chunk adds to a zero state, then
// a short loop carries states over the chunks by exp(A sum(delta)), then every chunk starts from
// its true state. Backward alike, for the adjoint, from the last chunk to the first.
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
