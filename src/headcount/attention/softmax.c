/* Softmax of a block of attention scores in place, with what the attention weights are measured for.
 *
 * scores[unit][row][key] holds unscaled products q·k. A unit is one key-value head of one example. Its rows are the
 * queries first_query … first_query + rows / group - 1, for each of them the `group` query heads that share the keys.
 * Afterwards scores[unit][row][key] = exp(scale (q·k - max)), 0 where the query may not attend; dividing by the row's
 * sum is left to the far smaller output (scale_rows). Everything between load and store is float32.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t bfloat16;

static inline float as_float(uint32_t bits) {
    union { uint32_t bits; float value; } u = {.bits = bits};
    return u.value;
}

static inline uint32_t as_bits(float value) {
    union { float value; uint32_t bits; } u = {.value = value};
    return u.bits;
}

static inline float load_float32(float x) { return x; }
static inline float store_float32(float x) { return x; }
static inline float load_bfloat16(bfloat16 x) { return as_float((uint32_t)x << 16); }
/* To nearest; a tie goes away from zero, not to even. */
static inline bfloat16 store_bfloat16(float x) { return (bfloat16)((as_bits(x) + 0x8000u) >> 16); }

/* 2^x for x <= 0, relative error 2e-7 (minimax polynomial on [-1/2, 1/2] that is exact at 0). Nothing below 2^-125: subnormal numbers
 * are slow to compute with. */
static inline float exp2_negative(float x) {
    x = x < -125.0f ? -125.0f : x;
    float whole = rintf(x), rest = x - whole;
    float power = 0.00132647238f;
    power = power * rest + 0.00967151299f;
    power = power * rest + 0.0555073358f;
    power = power * rest + 0.240222424f;
    power = power * rest + 0.693147004f;
    power = power * rest + 1.0f;
    return as_float(as_bits(power) + ((uint32_t)(int32_t)whole << 23));
}

#define LOG2_E 1.44269504f
#define LN_2 0.693147181f

/* entropy = ln(sum) - E[scale (q·k - max)], in base 2 until the end. */
#define SOFTMAX(NAME, TYPE, LOAD, STORE)                                                                              \
    void NAME(TYPE *scores, int64_t units, int64_t rows, int64_t keys, int64_t group, int64_t first_query,            \
              int causal, const uint8_t *mask, int64_t mask_example, int64_t mask_query, int64_t first_unit,          \
              int64_t units_per_example, const int64_t *first_key, float scale, float *reciprocal_sum,                \
              float *entropy, float *first_weight, int64_t measured_unit, int threads) {                              \
        const float factor = scale * LOG2_E;                                                                          \
        _Pragma("omp parallel for schedule(static) num_threads(threads) if (threads > 1)")                            \
        for (int64_t i = 0; i < units * rows; i++) {                                                                  \
            const int64_t unit = first_unit + i / rows, row = i % rows, query = first_query + row / group;            \
            const int64_t example = unit / units_per_example, first = first_key[example];                             \
            const uint8_t *allowed = mask ? mask + example * mask_example + query * mask_query : 0;                   \
            const int64_t seen = causal && query < keys ? query + 1 : keys;                                           \
            TYPE *x = scores + i * keys;                                                                              \
            float most = -INFINITY, sum = 0, mean = 0, weight = 0;                                                    \
            if (allowed) {                                                                                            \
                _Pragma("omp simd reduction(max : most)")                                                             \
                for (int64_t j = 0; j < seen; j++) {                                                                  \
                    const float value = allowed[j] ? LOAD(x[j]) : -INFINITY;                                          \
                    most = value > most ? value : most;                                                               \
                }                                                                                                     \
            } else {                                                                                                  \
                _Pragma("omp simd reduction(max : most)")                                                             \
                for (int64_t j = 0; j < seen; j++) {                                                                  \
                    const float value = LOAD(x[j]);                                                                   \
                    most = value > most ? value : most;                                                               \
                }                                                                                                     \
            }                                                                                                         \
            if (most == -INFINITY) most = 0; /* a query that may attend to nothing */                                 \
            if (first < seen && (!allowed || allowed[first])) weight = exp2_negative((LOAD(x[first]) - most) * factor); \
            if (allowed) {                                                                                            \
                _Pragma("omp simd reduction(+ : sum, mean)")                                                          \
                for (int64_t j = 0; j < seen; j++) {                                                                  \
                    const float below = allowed[j] ? (LOAD(x[j]) - most) * factor : 0;                                \
                    const float term = allowed[j] ? exp2_negative(below) : 0;                                         \
                    sum += term;                                                                                      \
                    mean += term * below;                                                                             \
                    x[j] = STORE(term);                                                                               \
                }                                                                                                     \
            } else {                                                                                                  \
                _Pragma("omp simd reduction(+ : sum, mean)")                                                          \
                for (int64_t j = 0; j < seen; j++) {                                                                  \
                    const float below = (LOAD(x[j]) - most) * factor;                                                 \
                    const float term = exp2_negative(below);                                                          \
                    sum += term;                                                                                      \
                    mean += term * below;                                                                             \
                    x[j] = STORE(term);                                                                               \
                }                                                                                                     \
            }                                                                                                         \
            memset(x + seen, 0, (keys - seen) * sizeof(TYPE));                                                        \
            const int64_t place = unit * measured_unit + first_query * group + row;                                   \
            const float reciprocal = sum == 0 ? 0 : 1 / sum; /* NaN stays NaN */                                      \
            reciprocal_sum[i] = reciprocal;                                                                           \
            entropy[place] = sum == 0 ? 0 : logf(sum) - LN_2 * mean * reciprocal;                                     \
            first_weight[place] = weight * reciprocal;                                                                \
        }                                                                                                             \
    }

SOFTMAX(softmax_float32, float, load_float32, store_float32)
SOFTMAX(softmax_bfloat16, bfloat16, load_bfloat16, store_bfloat16)

/* output[example][query][head] = block[unit][row] * factors[unit][row]: the rows of a block, divided by their sums, to
 * their places in the layer's output. */
#define SCALE_ROWS(NAME, TYPE, LOAD, STORE)                                                                           \
    void NAME(const TYPE *block, const float *factors, TYPE *output, int64_t units, int64_t rows, int64_t width,      \
              int64_t group, int64_t first_query, int64_t queries, int64_t first_unit, int64_t units_per_example,     \
              int threads) {                                                                                          \
        _Pragma("omp parallel for schedule(static) num_threads(threads) if (threads > 1)")                            \
        for (int64_t i = 0; i < units * rows; i++) {                                                                  \
            const int64_t unit = first_unit + i / rows, row = i % rows, query = first_query + row / group;            \
            const int64_t example = unit / units_per_example;                                                         \
            const int64_t head = unit % units_per_example * group + row % group;                                      \
            const TYPE *from = block + i * width;                                                                     \
            TYPE *to = output + ((example * queries + query) * units_per_example * group + head) * width;             \
            for (int64_t j = 0; j < width; j++) to[j] = STORE(LOAD(from[j]) * factors[i]);                            \
        }                                                                                                             \
    }

SCALE_ROWS(scale_rows_float32, float, load_float32, store_float32)
SCALE_ROWS(scale_rows_bfloat16, bfloat16, load_bfloat16, store_bfloat16)
