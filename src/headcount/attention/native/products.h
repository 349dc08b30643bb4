/* Products of a matrix of rows with a matrix packed into panels of columns.
 *
 * Operands are made of 32-bit words along the dimension that is summed over: a float32, or two bfloat16 neighbours where
 * the processor multiplies such pairs. Rows lie one after the other, `a_stride` words apart. A panel holds PANEL columns,
 * word by word: panel[word][column]. So both kinds of word, and both tiles of AMX, read the same layout.
 */
#ifndef HEADCOUNT_PRODUCTS
#define HEADCOUNT_PRODUCTS

#include "vectors.h"

#define PANEL (2 * LANES)
/* Rows of a tile: with two vectors of columns, 16 (8) sums are enough to hide the latency of a multiplication and leave
 * registers for the operands. */
#define TILE (LANES == 8 ? 4 : 8)

#define DEFINE_PRODUCT(NAME, MULTIPLY_ADD)                                                                             \
    INLINE void NAME##_tile(float *c, int64_t c_stride, const uint32_t *a, int64_t a_stride, const uint32_t *b,        \
                            int64_t depth, int add) {                                                                  \
        floats sums[TILE][2];                                                                                          \
        _Pragma("GCC unroll 8") for (int i = 0; i < TILE; i++)                                                         \
            for (int j = 0; j < 2; j++) sums[i][j] = (floats){0};                                                      \
        for (int64_t k = 0; k < depth; k++) {                                                                          \
            const floats left = load(b + k * PANEL), right = load(b + k * PANEL + LANES);                              \
            _Pragma("GCC unroll 8") for (int i = 0; i < TILE; i++) {                                                   \
                const floats x = (floats)((words){0} + a[i * a_stride + k]);                                           \
                sums[i][0] = MULTIPLY_ADD(sums[i][0], x, left);                                                        \
                sums[i][1] = MULTIPLY_ADD(sums[i][1], x, right);                                                       \
            }                                                                                                          \
        }                                                                                                              \
        _Pragma("GCC unroll 8") for (int i = 0; i < TILE; i++)                                                         \
            for (int j = 0; j < 2; j++) {                                                                              \
                float *at = c + i * c_stride + j * LANES;                                                              \
                store(at, add ? load(at) + sums[i][j] : sums[i][j]);                                                   \
            }                                                                                                          \
    }                                                                                                                  \
    /* c[row][column] = (or, with `add`, +=) sum over `depth` words; rows a multiple of TILE, columns of PANEL. */     \
    static void NAME(float *c, int64_t c_stride, const uint32_t *a, int64_t a_stride, const uint32_t *b,               \
                     int64_t b_stride, int64_t rows, int64_t columns, int64_t depth, int add) {                        \
        for (int64_t j = 0; j < columns; j += PANEL, b += b_stride)                                                    \
            for (int64_t i = 0; i < rows; i += TILE)                                                                   \
                if (add) NAME##_tile(c + i * c_stride + j, c_stride, a + i * a_stride, a_stride, b, depth, 1);         \
                else NAME##_tile(c + i * c_stride + j, c_stride, a + i * a_stride, a_stride, b, depth, 0);             \
    }

#define MULTIPLY_ADD_FLOAT32(sum, x, y) ((sum) + (x) * (y))
DEFINE_PRODUCT(product_float32, MULTIPLY_ADD_FLOAT32)

#if defined(__AVX512BF16__) && LANES == 16
#define BFLOAT16_PAIRS 1
#define MULTIPLY_ADD_PAIRS(sum, x, y) ((floats)_mm512_dpbf16_ps((__m512)(sum), (__m512bh)(x), (__m512bh)(y)))
DEFINE_PRODUCT(product_pairs_avx512, MULTIPLY_ADD_PAIRS)
#else
#define BFLOAT16_PAIRS 0
#endif

/* AMX multiplies tiles of 16 rows of 16 pairs. Four sums of 16 x 16 use each tile that is loaded twice. */
#if BFLOAT16_PAIRS && defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define TILES 1
#define ROW_STEP 32
#define DEPTH_STEP 16

/* Linux gives tiles to a process that asks: ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA. */
static int tiles_allowed(void) {
#ifdef TILES_ALLOWED
    return TILES_ALLOWED;
#else
    static _Atomic int known; /* 1: not allowed, 2: allowed; threads that ask at the same time get the same answer */
    if (!known) known = 1 + (syscall(SYS_arch_prctl, 0x1023, 18) == 0);
    return known == 2;
#endif
}

static void product_pairs_tiles(float *c, int64_t c_stride, const uint32_t *a, int64_t a_stride, const uint32_t *b,
                                int64_t b_stride, int64_t rows, int64_t columns, int64_t depth, int add) {
    struct { uint8_t palette, start_row, reserved[14]; uint16_t row_bytes[16]; uint8_t rows[16]; } shape = {.palette = 1};
    for (int i = 0; i < 8; i++) shape.row_bytes[i] = 64, shape.rows[i] = 16;
    _tile_loadconfig(&shape);
    for (int64_t j = 0; j < columns; j += PANEL, b += b_stride)
        for (int64_t i = 0; i < rows; i += ROW_STEP) {
            float *upper = c + i * c_stride + j, *lower = upper + 16 * c_stride;
            if (add) {
                _tile_loadd(0, upper, 4 * c_stride);
                _tile_loadd(1, upper + 16, 4 * c_stride);
                _tile_loadd(2, lower, 4 * c_stride);
                _tile_loadd(3, lower + 16, 4 * c_stride);
            } else {
                _tile_zero(0);
                _tile_zero(1);
                _tile_zero(2);
                _tile_zero(3);
            }
            for (int64_t k = 0; k < depth; k += DEPTH_STEP) {
                _tile_loadd(4, a + i * a_stride + k, 4 * a_stride);
                _tile_loadd(5, a + (i + 16) * a_stride + k, 4 * a_stride);
                _tile_loadd(6, b + k * PANEL, 4 * PANEL);
                _tile_loadd(7, b + k * PANEL + 16, 4 * PANEL);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(0, upper, 4 * c_stride);
            _tile_stored(1, upper + 16, 4 * c_stride);
            _tile_stored(2, lower, 4 * c_stride);
            _tile_stored(3, lower + 16, 4 * c_stride);
        }
    _tile_release();
}
#else
#define TILES 0
#define ROW_STEP TILE
#define DEPTH_STEP 1
#endif

#if BFLOAT16_PAIRS
static void product_pairs(float *c, int64_t c_stride, const uint32_t *a, int64_t a_stride, const uint32_t *b,
                          int64_t b_stride, int64_t rows, int64_t columns, int64_t depth, int add) {
#if TILES
    if (tiles_allowed()) {
        product_pairs_tiles(c, c_stride, a, a_stride, b, b_stride, rows, columns, depth, add);
        return;
    }
#endif
    product_pairs_avx512(c, c_stride, a, a_stride, b, b_stride, rows, columns, depth, add);
}
#endif

#endif
