// Products of small matrices in cache. Compiled once per instruction set, see kernels-inl.h.
#ifndef PRODUCTS_INL_H
#define PRODUCTS_INL_H

#include <cstdint>
#include <type_traits>

#include "vector-inl.h"

namespace {
namespace INSTRUCTION_SET {

// Rows of a block whose sums, of 2 W columns each, stay in registers.
constexpr int BLOCK = REGISTERS == 32 ? 8 : 6;

// A factor, from its first element: a left one walks its rows and the depth that is summed over, a
// right one panels of 2 W columns and the depth; columns of a panel are next to each other.
struct Left {
    const float* data;
    int64_t row, depth;
};
struct Right {
    const float* data;
    int64_t panel, depth;
};

template <int ROWS, int VECTORS>
inline void block_product(int64_t depth, Left a, const float* b, int64_t b_depth, float* to,
                          int64_t row, bool adds) {
    V sums[ROWS][VECTORS] = {};
    for (int64_t k = 0; k < depth; ++k, a.data += a.depth, b += b_depth) {
        V right[VECTORS];
        UNROLL for (int j = 0; j < VECTORS; ++j) right[j] = load(b + j * W);
        UNROLL for (int i = 0; i < ROWS; ++i) {
            const V left = splat(a.data[i * a.row]);
            UNROLL for (int j = 0; j < VECTORS; ++j) sums[i][j] += left * right[j];
        }
    }
    UNROLL for (int i = 0; i < ROWS; ++i)
        UNROLL for (int j = 0; j < VECTORS; ++j) {
            float* at = to + i * row + j * W;
            store(at, adds ? load(at) + sums[i][j] : sums[i][j]);
        }
}

template <int VECTORS>
inline void panel_product(int64_t rows, int64_t depth, Left a, const float* b, int64_t b_depth,
                          float* to, int64_t row, bool adds) {
    auto blocks = [&](auto count) {
        constexpr int ROWS = decltype(count)::value;
        for (; rows >= ROWS; rows -= ROWS, a.data += ROWS * a.row, to += ROWS * row)
            block_product<ROWS, VECTORS>(depth, a, b, b_depth, to, row, adds);
    };
    blocks(std::integral_constant<int, BLOCK>());
    blocks(std::integral_constant<int, 4>());
    blocks(std::integral_constant<int, 2>());
    blocks(std::integral_constant<int, 1>());
}

// to = a b, or to += a b. Columns up to a multiple of W are read and written.
inline void multiply(int64_t rows, int64_t columns, int64_t depth, Left a, Right b, float* to,
                     int64_t row, bool adds = false) {
    for (int64_t c = 0; c < columns; c += 2 * W, b.data += b.panel) {
        if (columns - c > W)
            panel_product<2>(rows, depth, a, b.data, b.depth, to + c, row, adds);
        else
            panel_product<1>(rows, depth, a, b.data, b.depth, to + c, row, adds);
    }
}

}  // namespace INSTRUCTION_SET
}  // namespace

#endif  // PRODUCTS_INL_H
