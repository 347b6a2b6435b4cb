// Products of small matrices in cache by the tiles of Intel's AMX: factors are rounded to bfloat16,
// sums are float32. Where the processor has no tiles, nobody may call these.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>
#if defined(__x86_64__) && defined(__linux__) && __has_include(<amxbf16intrin.h>)
#define HAS_TILES
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "sizes.h"

namespace {

// A row of a right factor's tile: two numbers of the depth of each of 16 columns.
struct alignas(64) Line {
    uint16_t at[16][2];
};

// The nearest bfloat16, of two the even one; NaN stays NaN.
inline uint16_t to_bfloat16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const uint32_t nearest = bits + 0x7fff + (bits >> 16 & 1);
    return uint16_t((x != x ? bits | 0x400000 : nearest) >> 16);
}

inline int64_t lines_of(int64_t depth) { return ceil_div(depth, 32) * 16; }

// A weight for multiply_tiles(): [16 columns][lines], 0 where there is none.
inline std::vector<Line> in_lines(int64_t columns, int64_t depth, const float* weight,
                                  int64_t by_column, int64_t by_depth) {
    std::vector<Line> lines(ceil_div(columns, 16) * lines_of(depth));
    for (int64_t c = 0; c < columns; ++c)
        for (int64_t k = 0; k < depth; ++k)
            lines[c / 16 * lines_of(depth) + k / 2].at[c % 16][k % 2] =
                to_bfloat16(weight[c * by_column + k * by_depth]);
    return lines;
}

#ifdef HAS_TILES

#define WITH_TILES __attribute__((target("avx512f,avx512bw,amx-tile,amx-bf16")))

// Whether processor and system have tiles for this process; asks the system once.
bool has_tiles() {
    static const bool has = [] {
        unsigned a, b, c, d;
        if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
        const bool avx512 = (b >> 16 & 1) && (b >> 30 & 1), bf16 = d >> 22 & 1, tile = d >> 24 & 1;
        constexpr long PERMIT = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM
        return avx512 && bf16 && tile && syscall(SYS_arch_prctl, PERMIT, TILE_DATA) == 0;
    }();
    return has;
}

// While it lives, the thread's eight tiles are of 16 rows of 64 bytes; then they are as they were:
// other libraries, as oneDNN, may count on theirs.
class ThreadsTiles {
    struct alignas(64) Shapes {
        uint8_t palette, start, unused[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    };
    bool used;
    Shapes before = {};

public:
    WITH_TILES explicit ThreadsTiles(bool use) : used(use) {
        if (!used) return;
        Shapes shapes = {};
        shapes.palette = 1;
        for (int tile = 0; tile < 8; ++tile) shapes.bytes[tile] = 64, shapes.rows[tile] = 16;
        // Compilers take it that these instructions see no more than the first bytes.
        asm volatile("" ::"r"(&before), "r"(&shapes) : "memory");
        _tile_storeconfig(&before);
        _tile_loadconfig(&shapes);
        asm volatile("" ::"r"(&before), "r"(&shapes) : "memory");
    }
    ThreadsTiles(const ThreadsTiles&) = delete;
    WITH_TILES ~ThreadsTiles() {
        if (!used) return;
        asm volatile("" ::"r"(&before) : "memory");
        if (before.palette)
            _tile_loadconfig(&before);
        else
            _tile_release();
    }
};

// 32 rows, 16 columns or (WIDE) 32. The right factor's next 16 columns are `lines` further on.
template <bool WIDE>
WITH_TILES void tile_block(int64_t lines, const uint16_t* a, const Line* b, float* to, int64_t row,
                           bool adds) {
    const int64_t a_bytes = 4 * lines, bytes = 4 * row;
    const uint16_t* lower = a + 32 * lines;
    float* low = to + 16 * row;
    asm volatile("" ::: "memory");  // nor that the tiles' loads read memory
    if (adds) {
        _tile_loadd(0, to, bytes);
        _tile_loadd(1, low, bytes);
        if (WIDE) {
            _tile_loadd(2, to + 16, bytes);
            _tile_loadd(3, low + 16, bytes);
        }
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t k = 0; k < lines; k += 16) {
        _tile_loadd(4, a + 2 * k, a_bytes);
        _tile_loadd(5, lower + 2 * k, a_bytes);
        _tile_loadd(6, b + k, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 5, 6);
        if (WIDE) {
            _tile_loadd(7, b + lines + k, 64);
            _tile_dpbf16ps(2, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, to, bytes);
    _tile_stored(1, low, bytes);
    if (WIDE) {
        _tile_stored(2, to + 16, bytes);
        _tile_stored(3, low + 16, bytes);
    }
    asm volatile("" ::: "memory");
}

// to = a b, or to += a b, of a weight in_lines(). Columns up to a multiple of 16 are read and
// written. `rounded` is memory for ceil(rows / 32) * 32 rows of 2 lines_of(depth) numbers.
WITH_TILES inline void multiply_tiles(int64_t rows, int64_t columns, int64_t depth, const float* a,
                                      int64_t a_row, const Line* b, float* to, int64_t row, bool adds,
                                      uint16_t* rounded) {
    const int64_t lines = lines_of(depth);
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t k = 0; k < depth; ++k) rounded[i * 2 * lines + k] = to_bfloat16(a[i * a_row + k]);
        std::fill(rounded + i * 2 * lines + depth, rounded + (i + 1) * 2 * lines, uint16_t(0));
    }
    alignas(64) float rest[32 * 32];  // of the last rows, whose block is larger than they are
    for (int64_t c = 0; c < columns; c += 32, b += 2 * lines) {
        const bool wide = columns - c > 16;
        for (int64_t i = 0; i < rows; i += 32) {
            const int64_t count = std::min<int64_t>(32, rows - i), bytes = wide ? 128 : 64;
            float* at = to + i * row + c;
            const uint16_t* from = rounded + i * 2 * lines;
            auto block = [&](float* where, int64_t step) {
                wide ? tile_block<true>(lines, from, b, where, step, adds)
                     : tile_block<false>(lines, from, b, where, step, adds);
            };
            if (count == 32) {
                block(at, row);
                continue;
            }
            for (int64_t r = 0; adds && r < count; ++r) std::memcpy(rest + 32 * r, at + r * row, bytes);
            block(rest, 32);
            for (int64_t r = 0; r < count; ++r) std::memcpy(at + r * row, rest + 32 * r, bytes);
        }
    }
}

#else

bool has_tiles() { return false; }

struct ThreadsTiles {
    explicit ThreadsTiles(bool) {}
};

inline void multiply_tiles(int64_t, int64_t, int64_t, const float*, int64_t, const Line*, float*,
                           int64_t, bool, uint16_t*) {}

#endif

}  // namespace
