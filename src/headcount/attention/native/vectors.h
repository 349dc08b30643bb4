/* Vectors of floats as wide as the processor's, in the extension that gcc and clang share, and the functions of them. */
#ifndef HEADCOUNT_VECTORS
#define HEADCOUNT_VECTORS

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>
#define LANES 16
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#define LANES 8
#else
#define LANES 4
#endif

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t bfloat16;
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

#define INLINE static inline __attribute__((always_inline))

INLINE floats load(const void *from) {
    floats x;
    memcpy(&x, from, sizeof x);
    return x;
}

INLINE void store(void *to, floats x) { memcpy(to, &x, sizeof x); }

INLINE floats splat(float x) { return x - (floats){0}; /* minus, so that -0 stays -0 */ }

/* a where the mask is all ones, b where it is 0. */
INLINE floats choose(ints mask, floats a, floats b) { return (floats)((mask & (ints)a) | (~mask & (ints)b)); }

/* The larger; b where either is NaN. */
INLINE floats maximum(floats a, floats b) {
#if LANES == 16
    return (floats)_mm512_max_ps((__m512)a, (__m512)b);
#elif LANES == 8
    return (floats)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return choose(a > b, a, b);
#endif
}

INLINE float largest(floats x) {
    float most = x[0];
    for (int i = 1; i < LANES; i++) most = x[i] > most ? x[i] : most;
    return most;
}

INLINE float total(floats x) {
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) x[i] += x[i + half];
    return x[0];
}

/* All ones in the lanes i with from <= at + i < to. */
INLINE ints between(int64_t at, int64_t from, int64_t to) {
    ints lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    return (lane >= (int32_t)(from - at)) & (lane < (int32_t)(to - at));
}

/* 2^x for -126 <= x <= 0, relative error 2e-7: a minimax polynomial on [-1/2, 1/2] that is exact at 0. NaN stays NaN. */
INLINE floats exp2_negative(floats x) {
    const float shift = 12582912.0f; /* 3 · 2^22: adding it leaves no bits for fractions */
    const floats shifted = x + shift, rest = x - (shifted - shift);
    floats power = rest * 0.00132647238f + 0.00967151299f;
    power = power * rest + 0.0555073358f;
    power = power * rest + 0.240222424f;
    power = power * rest + 0.693147004f;
    power = power * rest + 1.0f;
    return (floats)((words)power + ((words)shifted << 23)); /* unsigned: what overflows is meant to go */
}

/* tanh, absolute error 1e-7, relative near 0 (the polynomial is that of Cephes). */
INLINE floats tanh_of(floats x) {
    const floats square = x * x;
    floats small = square * -5.70498872745e-3f + 2.06390887954e-2f;
    small = small * square - 5.37397155531e-2f;
    small = small * square + 1.33314422036e-1f;
    small = small * square - 3.33332819422e-1f;
    small = small * square * x + x;
    const floats size = choose(x < 0, -x, x);
    const floats fall = exp2_negative(maximum(splat(-126.0f), size * -2.88539008f)); /* exp(-2 |x|) */
    const floats large = (1.0f - fall) / (1.0f + fall);
    return choose(size < 0.625f, small, choose(x < 0, -large, large));
}

INLINE float to_float(bfloat16 x) {
    const uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* To the nearest, ties to even. NaN stays NaN. */
INLINE halves to_bfloat16(floats x) {
#ifdef __AVX512BF16__
    return (halves)_mm512_cvtneps_pbh((__m512)x);
#else
    const words bits = (words)x, rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const words nan = (words)(x != x);
    return __builtin_convertvector((rounded & ~nan) | (0x7fc0u & nan), halves);
#endif
}

#endif
