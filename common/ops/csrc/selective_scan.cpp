// The library's entry points: the selective scan and the Mamba mixer around it, forward and
// backward, float32, on a CPU; beside them layer and group norm and a depthwise convolution.
//
// No torch, no Python, no OpenMP: tensors come as pointers with strides.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <new>
#include <stdexcept>
#include <vector>

#include "arena.h"
#include "depthwise_conv.h"
#include "group_norm.h"
#include "huge_pages.h"
#include "instruction_sets.h"
#include "kernels.h"
#include "layer_norm.h"
#include "mamba_mixer.h"
#include "parallel.h"
#include "selective_scan.h"
#include "sizes.h"
#include "tile_products.h"

#ifndef SOURCE_HASH
#define SOURCE_HASH ""
#endif

namespace {

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
void copy_states(Plan& plan, const View& view, bool from_view) {
    if (!view.data) return;
    const Scan& scan = plan.scan;
    for (int64_t b = 0; b < scan.batch; ++b)
        for (int64_t d = 0; d < scan.channels; ++d)
            for (int64_t s = 0; s < scan.states; ++s) {
                float& theirs = view.at(b, d)[s * view.n];
                float& ours =
                    plan.carried_at(b, plan.chunks - 1)[plan.state_at(plan.with_padding(d), s)];
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
    const Kernels& kernels = kernels_for(call.isa);
    const std::vector<Scan> scans = in_orders(call);
    std::vector<Plan> plans = make_plans(scans, kernels.width);
    const int64_t size = call.batch * call.channels * call.length();
    expect_writes(call.y.data, size);
    for (const Plan& plan : plans)
        expect_writes(plan.scan.saved.data, plan.saved_at(call.batch, 0, 0));
    if (plans[0].chunks > 1) {
        all_at_once(plans, [&](Plan& plan, const Task& task, Arena arena) {
            if (task.chunk + 1 < plan.chunks)
                kernels.forward(plan, task, plan.carried_at(task.batch, task.chunk + 1),
                            &plan.elapsed[plan.slot(task.batch, task.chunk)], arena);
        });
        for (Plan& plan : plans)
            for (int64_t b = 0; b < call.batch; ++b)
                for (int64_t k = 0; k + 1 < plan.chunks; ++k)
                    carry(plan, &plan.elapsed[plan.slot(b, k)], plan.carried_at(b, k),
                          plan.carried_at(b, k + 1));
    }
    in_turn(plans, [&](Plan& plan, const Task& task, Arena arena) {
        kernels.forward(plan, task, plan.carried_at(task.batch, task.chunk), nullptr, arena);
    });
    copy_states(plans[0], call.last, false);
}

void backward(const Scan& call) {
    const Kernels& kernels = kernels_for(call.isa);
    const std::vector<Scan> scans = in_orders(call);
    std::vector<Plan> plans = make_plans(scans, kernels.width);
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
    copy_states(plans[0], call.dlast, true);
    if (plans[0].chunks > 1) {
        all_at_once(plans, [&](Plan& plan, const Task& task, Arena arena) {
            if (task.chunk > 0)
                kernels.backward(plan, task, plan.carried_at(task.batch, task.chunk - 1),
                             &plan.elapsed[plan.slot(task.batch, task.chunk)], arena);
        });
        for (Plan& plan : plans)
            for (int64_t b = 0; b < call.batch; ++b)
                for (int64_t k = plan.chunks - 1; k > 0; --k)
                    carry(plan, &plan.elapsed[plan.slot(b, k)], plan.carried_at(b, k),
                          plan.carried_at(b, k - 1));
    }
    in_turn(plans, [&](Plan& plan, const Task& task, Arena arena) {
        kernels.backward(plan, task, plan.carried_at(task.batch, task.chunk), nullptr, arena);
    });
    for (Plan& plan : plans) add_up(plan);
}

void mixer_forward(const Mixer& mixer) {
    const Kernels& kernels = kernels_for(mixer.isa);
    MixerPlan plan(mixer, kernels.width, false);
    expect_writes(mixer.out.data, mixer.batch * mixer.length * mixer.outputs);
    if (mixer.saved) expect_writes(mixer.saved, plan.saved_at(mixer.batch, 0, 0) - mixer.saved);
    parallel(plan.threads, mixer.threads, plan.scratch_floats(false), mixer.batch * plan.chunks,
             [&](int64_t i, Arena arena) { kernels.mixer_forward(plan, i, arena); });
}

void mixer_backward(const Mixer& mixer) {
    const Kernels& kernels = kernels_for(mixer.isa);
    MixerPlan plan(mixer, kernels.width, true);
    expect_writes(mixer.dx.data, mixer.batch * mixer.length * mixer.channels);
    parallel(plan.threads, mixer.threads, plan.scratch_floats(true), mixer.batch * plan.chunks,
             [&](int64_t i, Arena arena) { kernels.mixer_backward(plan, i, arena); });
    const MixerSums& sums = plan.sums;
    float* total = plan.slot(0);
    for (int64_t k = 1; k < std::min(MixerPlan::SLOTS, mixer.batch * plan.chunks); ++k)
        for (int64_t i = 0; i < sums.floats; ++i) total[i] += plan.slot(k)[i];
    auto write = [&](int64_t from, int64_t rows, int64_t columns, int64_t row, float* to, int64_t by_row,
                     int64_t by_column) {
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t j = 0; j < columns; ++j)
                to[i * by_row + j * by_column] = total[from + i * row + j];
    };
    const int64_t inner = mixer.inner, c = mixer.channels, n = mixer.states, rank = mixer.rank;
    write(sums.from_x, inner, c, plan.c, mixer.din_proj, c, 1);
    write(sums.from_x_gate, inner, c, plan.c, mixer.din_proj + inner * c, c, 1);
    write(sums.maps, rank + 2 * n, inner, plan.d, mixer.dx_proj, inner, 1);
    write(sums.dt, rank, inner, plan.d, mixer.ddt_proj, 1, rank);
    write(sums.out, mixer.outputs, inner, plan.d, mixer.dout_proj, inner, 1);
    write(sums.taps, mixer.taps, inner, plan.d, mixer.dconv_weight, 1, mixer.taps);
    write(sums.taps + mixer.taps * plan.d, 1, inner, plan.d, mixer.dconv_bias, 0, 1);
    write(sums.D, 1, inner, plan.d, mixer.dD, 0, 1);
    write(sums.bias, 1, inner, plan.d, mixer.ddt_bias, 0, 1);
    for (int64_t p = 0; p < inner; ++p)
        for (int64_t s = 0; s < n; ++s) mixer.dA[p * n + s] = total[sums.A + plan.state_at(p, s)];
}

void layer_norm(const LayerNorm& norm) {
    require_positive({norm.width});
    const Kernels& kernels = kernels_for(norm.isa);
    const int64_t rows = ceil_div(1 << 14, norm.width);  // of a task
    parallel(norm.threads, norm.threads, 0, ceil_div(norm.rows, rows), [&](int64_t i, Arena) {
        kernels.layer_norm(norm, i * rows, std::min(norm.rows, (i + 1) * rows));
    });
}

void norm_forward(const GroupNorm& norm) {
    const Kernels& kernels = kernels_for(norm.isa);
    GroupNormPlan plan(norm);
    auto all = [&](auto task) {
        parallel(norm.threads, norm.threads, 0, plan.tasks(), [&](int64_t i, Arena) { task(plan, i); });
    };
    expect_writes(norm.y, norm.batch * norm.rows * norm.channels);
    all(kernels.group_norm_sums);
    for (int64_t item = 0; item < norm.batch; ++item) plan.find_mean(item), plan.find_scale(item);
    all(kernels.group_norm_normalise);
}

void norm_backward(const GroupNorm& norm) {
    const Kernels& kernels = kernels_for(norm.isa);
    GroupNormPlan plan(norm);
    std::vector<double> dweight(norm.channels), dbias(norm.channels);
    expect_writes(norm.dx, norm.batch * norm.rows * norm.channels);
    for (int64_t item = 0; item < norm.batch; ++item) plan.find_scale(item);
    parallel(norm.threads, norm.threads, plan.scratch_floats(), plan.tasks(),
             [&](int64_t i, Arena arena) { kernels.group_norm_gradient_sums(plan, i, arena); });
    for (int64_t item = 0; item < norm.batch; ++item) plan.find_gradient(item, dweight, dbias);
    parallel(norm.threads, norm.threads, 0, plan.tasks(),
             [&](int64_t i, Arena) { kernels.group_norm_differentiate(plan, i); });
    for (int64_t c = 0; c < norm.channels; ++c)
        norm.dweight[c] = float(dweight[c]), norm.dbias[c] = float(dbias[c]);
}

void depthwise_forward(const DepthwiseConv& conv) {
    const Kernels& kernels = kernels_for(conv.isa);
    DepthwiseConvPlan plan(conv);
    parallel(conv.threads, conv.threads, 2 * conv.width + 16, plan.tasks(),
             [&](int64_t i, Arena arena) { kernels.depthwise_conv(plan, i, arena); });
}

void depthwise_gradient(const DepthwiseConv& conv) {
    const Kernels& kernels = kernels_for(conv.isa);
    DepthwiseConvPlan plan(conv);
    plan.sums.resize(plan.tasks() * plan.taps);
    parallel(conv.threads, conv.threads, 0, plan.tasks(),
             [&](int64_t i, Arena arena) { kernels.depthwise_conv_gradient(plan, i, arena); });
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

extern "C" int mamba_mixer_forward(const Mixer* mixer) { return guarded(mixer_forward, mixer); }
extern "C" int mamba_mixer_backward(const Mixer* mixer) { return guarded(mixer_backward, mixer); }

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

// Whether the mixer's products can be in bfloat16 on this machine.
extern "C" int mamba_mixer_has_tiles() { return has_tiles(); }

// What the library was built from, so that a stale one is noticed.
extern "C" const char* selective_scan_source() { return SOURCE_HASH; }
