// Vectors of floats and their arithmetic. Compiled once per instruction set, see kernels-inl.h.
#ifndef VECTOR_INL_H
#define VECTOR_INL_H

#include <cstdint>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifndef INSTRUCTION_SET  // nobody has chosen one
#define INSTRUCTION_SET portable
#define W 4
#endif

#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

namespace {
namespace INSTRUCTION_SET {

// Vector registers, for what is to stay in them.
#if defined(__aarch64__)
constexpr int REGISTERS = 32;
#else
constexpr int REGISTERS = W == 16 ? 32 : 16;
#endif

typedef float V __attribute__((vector_size(4 * W)));
typedef uint32_t U __attribute__((vector_size(4 * W)));
typedef float Loose __attribute__((vector_size(4 * W), may_alias, aligned(4)));

inline V load(const float* p) { return *(const Loose*)p; }
inline void store(float* p, V x) { *(Loose*)p = x; }
inline V splat(float x) { return x - V{}; }

constexpr float LOG2E = 1.44269504f;

// ---- exp and its kin ---------------------------------------------------------------------------

// The greater and the lesser; x where either is NaN.
#if W == 16
inline V at_least(float low, V x) { return (V)_mm512_max_ps((__m512)splat(low), (__m512)x); }
inline V at_most(float high, V x) { return (V)_mm512_min_ps((__m512)splat(high), (__m512)x); }
#elif W == 8
inline V at_least(float low, V x) { return (V)_mm256_max_ps((__m256)splat(low), (__m256)x); }
inline V at_most(float high, V x) { return (V)_mm256_min_ps((__m256)splat(high), (__m256)x); }
#elif defined(__aarch64__)
inline V at_least(float low, V x) { return (V)vmaxq_f32((float32x4_t)splat(low), (float32x4_t)x); }
inline V at_most(float high, V x) { return (V)vminq_f32((float32x4_t)splat(high), (float32x4_t)x); }
#else
inline V at_least(float low, V x) { return low > x ? splat(low) : x; }
inline V at_most(float high, V x) { return high < x ? splat(high) : x; }
#endif

inline V minus_abs(V x) { return (V)((U)x | 0x80000000u); }

// 2^f for |f| <= 1/2, minimax with value 1 at 0 (a decay near 1 must not be biased).
inline V exp2_fraction(V f) {
    V p = f * 1.53531539e-4f + 1.33991323e-3f;
    p = p * f + 9.61843971e-3f;
    p = p * f + 5.55033199e-2f;
    p = p * f + 0.240226477f;
    p = p * f + 0.693147182f;
    return p * f + 1.0f;
}

constexpr float ROUNDER = 12582912.0f;  // 1.5 * 2^23: x + ROUNDER has round(x) in its low bits

inline V shift_exponent(V p, V rounded) { return (V)((U)p + ((U)rounded << 23)); }

// 2^x: exactly 0 below -127, infinite from 128. Of a NaN whose low bits are not 0, anything. For
// the forward pass: those of a NaN in A are 0, and one in delta is in the state by delta u too.
inline V exp2(V x) {
#if W == 16  // AVX-512 scales by a power of two, and saturates, in one instruction
    V r = (V)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return (V)_mm512_scalef_ps((__m512)exp2_fraction(x - r), (__m512)r);
#else
    x = at_most(128.0f, at_least(-127.0f, x));
    V rounded = x + ROUNDER;
    return shift_exponent(exp2_fraction(x - (rounded - ROUNDER)), rounded);
#endif
}

// The same but infinite from 127.5, and NaN of every NaN. For the backward pass.
inline V exp2_or_nan(V x) {
#if W == 16
    return exp2(x);
#else
    x = at_most(128.0f, at_least(-127.0f, x));
    V rounded = x + (ROUNDER + 127.0f);
    return exp2_fraction(x - (rounded - (ROUNDER + 127.0f))) * (V)((U)rounded << 23);
#endif
}

// e^x to float32's accuracy however large |x| is, for -87.3 <= x <= 88.3.
inline V exp_within(V x) {
#if W == 16
    V r = (V)_mm512_roundscale_ps((__m512)(x * LOG2E), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    V rounded = x * LOG2E + ROUNDER;
    V r = rounded - ROUNDER;
#endif
    V f = (x - r * 0.693359375f) - r * -2.12194440e-4f;  // ln 2 in two parts
    V p = f * 1.38434660e-3f + 8.37431649e-3f;           // as exp2_fraction, in powers of f ln 2
    p = p * f + 4.16680122e-2f;
    p = p * f + 0.166664298f;
    p = p * f + 0.499999938f;
    p = p * f + 1.0f;
    p = p * f + 1.0f;
#if W == 16
    return (V)_mm512_scalef_ps((__m512)p, (__m512)r);
#else
    return shift_exponent(p, rounded);
#endif
}

inline V exp(V x) { return exp_within(at_most(88.3f, at_least(-87.3f, x))); }

inline V exp_of_minus_abs(V x) { return exp_within(at_least(-87.3f, minus_abs(x))); }

// max(x, 0) + log(1 + w), w = e^-|x|; log(1 + w) = 2 atanh(w / (2 + w))
inline V softplus(V x, V w) {
    V s = w / (w + 2.0f), q = s * s;
    V p = q * 0.280119926f + 0.280018032f;
    p = p * q + 0.400215268f;
    p = p * q + 0.666664184f;
    p = p * q + 2.0f;
    return at_least(0.0f, x) + s * p;
}
inline V softplus(V x) { return softplus(x, exp_of_minus_abs(x)); }

inline V sigmoid(V x) { return 1.0f / (1.0f + exp(-x)); }
inline V sigmoid(V x, V w) { return (x < 0.0f ? w : splat(1.0f)) / (w + 1.0f); }  // w as above

// ---- sums over lanes ---------------------------------------------------------------------------

// Lanes of a, and from W on those of b.
template <int... L>
inline V pick(V a, V b) {
#ifdef __clang__
    return __builtin_shufflevector(a, b, L...);
#else
    return __builtin_shuffle(a, b, U{L...});
#endif
}

template <int K, int... L>
inline V add_pairs(V a, V b, std::integer_sequence<int, L...>) {
    // Lane L of the first term is a's where bit K of L is clear, else b's lane L - K.
    return pick<(L & K ? W + L - K : L)...>(a, b) + pick<(L & K ? W + L : L + K)...>(a, b);
}

template <int K>
inline void sum_lanes_from(V* v) {
    if constexpr (K < W) {
        UNROLL for (int i = 0; i < W / K; i += 2)
            v[i / 2] = add_pairs<K>(v[i], v[i + 1], std::make_integer_sequence<int, W>());
        sum_lanes_from<2 * K>(v);
    }
}

// Lane i of the result is the sum of v[i]'s lanes. Overwrites v.
inline V sum_lanes(V* v) {
    sum_lanes_from<1>(v);
    return v[0];
}

// ---- sums in double ----------------------------------------------------------------------------

constexpr int HALF = W / 2;
typedef float Half __attribute__((vector_size(4 * HALF)));
typedef float LooseHalf __attribute__((vector_size(4 * HALF), may_alias, aligned(4)));
typedef double Wide __attribute__((vector_size(8 * HALF)));
typedef double LooseWide __attribute__((vector_size(8 * HALF), may_alias, aligned(8)));

inline Wide widen(const float* p) {
#if defined(__aarch64__)  // one instruction, whatever a compiler makes of the other
    return (Wide)vcvt_f64_f32(vld1_f32(p));
#else
    return __builtin_convertvector((Half) * (const LooseHalf*)p, Wide);
#endif
}
inline void add_to(double* p, Wide x) { *(LooseWide*)p = *(LooseWide*)p + x; }

}  // namespace INSTRUCTION_SET
}  // namespace

#endif  // VECTOR_INL_H
