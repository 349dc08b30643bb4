/* The AMX instructions that the kernel uses, in C, so that its code for them runs on any processor with AVX-512. */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define __AMX_TILE__ 1
#define __AMX_BF16__ 1

static _Thread_local struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shape;
static _Thread_local uint8_t tiles[8][16][64];

static inline void tile_loadconfig(const void *shape) {
    memcpy(&tile_shape, shape, 64);
    memset(tiles, 0, sizeof tiles);
}
static inline void tile_release(void) { memset(&tile_shape, 0, 64); }
static inline void tile_zero(int tile) { memset(tiles[tile], 0, 1024); }
static inline void tile_load(int tile, const void *from, int64_t stride) {
    tile_zero(tile);
    for (int i = 0; i < tile_shape.rows[tile]; i++)
        memcpy(tiles[tile][i], (const char *)from + i * stride, tile_shape.row_bytes[tile]);
}
static inline void tile_store(int tile, void *to, int64_t stride) {
    for (int i = 0; i < tile_shape.rows[tile]; i++)
        memcpy((char *)to + i * stride, tiles[tile][i], tile_shape.row_bytes[tile]);
}
static inline float tile_element(uint16_t x) {
    const uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
/* sum[m][n] += a[m][2k] b[k][2n] + a[m][2k + 1] b[k][2n + 1] */
static inline void tile_multiply(int sum, int a, int b) {
    for (int m = 0; m < tile_shape.rows[sum]; m++)
        for (int k = 0; k < tile_shape.row_bytes[a] / 4; k++)
            for (int n = 0; n < tile_shape.row_bytes[sum] / 4; n++) {
                uint16_t x[2], y[2];
                float so_far;
                memcpy(x, &tiles[a][m][4 * k], 4);
                memcpy(y, &tiles[b][k][4 * n], 4);
                memcpy(&so_far, &tiles[sum][m][4 * n], 4);
                so_far += tile_element(x[0]) * tile_element(y[0]) + tile_element(x[1]) * tile_element(y[1]);
                memcpy(&tiles[sum][m][4 * n], &so_far, 4);
            }
}

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig tile_loadconfig
#define _tile_release tile_release
#define _tile_zero tile_zero
#define _tile_loadd tile_load
#define _tile_stored tile_store
#define _tile_dpbf16ps tile_multiply
