// Copies between the caller's tensors and a tile. Compiled once per instruction set, see
// kernels-inl.h.
#ifndef TILES_INL_H
#define TILES_INL_H

#include <cstdint>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "vector-inl.h"

namespace {
namespace INSTRUCTION_SET {

// from (row by row, 4 x 4) to its transpose
inline void transpose_4x4(const float* from, int64_t from_row, float* to, int64_t to_row) {
#if defined(__x86_64__)
    __m128 a = _mm_loadu_ps(from), b = _mm_loadu_ps(from + from_row);
    __m128 c = _mm_loadu_ps(from + 2 * from_row), d = _mm_loadu_ps(from + 3 * from_row);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(to, a), _mm_storeu_ps(to + to_row, b);
    _mm_storeu_ps(to + 2 * to_row, c), _mm_storeu_ps(to + 3 * to_row, d);
#else
    const V a = load(from), b = load(from + from_row);
    const V c = load(from + 2 * from_row), d = load(from + 3 * from_row);
    const V ab = pick<0, 4, 1, 5>(a, b), cd = pick<0, 4, 1, 5>(c, d);  // of columns 0 and 1
    store(to, pick<0, 1, 4, 5>(ab, cd)), store(to + to_row, pick<2, 3, 6, 7>(ab, cd));
    const V ab_2 = pick<2, 6, 3, 7>(a, b), cd_2 = pick<2, 6, 3, 7>(c, d);
    store(to + 2 * to_row, pick<0, 1, 4, 5>(ab_2, cd_2));
    store(to + 3 * to_row, pick<2, 3, 6, 7>(ab_2, cd_2));
#endif
}

// tile[t][c] = x[c * by_channel + rows.at[t]], for t < tokens and c < channels; 0 up to `lanes`.
template <class AnyRows>
inline void gather(const float* x, int64_t by_channel, const AnyRows& rows, int tokens, int channels,
                   int lanes, float* tile, int row) {
    int whole = 0;  // channels that the fast paths have copied
    if (by_channel == 1) {
        whole = channels / W * W;
        for (int t = 0; t < tokens; ++t)
            for (int c = 0; c < whole; c += W) store(tile + t * row + c, load(x + rows.at[t] + c));
    } else if (rows.adjacent) {
        whole = channels / 4 * 4;
        for (int c = 0; c < whole; c += 4) {
            const float* from = x + rows.at[0] + c * by_channel;
            int t = 0;
            for (; t + 4 <= tokens; t += 4)
                transpose_4x4(from + t, by_channel, tile + t * row + c, row);
            for (; t < tokens; ++t)
                for (int i = 0; i < 4; ++i) tile[t * row + c + i] = from[i * by_channel + t];
        }
    }
    for (int t = 0; t < tokens && whole < lanes; ++t) {
        for (int c = whole; c < channels; ++c) tile[t * row + c] = x[c * by_channel + rows.at[t]];
        for (int c = channels; c < lanes; ++c) tile[t * row + c] = 0;
    }
}

template <class AnyRows>
inline void scatter(const float* tile, int row, int tokens, int channels, float* x,
                    int64_t by_channel, const AnyRows& rows) {
    int whole = 0;
    if (by_channel == 1) {
        whole = channels / W * W;
        for (int t = 0; t < tokens; ++t)
            for (int c = 0; c < whole; c += W) store(x + rows.at[t] + c, load(tile + t * row + c));
    } else if (rows.adjacent) {
        whole = channels / 4 * 4;
        for (int c = 0; c < whole; c += 4) {
            float* to = x + rows.at[0] + c * by_channel;
            int t = 0;
            for (; t + 4 <= tokens; t += 4)
                transpose_4x4(tile + t * row + c, row, to + t, by_channel);
            for (; t < tokens; ++t)
                for (int i = 0; i < 4; ++i) to[i * by_channel + t] = tile[t * row + c + i];
        }
    }
    for (int t = 0; t < tokens && whole < channels; ++t)
        for (int c = whole; c < channels; ++c) x[c * by_channel + rows.at[t]] = tile[t * row + c];
}

}  // namespace INSTRUCTION_SET
}  // namespace

#endif  // TILES_INL_H
