// Random calls of the library's entry points, compared with plain loops in double, until a time is
// up: fuzz SEED SECONDS [FIRST CASE]. test_sanitizers.py compiles it with the compiler's
// sanitizers, test_arm64.py for another processor, WITHOUT_SANITIZERS.
//
// Each tensor has memory of its own that ends where the tensor does, in any layout; what lies
// between its numbers is NaN and must stay as it was, and so must whatever is only read. A new
// entry point takes a function like `layer_norm_case`, and a line in ENTRIES.

#include "selective_scan.cpp"

#include <array>
#include <chrono>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <string>

#ifdef WITHOUT_SANITIZERS
#include <csignal>
#else
#include <sanitizer/common_interface_defs.h>
#endif

// New memory is NaN, so that what is read before it is written shows in the results.
extern "C" const char* __asan_default_options() {
    return "max_malloc_fill_size=1000000000:malloc_fill_byte=255";
}
extern "C" const char* __tsan_default_options() { return "halt_on_error=1"; }

namespace {

constexpr double ROUNDING = 3e-7;   // of a float, relative: six times as much as is seen
constexpr double SMALLEST = 1e-30;  // below, numbers may be flushed to 0

std::string current;  // the case, for the report of a failure

void describe(const char* format, ...) {
    char text[500];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    current += text;
}

void report() { fprintf(stderr, "\nin %s\n", current.c_str()); }

[[noreturn]] void fail(const char* what) {
    fprintf(stderr, "%s\n", what);
    report();
    exit(1);
}

// ---- random choices ----------------------------------------------------------------------------

std::mt19937_64 engine;

int64_t between(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(engine);
}
double uniform(double low, double high) {
    return low + (high - low) * double(engine() >> 11) * 0x1p-53;
}
double any_value() { return uniform(-2, 2); }
bool chance(double p) { return uniform(0, 1) < p; }
int64_t one_of(std::initializer_list<int64_t> values) {
    return values.begin()[between(0, int64_t(values.size()) - 1)];
}

// ---- tensors -----------------------------------------------------------------------------------

using Index = std::array<int64_t, 6>;  // by batch, order, channel, row, column, state, as View

template <class F>
void for_each(const Index& size, F f) {
    Index i{};
    for (i[0] = 0; i[0] < size[0]; ++i[0])
        for (i[1] = 0; i[1] < size[1]; ++i[1])
            for (i[2] = 0; i[2] < size[2]; ++i[2])
                for (i[3] = 0; i[3] < size[3]; ++i[3])
                    for (i[4] = 0; i[4] < size[4]; ++i[4])
                        for (i[5] = 0; i[5] < size[5]; ++i[5]) f(i);
}

const float NOTHING = std::numeric_limits<float>::quiet_NaN();

struct Tensor {
    Index size{}, stride{};
    int64_t offset = 0, floats = 0;
    std::unique_ptr<float[]> memory;  // null where there is no such tensor
    std::vector<float> before;

    explicit operator bool() const { return bool(memory); }
    float& at(const Index& i) const {
        const int64_t *x = i.data(), *s = stride.data();
        return memory.get()[offset + x[0] * s[0] + x[1] * s[1] + x[2] * s[2] + x[3] * s[3] +
                            x[4] * s[4] + x[5] * s[5]];
    }
    View view() const {
        if (!memory) return {};
        return {&memory[offset], stride[0], stride[1], stride[2], stride[3], stride[4], stride[5]};
    }
};

// Memory for strides in this order of axes, the first with the smallest; some further apart than
// need be, and where `expanded` some 0.
Tensor lay_out(const Index& size, const std::array<int, 6>& axes, bool dense, bool expanded) {
    Tensor x;
    x.size = size;
    int64_t next = 1, last = 0;
    for (int axis : axes) {
        if (expanded && chance(0.05)) continue;
        x.stride[axis] = next * (dense || chance(0.9) ? 1 : between(2, 3));
        last += (size[axis] - 1) * x.stride[axis];
        next = x.stride[axis] * size[axis];
    }
    x.offset = dense || chance(0.7) ? 0 : between(1, 5);
    x.floats = x.offset + last + 1;
    x.memory.reset(new float[x.floats]);
    std::fill_n(x.memory.get(), x.floats, NOTHING);
    x.before.assign(x.memory.get(), x.memory.get() + x.floats);
    return x;
}

std::array<int, 6> any_axes() {
    std::array<int, 6> axes{0, 1, 2, 3, 4, 5};
    std::shuffle(axes.begin(), axes.end(), engine);
    const int first = int(one_of({2, 2, 4, 4, 5, -1}));  // often channels or tokens
    if (first >= 0)
        std::rotate(axes.begin(), std::find(axes.begin(), axes.end(), first), axes.end());
    return axes;
}

Tensor input(const Index& size, const std::function<double()>& value = any_value) {
    Tensor x = lay_out(size, any_axes(), false, true);
    for_each(size, [&](const Index& i) { x.at(i) = float(value()); });
    x.before.assign(x.memory.get(), x.memory.get() + x.floats);
    return x;
}

Tensor output(const Index& size) { return lay_out(size, any_axes(), false, false); }

Tensor dense(const Index& size, std::array<int, 6> axes = {5, 4, 3, 2, 1, 0}) {
    return lay_out(size, axes, true, false);
}

Tensor filled(const Index& size) {
    Tensor x = dense(size);
    for_each(size, [&](const Index& i) { x.at(i) = float(any_value()); });
    x.before.assign(x.memory.get(), x.memory.get() + x.floats);
    return x;
}

// A NaN somewhere: it has to come out wherever, and only where, it does so from the plain loops.
void poison(std::initializer_list<Tensor*> tensors) {
    Tensor& x = *tensors.begin()[between(0, int64_t(tensors.size()) - 1)];
    if (!x) return;
    Index i;
    for (int axis = 0; axis < 6; ++axis) i[axis] = between(0, x.size[axis] - 1);
    const uint32_t bits = uint32_t(one_of({0x7fc00000, 0xffc00000, 0x7fc00001, 0xffffffff}));
    std::memcpy(&x.at(i), &bits, sizeof bits);
    x.before.assign(x.memory.get(), x.memory.get() + x.floats);
    describe(", with a NaN");
}

// Nothing changed but, in an output, its own numbers.
void check_memory(const char* name, const Tensor& x, bool is_output) {
    if (!x) return;
    std::vector<float> now(x.memory.get(), x.memory.get() + x.floats);
    if (is_output)
        for_each(x.size, [&](const Index& i) { now[&x.at(i) - x.memory.get()] = NOTHING; });
    if (std::memcmp(now.data(), x.before.data(), x.floats * sizeof(float)))
        fail((std::string(name) + " was written where it must not be").c_str());
}

// ---- numbers in double that know how far rounding may take a float -----------------------------

struct Number {
    double value, error;  // error: of a float after the same operations, in units of its rounding
    Number(double value = 0, double error = 0) : value(value), error(error) {}
    void operator+=(Number x);
};
Number operator+(Number a, Number b) {
    return {a.value + b.value, a.error + b.error + std::abs(a.value) + std::abs(b.value)};
}
Number operator-(Number a, Number b) { return a + Number(-b.value, b.error); }
Number operator*(Number a, Number b) {
    const double value = a.value * b.value;
    return {value, std::abs(a.value) * b.error + std::abs(b.value) * a.error + std::abs(value)};
}
void Number::operator+=(Number x) { *this = *this + x; }

// f(x), where f(x.value) and its slope there are given.
Number with_slope(Number x, double value, double slope) {
    return {value, std::abs(value) + std::abs(slope) * x.error};
}
Number exp_of(Number x) {
    const double value = std::exp(x.value);
    return with_slope(x, value, value);
}
Number sigmoid_of(Number x) {
    const double s = 1 / (1 + std::exp(-x.value));
    return with_slope(x, s, s * (1 - s));
}
Number softplus_of(Number x) {
    const double w = std::exp(-std::abs(x.value));
    const double value = (x.value > 0 ? x.value : 0) + std::log1p(w);
    return with_slope(x, value, (x.value > 0 ? 1 : w) / (1 + w));
}
Number silu_slope(Number x, Number s) { return s * (Number(1) + x * (Number(1) - s)); }

struct Numbers {
    Index size{};
    std::vector<Number> numbers;
    explicit Numbers(const Index& size)
        : size(size),
          numbers(std::accumulate(size.begin(), size.end(), int64_t(1), std::multiplies<>())) {}
    Number& operator[](const Index& i) {
        const int64_t *x = i.data(), *n = size.data();
        return numbers[((((x[0] * n[1] + x[1]) * n[2] + x[2]) * n[3] + x[3]) * n[4] + x[4]) * n[5] +
                       x[5]];
    }
};

void check(const char* name, const Tensor& found, Numbers& truth) {
    check_memory(name, found, true);
    if (!found) return;
    for_each(found.size, [&](const Index& i) {
        const double x = found.at(i);
        const Number y = truth[i];
        const bool right = std::isnan(y.value)
                               ? std::isnan(x)
                               : std::abs(x - y.value) <= ROUNDING * y.error + SMALLEST;
        if (right) return;
        describe("\n%s[%d,%d,%d,%d,%d,%d] is %.9g; right is %.9g, give or take %.1g", name,
                 int(i[0]), int(i[1]), int(i[2]), int(i[3]), int(i[4]), int(i[5]), x, y.value,
                 ROUNDING * y.error);
        fail("wrong result");
    });
}

// ---- the selective scan ------------------------------------------------------------------------

void scan_case(int32_t threads, int32_t isa) {
    Scan call{};
    call.threads = threads, call.isa = isa;
    call.orders = chance(0.4) ? 4 : 1;
    call.batch = between(1, 3);
    call.groups = call.orders == 1 ? between(1, 3) : 1;
    call.states = one_of({1, 1, 1, 2, 3, 4, 5, 8, 12, 16, 16, 17, 20});
    call.height = call.orders == 1 ? 1 : between(1, 20);
    call.width =
        call.orders == 1 ? (chance(0.3) ? between(200, 700) : between(1, 200)) : between(1, 30);
    const int64_t most =
        15000 / (call.batch * call.groups * call.orders * call.length() * call.states);
    const int64_t of_group = chance(0.2) ? 16 * between(1, 5) : between(1, 70);
    const int64_t group_channels = std::max<int64_t>(1, std::min(most, of_group));
    call.channels = call.groups * group_channels;
    call.softplus = chance(0.7);
    const bool extreme = chance(0.2), gated = call.orders == 1 && chance(0.5);
    const bool skip = chance(0.7), biased = chance(0.7);
    const bool backward = chance(0.7);
    describe(
        "scan: b %d, d %d in %d groups, %d orders of %d x %d, n %d, softplus %d, D %d, z %d, "
        "bias %d, backward %d, extreme %d",
        int(call.batch), int(call.channels), int(call.groups), call.orders, int(call.height),
        int(call.width), int(call.states), call.softplus, skip, gated, biased, backward,
        extreme);

    const int64_t K = call.orders, d = call.channels, n = call.states;
    const int64_t H = call.height, L = call.width;
    const Index tokens{call.batch, 1, d, H, L, 1}, steps{call.batch, K, d, H, L, 1};
    const Index maps{call.batch, K, call.groups, H, L, n}, rates{1, K, d, 1, 1, n};
    const Index channels{1, K, d, 1, 1, 1}, states{call.batch, 1, d, 1, 1, n};
    auto step = [&] {
        const double x = extreme ? uniform(-50, 50) : any_value() - 2;
        return call.softplus ? x : std::abs(x);
    };
    auto rate = [&] { return -(extreme ? std::pow(10, uniform(-4, 3)) : std::exp(any_value())); };
    auto if_asked = [](bool asked, const Index& size) { return asked ? input(size) : Tensor(); };
    Tensor u = input(tokens), delta = input(steps, step), A = input(rates, rate);
    Tensor B = input(maps), C = input(maps);
    Tensor D = if_asked(skip, channels), z = if_asked(gated, tokens);
    Tensor bias;  // positive, as step sizes are, where there is no softplus
    if (biased) bias = input(channels, [&] { return call.softplus ? any_value() : uniform(0, 2); });
    Tensor dy = input(tokens), dlast = if_asked(call.orders == 1 && chance(0.5), states);
    if (chance(0.1)) poison({&u, &delta, &A, &B, &C, &D, &z, &bias, &dy, &dlast});

    Tensor y = output(tokens), last = call.orders == 1 ? output(states) : Tensor(), saved;
    const int64_t padded = call.groups * ceil_div(group_channels, PAD) * PAD;
    if (backward) {
        saved = dense({1, K, 1, 1, call.batch * ceil_div(H * L, TILE) * padded * n, 1});
        if (padded != d) std::fill_n(saved.memory.get(), saved.floats, 0.0f);
    }
    call.u = u.view(), call.delta = delta.view(), call.A = A.view(), call.B = B.view(),
    call.C = C.view();
    call.D = D.view(), call.z = z.view(), call.bias = bias.view();
    call.y = y.view(), call.last = last.view(), call.saved = saved.view();
    if (selective_scan_forward(&call)) fail("selective_scan_forward failed");

    const std::array<int, 6> map_axes =
        chance(0.5) ? std::array<int, 6>{5, 4, 3, 2, 0, 1} : std::array<int, 6>{5, 2, 4, 3, 0, 1};
    Tensor du, ddelta, dA, dB, dC, dD, dz, dbias;
    if (backward) {
        du = output(tokens), ddelta = output(steps), dA = output(rates);
        dB = dense(maps, map_axes), dC = dense(maps, map_axes);
        if (skip) dD = output(channels);
        if (gated) dz = output(tokens);
        if (biased) dbias = output(channels);
        call.y = call.last = View{};
        call.dy = dy.view(), call.dlast = dlast.view(), call.du = du.view(),
        call.ddelta = ddelta.view();
        call.dA = dA.view(), call.dB = dB.view(), call.dC = dC.view(), call.dD = dD.view();
        call.dz = dz.view(), call.dbias = dbias.view();
        if (selective_scan_backward(&call)) fail("selective_scan_backward failed");
    }

    Numbers right_y(tokens), right_last(states), right_du(tokens), right_ddelta(steps);
    Numbers right_dA(rates), right_dB(maps), right_dC(maps), right_dD(channels), right_dz(tokens);
    Numbers right_dbias(channels);
    const int64_t T = H * L;
    std::vector<Number> h((T + 1) * n), decay(T * n), size(T), raw(T), ungated(T), g(n);
    for (int64_t b = 0; b < call.batch; ++b)
        for (int64_t k = 0; k < K; ++k)
            for (int64_t c = 0; c < d; ++c) {
                const int64_t group = c / group_channels;
                auto site = [&](int64_t t) {
                    const int64_t i = k >= 2 ? T - 1 - t : t;
                    return k % 2 ? std::pair(i % H, i / H) : std::pair(i / L, i % L);
                };
                for (int64_t s = 0; s < n; ++s) h[s] = 0.0f;
                for (int64_t t = 0; t < T; ++t) {
                    const auto [i, j] = site(t);
                    const Number in = u.at({b, 0, c, i, j, 0});
                    raw[t] = Number(delta.at({b, k, c, i, j, 0}));
                    if (biased) raw[t] += bias.at({0, k, c, 0, 0, 0});
                    size[t] = call.softplus ? softplus_of(raw[t]) : raw[t];
                    Number sum;
                    for (int64_t s = 0; s < n; ++s) {
                        decay[t * n + s] = exp_of(size[t] * A.at({0, k, c, 0, 0, s}));
                        h[(t + 1) * n + s] = decay[t * n + s] * h[t * n + s] +
                                             size[t] * in * B.at({b, k, group, i, j, s});
                        sum += h[(t + 1) * n + s] * C.at({b, k, group, i, j, s});
                    }
                    if (skip) sum += in * D.at({0, k, c, 0, 0, 0});
                    ungated[t] = sum;
                    if (gated) {
                        const Number gate = z.at({b, 0, c, i, j, 0});
                        sum = sum * (gate * sigmoid_of(gate));
                    }
                    right_y[{b, 0, c, i, j, 0}] += sum;
                }
                for (int64_t s = 0; s < n; ++s) {
                    right_last[{b, 0, c, 0, 0, s}] = h[T * n + s];
                    g[s] = dlast ? dlast.at({b, 0, c, 0, 0, s}) : 0.0f;
                }
                for (int64_t t = T - 1; t >= 0 && backward; --t) {
                    const auto [i, j] = site(t);
                    const Number in = u.at({b, 0, c, i, j, 0});
                    Number out = dy.at({b, 0, c, i, j, 0});
                    if (gated) {
                        const Number gate = z.at({b, 0, c, i, j, 0}), sig = sigmoid_of(gate);
                        right_dz[{b, 0, c, i, j, 0}] = out * ungated[t] * silu_slope(gate, sig);
                        out = out * (gate * sig);
                    }
                    Number by_input, by_step;
                    for (int64_t s = 0; s < n; ++s) {
                        const Number now = g[s] + out * C.at({b, k, group, i, j, s});
                        right_dC[{b, k, group, i, j, s}] += out * h[(t + 1) * n + s];
                        right_dB[{b, k, group, i, j, s}] += now * size[t] * in;
                        by_input += now * B.at({b, k, group, i, j, s});
                        g[s] = now * decay[t * n + s];
                        const Number q = g[s] * h[t * n + s];
                        right_dA[{0, k, c, 0, 0, s}] += q * size[t];
                        by_step += q * A.at({0, k, c, 0, 0, s});
                    }
                    by_step += in * by_input;
                    if (call.softplus) by_step = by_step * sigmoid_of(raw[t]);
                    right_ddelta[{b, k, c, i, j, 0}] = by_step;
                    right_dbias[{0, k, c, 0, 0, 0}] += by_step;
                    Number by_u = size[t] * by_input;
                    if (skip) by_u += out * D.at({0, k, c, 0, 0, 0});
                    right_du[{b, 0, c, i, j, 0}] += by_u;
                    right_dD[{0, k, c, 0, 0, 0}] += out * in;
                }
            }

    check("y", y, right_y), check("last", last, right_last);
    check("du", du, right_du), check("ddelta", ddelta, right_ddelta), check("dA", dA, right_dA);
    check("dB", dB, right_dB), check("dC", dC, right_dC), check("dD", dD, right_dD);
    check("dz", dz, right_dz), check("dbias", dbias, right_dbias);
    for (const Tensor* x : {&u, &delta, &A, &B, &C, &D, &z, &bias, &dy, &dlast})
        check_memory("an input", *x, false);
}

// ---- the Mamba mixer ---------------------------------------------------------------------------

void mixer_case(int32_t threads, int32_t isa) {
    Mixer call{};
    call.threads = threads, call.isa = isa;
    call.batch = between(1, 3);
    call.length = chance(0.4) ? between(65, 400) : between(1, 70);
    auto size = [](int64_t most) { return chance(0.2) ? 16 * between(1, most / 16) : between(1, most); };
    call.inner = std::min<int64_t>(size(80), 1 + 3000 / call.length);
    call.channels = size(48), call.outputs = size(48), call.states = size(20), call.rank = size(20);
    call.taps = chance(0.5) ? 4 : between(1, 9);
    call.chunk = TILE * (chance(0.7) ? 1 : between(2, 3));
    const bool backward = chance(0.7);
    describe("mixer: b %d, l %d, c %d, d %d, n %d, rank %d, %d taps, c' %d, chunk %d, backward %d",
             int(call.batch), int(call.length), int(call.channels), int(call.inner),
             int(call.states), int(call.rank), int(call.taps), int(call.outputs), int(call.chunk),
             backward);

    const int64_t L = call.length, c = call.channels, d = call.inner, n = call.states;
    const int64_t r = call.rank, k = call.taps, o = call.outputs, m = r + 2 * n;
    auto matrix = [](int64_t rows, int64_t columns) { return Index{1, 1, 1, 1, rows, columns}; };
    Tensor x = input({call.batch, 1, c, 1, L, 1}), dout = input({call.batch, 1, o, 1, L, 1});
    Tensor weights[] = {filled(matrix(2 * d, c)), filled(matrix(d, k)), filled(matrix(1, d)),
                        filled(matrix(m, d)),     filled(matrix(d, r)), filled(matrix(1, d)),
                        filled(matrix(d, n)),     filled(matrix(1, d)), filled(matrix(o, d))};
    auto& [in_proj, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, out_proj] = weights;
    for (int64_t i = 0; i < A.floats; ++i)
        A.memory[i] = A.before[i] = -std::abs(A.memory[i]);
    for (Tensor* w : {&in_proj, &x_proj, &dt_proj, &out_proj})  // the chain stays near 1
        for (int64_t i = 0; i < w->floats; ++i)
            w->memory[i] = w->before[i] = w->memory[i] / float(std::sqrt(double(w->size[5])));
    if (chance(0.1)) {
        if (chance(0.5)) poison({&x, &dout});
        else poison({&in_proj, &conv_weight, &conv_bias, &x_proj, &dt_proj, &dt_bias, &A, &D, &out_proj});
    }
    Tensor out = output(dout.size), dx = output(x.size), grads[std::size(weights)];
    for (size_t i = 0; i < std::size(weights); ++i) grads[i] = dense(weights[i].size);
    Tensor saved = dense(matrix(call.batch * ceil_div(L, TILE), ceil_div(d, PAD) * PAD * n));
    call.x = x.view(), call.out = out.view();
    const float** given[] = {&call.in_proj, &call.conv_weight, &call.conv_bias,
                             &call.x_proj,  &call.dt_proj,     &call.dt_bias,
                             &call.A,       &call.D,           &call.out_proj};
    float** wanted[] = {&call.din_proj, &call.dconv_weight, &call.dconv_bias,
                        &call.dx_proj,  &call.ddt_proj,     &call.ddt_bias,
                        &call.dA,       &call.dD,           &call.dout_proj};
    for (size_t i = 0; i < std::size(weights); ++i)
        *given[i] = weights[i].memory.get(), *wanted[i] = grads[i].memory.get();
    if (backward) call.saved = saved.memory.get();
    if (mamba_mixer_forward(&call)) fail("mamba_mixer_forward failed");
    if (backward) {
        call.out = dout.view(), call.dx = dx.view();
        if (mamba_mixer_backward(&call)) fail("mamba_mixer_backward failed");
    }

    auto at = [](const Tensor& w, int64_t row, int64_t column) {
        return Number(w.memory[row * w.size[5] + column]);
    };
    Numbers right_out(out.size), right_dx(x.size);
    std::vector<Numbers> right;
    for (const Tensor& w : weights) right.emplace_back(w.size);
    auto grad = [&](size_t i, int64_t row, int64_t column) -> Number& {
        return right[i][{0, 0, 0, 0, row, column}];
    };
    auto rows = [&](int64_t width) {
        return std::vector<std::vector<Number>>(L, std::vector<Number>(width));
    };
    for (int64_t b = 0; b < call.batch; ++b) {
        auto xz = rows(2 * d), sum = rows(d), u = rows(d), maps = rows(m), raw = rows(d), step = rows(d);
        auto h = rows(d * n), ungated = rows(d), y = rows(d);
        auto value = [&](const Tensor& of, int64_t t, int64_t i) { return Number(of.at({b, 0, i, 0, t, 0})); };
        for (int64_t t = 0; t < L; ++t) {
            for (int64_t i = 0; i < 2 * d; ++i)
                for (int64_t j = 0; j < c; ++j) xz[t][i] += at(in_proj, i, j) * value(x, t, j);
            for (int64_t i = 0; i < d; ++i) {
                sum[t][i] = at(conv_bias, 0, i);
                for (int64_t j = 0; j < k; ++j)
                    sum[t][i] += at(conv_weight, i, j) *
                                 (t - k + 1 + j < 0 ? Number() : xz[t - k + 1 + j][i]);
                u[t][i] = sum[t][i] * sigmoid_of(sum[t][i]);
            }
            for (int64_t i = 0; i < m; ++i)
                for (int64_t j = 0; j < d; ++j) maps[t][i] += at(x_proj, i, j) * u[t][j];
            for (int64_t i = 0; i < d; ++i) {
                for (int64_t j = 0; j < r; ++j) raw[t][i] += at(dt_proj, i, j) * maps[t][j];
                raw[t][i] += at(dt_bias, 0, i);
                step[t][i] = softplus_of(raw[t][i]);
                for (int64_t s = 0; s < n; ++s) {
                    Number& now = h[t][i * n + s];
                    now = step[t][i] * u[t][i] * maps[t][r + s];
                    now += exp_of(step[t][i] * at(A, i, s)) * (t ? h[t - 1][i * n + s] : Number());
                    ungated[t][i] += now * maps[t][r + n + s];
                }
                ungated[t][i] += at(D, 0, i) * u[t][i];
                const Number gate = xz[t][d + i];
                y[t][i] = ungated[t][i] * (gate * sigmoid_of(gate));
            }
            for (int64_t i = 0; i < o; ++i)
                for (int64_t j = 0; j < d; ++j)
                    right_out[{b, 0, i, 0, t, 0}] += at(out_proj, i, j) * y[t][j];
        }
        if (!backward) continue;
        auto dxz = rows(2 * d);
        std::vector<Number> g(d * n), du(d), ddelta(d), dmaps(m);
        for (int64_t t = L - 1; t >= 0; --t) {
            std::fill(dmaps.begin(), dmaps.end(), Number());
            for (int64_t i = 0; i < d; ++i) {
                Number dy, by_input, by_step;
                for (int64_t j = 0; j < o; ++j) {
                    dy += at(out_proj, j, i) * value(dout, t, j);
                    grad(8, j, i) += value(dout, t, j) * y[t][i];
                }
                const Number gate = xz[t][d + i], sig = sigmoid_of(gate);
                dxz[t][d + i] = dy * ungated[t][i] * silu_slope(gate, sig);
                dy = dy * (gate * sig);
                for (int64_t s = 0; s < n; ++s) {
                    Number& back = g[i * n + s];
                    const Number now = back + dy * maps[t][r + n + s];
                    dmaps[r + n + s] += dy * h[t][i * n + s];
                    dmaps[r + s] += now * (step[t][i] * u[t][i]);
                    by_input += now * maps[t][r + s];
                    back = now * exp_of(step[t][i] * at(A, i, s));
                    const Number q = back * (t ? h[t - 1][i * n + s] : Number());
                    grad(6, i, s) += q * step[t][i];
                    by_step += q * at(A, i, s);
                }
                by_step += u[t][i] * by_input;
                ddelta[i] = by_step * sigmoid_of(raw[t][i]);
                du[i] = step[t][i] * by_input + at(D, 0, i) * dy;
                grad(7, 0, i) += dy * u[t][i];
                grad(5, 0, i) += ddelta[i];
                for (int64_t j = 0; j < r; ++j) {
                    dmaps[j] += at(dt_proj, i, j) * ddelta[i];
                    grad(4, i, j) += ddelta[i] * maps[t][j];
                }
            }
            for (int64_t i = 0; i < d; ++i) {
                for (int64_t j = 0; j < m; ++j) {
                    du[i] += at(x_proj, j, i) * dmaps[j];
                    grad(3, j, i) += dmaps[j] * u[t][i];
                }
                const Number slope = du[i] * silu_slope(sum[t][i], sigmoid_of(sum[t][i]));
                grad(2, 0, i) += slope;
                for (int64_t j = 0; j < k; ++j) {
                    const int64_t from = t - k + 1 + j;
                    grad(1, i, j) += slope * (from < 0 ? Number() : xz[from][i]);
                    if (from >= 0) dxz[from][i] += slope * at(conv_weight, i, j);
                }
            }
        }
        for (int64_t t = 0; t < L; ++t)
            for (int64_t i = 0; i < 2 * d; ++i)
                for (int64_t j = 0; j < c; ++j) {
                    right_dx[{b, 0, j, 0, t, 0}] += at(in_proj, i, j) * dxz[t][i];
                    grad(0, i, j) += dxz[t][i] * value(x, t, j);
                }
    }
    check("out", out, right_out);
    const char* names[] = {"din_proj", "dconv_weight", "dconv_bias", "dx_proj", "ddt_proj",
                           "ddt_bias", "dA",           "dD",         "dout_proj"};
    if (backward) check("dx", dx, right_dx);
    for (size_t i = 0; i < std::size(weights) && backward; ++i) check(names[i], grads[i], right[i]);
    for (const Tensor& w : weights) check_memory("a weight", w, false);
    check_memory("x", x, false), check_memory("dout", dout, false);
}

// ---- the layer norm ----------------------------------------------------------------------------

void layer_norm_case(int32_t threads, int32_t isa) {
    LayerNorm call{};
    call.threads = threads, call.isa = isa;
    call.width = chance(0.3) ? 16 * between(1, 10) : between(1, 300);
    call.rows = between(0, (chance(0.2) ? 40000 : 4000) / call.width);
    call.eps = 1e-5f;
    const bool residual = chance(0.5), scaled = residual && chance(0.5), in_place = chance(0.3);
    describe("layer norm: %d rows of %d, skip %d, scale %d, in place %d", int(call.rows),
             int(call.width), residual, scaled, in_place);

    const int64_t width = call.width;
    const Index one{1, 1, 1, 1, 1, 1}, columns{1, 1, 1, 1, 1, width},
        all{call.rows, 1, 1, 1, 1, width};
    Tensor x = call.rows ? filled(all) : Tensor(),
           skip = residual && call.rows ? filled(all) : Tensor();
    Tensor scale = scaled ? filled(one) : Tensor(), weight = filled(columns),
           bias = filled(columns);
    Tensor y = call.rows && !in_place ? dense(all) : Tensor();
    if (chance(0.1)) poison({&x, &skip, &scale, &weight, &bias});
    call.x = x.view().data, call.skip = skip.view().data, call.scale = scale.view().data;
    call.weight = weight.view().data, call.bias = bias.view().data;
    call.y = in_place ? x.view().data : y.view().data;

    Numbers truth(all);
    std::vector<Number> row(width);
    for (int64_t r = 0; r < call.rows; ++r) {
        Number sum, squares;
        for (int64_t i = 0; i < width; ++i) {
            row[i] = x.at({r, 0, 0, 0, 0, i});
            if (residual)
                row[i] += Number(scaled ? scale.at({}) : 1.0f) * skip.at({r, 0, 0, 0, 0, i});
            sum += row[i];
        }
        const Number mean = sum * (1.0 / width);
        for (int64_t i = 0; i < width; ++i) squares += (row[i] - mean) * (row[i] - mean);
        const Number variance = squares * (1.0 / width) + double(call.eps);
        const double root = std::sqrt(variance.value);
        const Number factor = with_slope(variance, 1 / root, 0.5 / (root * variance.value));
        for (int64_t i = 0; i < width; ++i)
            truth[{r, 0, 0, 0, 0, i}] = (row[i] - mean) * factor * weight.at({0, 0, 0, 0, 0, i}) +
                                        bias.at({0, 0, 0, 0, 0, i});
    }
    if (layer_norm_forward(&call)) fail("layer_norm_forward failed");
    if (in_place) x.before.assign(x.floats, NOTHING);
    check("y", in_place ? x : y, truth);
    for (const Tensor* t : {&skip, &scale, &weight, &bias}) check_memory("an input", *t, false);
    if (!in_place) check_memory("x", x, false);
}

// ---- group norm and depthwise convolution, which sum in double ----------------------------------

// A sum in double that becomes a float, or a factor: rounded once, but for what the terms lose.
struct Sum {
    double value = 0, terms = 0;
    void operator+=(double x) { value += x, terms += std::abs(x); }
    Number rounded(double factor = 1) const {
        return {factor * value, std::abs(factor) * (std::abs(value) + 1e-6 * terms)};
    }
};

void group_norm_case(int32_t threads, int32_t isa) {
    GroupNorm call{};
    call.threads = threads, call.isa = isa, call.eps = 1e-5, call.relu = chance(0.5);
    call.batch = between(1, 3);
    call.groups = one_of({1, 1, 2, 3, 8, 17, 32});
    const int64_t width = one_of({1, 1, 2, 4, 5, 16, 40});
    call.channels = call.groups * width;
    call.rows = between(1, std::max<int64_t>(1, (chance(0.2) ? 100000 : 5000) / (call.batch * call.channels)));
    describe("group norm: b %d, %d rows of %d channels in %d groups, relu %d", int(call.batch),
             int(call.rows), int(call.channels), int(call.groups), call.relu);

    const int64_t d = call.channels;
    const Index all{call.batch, 1, 1, call.rows, 1, d}, columns{1, 1, 1, 1, 1, d};
    Tensor x = filled(all), weight = filled(columns), bias = filled(columns), dy = filled(all);
    if (chance(0.1)) poison({&x, &weight, &bias, &dy});
    Tensor y = dense(all), dx = dense(all), dweight = dense(columns), dbias = dense(columns);
    std::unique_ptr<double[]> mean(new double[call.batch * call.groups]);
    std::unique_ptr<double[]> rstd(new double[call.batch * call.groups]);
    call.x = x.view().data, call.weight = weight.view().data, call.bias = bias.view().data;
    call.mean = mean.get(), call.rstd = rstd.get(), call.y = y.view().data;
    if (group_norm_forward(&call)) fail("group_norm_forward failed");
    call.dy = dy.view().data, call.dx = dx.view().data;
    call.dweight = dweight.view().data, call.dbias = dbias.view().data;
    if (group_norm_backward(&call)) fail("group_norm_backward failed");

    Numbers right_y(all), right_dx(all), right_dweight(columns), right_dbias(columns);
    std::vector<Sum> of_weight(d), of_bias(d);
    for (int64_t b = 0; b < call.batch; ++b)
        for (int64_t group = 0; group < call.groups; ++group) {
            auto each = [&](auto f) {
                for (int64_t r = 0; r < call.rows; ++r)
                    for (int64_t c = group * width; c < (group + 1) * width; ++c)
                        f(Index{b, 0, 0, r, 0, c}, c);
            };
            const double count = double(call.rows * width);
            double m = 0, variance = 0;
            each([&](const Index& i, int64_t) { m += x.at(i) / count; });
            each([&](const Index& i, int64_t) { variance += (x.at(i) - m) * (x.at(i) - m) / count; });
            const double factor = 1 / std::sqrt(variance + call.eps);
            auto scale = [&](int64_t c) {
                const double value = factor * weight.at({0, 0, 0, 0, 0, c});
                return Number(value, std::abs(value));
            };
            Sum of_g, of_gz;
            bool unsure = false;  // which side of the ReLU a float is on
            auto before_relu = [&](const Index& i, int64_t c) {
                const double offset = bias.at({0, 0, 0, 0, 0, c}), moved = m * scale(c).value;
                return Number(x.at(i)) * scale(c) +
                       Number(offset - moved, std::abs(offset) + std::abs(moved));
            };
            auto gradient = [&](const Index& i, int64_t c) {
                return call.relu && before_relu(i, c).value <= 0 ? 0.0f : dy.at(i);
            };
            each([&](const Index& i, int64_t c) {
                const Number v = before_relu(i, c);
                unsure |= call.relu && std::abs(v.value) <= ROUNDING * v.error;
                right_y[i] = call.relu && v.value <= 0 ? Number(0, v.error) : v;
                const double g = gradient(i, c), z = (x.at(i) - m) * factor, w = weight.at({0, 0, 0, 0, 0, c});
                of_weight[c] += g * z, of_bias[c] += g;
                of_g += w * g, of_gz += w * g * z;
            });
            if (unsure) return;
            const Number from_x = of_gz.rounded(-factor * factor / count);
            const Number constant = of_g.rounded(-factor / count), moved = from_x * Number(-m);
            const Number offset(constant.value + moved.value, constant.error + moved.error);
            each([&](const Index& i, int64_t c) {
                right_dx[i] = Number(gradient(i, c)) * scale(c) + (Number(x.at(i)) * from_x + offset);
            });
        }
    for (int64_t c = 0; c < d; ++c) {
        right_dweight[{0, 0, 0, 0, 0, c}] = of_weight[c].rounded();
        right_dbias[{0, 0, 0, 0, 0, c}] = of_bias[c].rounded();
    }
    check("y", y, right_y), check("dx", dx, right_dx);
    check("dweight", dweight, right_dweight), check("dbias", dbias, right_dbias);
    for (auto& [name, tensor] : {std::pair("x", &x), std::pair("weight", &weight), std::pair("bias", &bias), std::pair("dy", &dy)})
        check_memory(name, *tensor, false);
}

void depthwise_conv_case(int32_t threads, int32_t isa) {
    DepthwiseConv call{};
    call.threads = threads, call.isa = isa;
    const int64_t batch = between(1, 3);
    call.channels = between(1, 3), call.planes = batch * call.channels;
    call.depth = chance(0.5) ? 1 : between(1, 9), call.height = between(1, 20);
    call.width = chance(0.2) ? between(1, 400) : between(1, 40);
    call.kernel = one_of({1, 3, 3, 5, 7}), call.kernel_depth = call.depth == 1 ? 1 : call.kernel;
    describe("depthwise convolution: %d planes, %d channels, %d x %d x %d, %d x %d x %d taps", int(call.planes),
             int(call.channels), int(call.depth), int(call.height), int(call.width), int(call.kernel_depth),
             int(call.kernel), int(call.kernel));

    const Index maps{call.planes, 1, 1, call.depth, call.height, call.width};
    const Index kernels{call.channels, 1, 1, call.kernel_depth, call.kernel, call.kernel};
    Tensor x = filled(maps), weight = filled(kernels), dy = filled(maps);
    if (chance(0.1)) poison({&x, &weight, &dy});
    Tensor y = dense(maps), dweight = dense(kernels);
    call.x = x.view().data, call.weight = weight.view().data, call.y = y.view().data;
    if (depthwise_conv_forward(&call)) fail("depthwise_conv_forward failed");
    call.weight = dweight.view().data, call.y = dy.view().data;
    if (depthwise_conv_gradient(&call)) fail("depthwise_conv_gradient failed");

    Numbers right_y(maps), right_dweight(kernels);
    std::vector<Sum> of_weight(right_dweight.numbers.size());
    for_each(maps, [&](const Index& i) {
        Sum sum;
        int64_t tap = i[0] % call.channels * (call.kernel_depth * call.kernel * call.kernel);
        for (int64_t a = 0; a < call.kernel_depth; ++a)
            for (int64_t b = 0; b < call.kernel; ++b)
                for (int64_t c = 0; c < call.kernel; ++c, ++tap) {
                    const Index from{i[0], 0, 0, i[3] + a - call.kernel_depth / 2,
                                     i[4] + b - call.kernel / 2, i[5] + c - call.kernel / 2};
                    bool inside = true;
                    for (int axis = 3; axis < 6; ++axis) inside &= from[axis] >= 0 && from[axis] < maps[axis];
                    if (!inside) continue;
                    sum += double(x.at(from)) * weight.at({i[0] % call.channels, 0, 0, a, b, c});
                    of_weight[tap] += double(x.at(from)) * dy.at(i);
                }
        right_y[i] = sum.rounded();
    });
    for (size_t i = 0; i < of_weight.size(); ++i) right_dweight.numbers[i] = of_weight[i].rounded();
    check("y", y, right_y), check("dweight", dweight, right_dweight);
    check_memory("x", x, false), check_memory("weight", weight, false), check_memory("dy", dy, false);
}

struct Entry {
    const char* name;
    void (*run)(int32_t threads, int32_t isa);
};
const Entry ENTRIES[] = {{"scan", scan_case},
                         {"mixer", mixer_case},
                         {"layer norm", layer_norm_case},
                         {"group norm", group_norm_case},
                         {"depthwise convolution", depthwise_conv_case}};

// As OpenMP's: so many threads at once, the caller one of them.
void threads_of_driver(void (*work)(void*), void* argument, unsigned count, unsigned) {
    std::vector<std::thread> others;
    for (unsigned i = 1; i < count; ++i) others.emplace_back(work, argument);
    work(argument);
    for (std::thread& thread : others) thread.join();
}

int64_t run_case(uint64_t seed, int64_t number) {
    std::seed_seq both{seed, uint64_t(number)};
    engine.seed(both);
    const int64_t entry =
        chance(0.4) ? 0 : between(0, int64_t(std::size(ENTRIES)) - 1);  // often scans
    const int32_t threads = int32_t(between(1, 5)), isa = int32_t(between(0, best_isa()));
    const bool borrowed = chance(0.3);
    selective_scan_use_team(borrowed ? threads_of_driver : nullptr);
    current.clear();
    describe("case %lld of seed %llu, instruction set %d, %d threads%s, ", (long long)number,
             (unsigned long long)seed, isa, threads, borrowed ? " of the driver" : "");
    ENTRIES[entry].run(threads, isa);
    return entry;
}

}  // namespace

int main(int count, char** arguments) {
    if (count < 3) return fprintf(stderr, "fuzz SEED SECONDS [FIRST CASE]\n"), 2;
    const uint64_t seed = strtoull(arguments[1], nullptr, 10);
    const double seconds = atof(arguments[2]);
#ifdef WITHOUT_SANITIZERS
    for (int kind : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT})
        std::signal(kind, [](int which) { report(), _Exit(128 + which); });
#else
    __sanitizer_set_death_callback(report);
#endif
    const auto start = std::chrono::steady_clock::now();
    std::array<int64_t, std::size(ENTRIES)> cases{};
    int64_t number = count > 3 ? atoll(arguments[3]) : 0;
    do ++cases[run_case(seed, number++)];
    while (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() <
           seconds);
    printf("seed %llu, instruction sets 0 to %d:", (unsigned long long)seed, best_isa());
    for (size_t i = 0; i < cases.size(); ++i)
        printf(" %lld of %s%s", (long long)cases[i], ENTRIES[i].name,
               i + 1 < cases.size() ? "," : "\n");
    return 0;
}
