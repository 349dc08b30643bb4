/* Attention of every head of a layer, and what its weights and outputs are measured for, in one pass.
 *
 * A unit is one key-value head of one example. Its keys and values are packed once. A block is some queries of a unit, for
 * each of the query heads that share the keys: rows [query head][query]. A block meets a span of keys at a time: products
 * with the keys, softmax with a running maximum, products with the values, so that the scores never leave the cache.
 * What comes in is float32 or bfloat16; scores, sums and outputs are float32 until they are stored. Where the processor
 * multiplies pairs of bfloat16, the exponentials are rounded to bfloat16 for the product with the values, and only there.
 */
#include "products.h"

#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
#endif

#define LOG2_E 1.44269504f
#define LN_2 0.693147181f
/* Blocks and spans are multiples of these; tiles and panels divide them. */
#define BLOCK_STEP 8
#define SPAN_STEP 64
/* Words of a query and a key whose products are summed in one go: rounding errors grow with their number, and a head of 256
 * elements would round twice as much as plain float32 attention does. */
#define PART 64

struct strides {
    int64_t example, head, position; /* in elements; the elements of a position are neighbours */
};

/* One layer's call, filled in by compiled.py. Pointers may be null where it says so. */
struct attention {
    const void *query, *key, *value; /* [example, head, position, element] */
    struct strides query_strides, key_strides, value_strides;
    const uint8_t *mask; /* [example, query, key], 1 where a query may attend; null: the earlier keys if causal, or all */
    int64_t mask_example, mask_query;
    const float *sinks;   /* [head], one more logit; null: none */
    const float *factor;  /* [head, row, element]: R, for the norms of R o; null: none */
    const int64_t *first; /* [example]: the first real position */
    int64_t examples, heads, groups, queries, keys, dim, value_dim, factor_rows, causal, threads;
    int64_t block_rows, held_scores; /* rows of a block, about; and scores that a thread holds, about */
    float scale, softcap; /* softcap 0: none */
    void *output;         /* [example, query, head, element] */
    float *entropy, *first_token_weight, *output_norm, *contribution_norm; /* [example, head, query]; null: not wanted */
    float *value_norm;                                           /* [example, group, key]; null: not wanted */
    char *workspace;                                             /* attention_workspace() bytes */
};

/* Keys that a query may attend to: those from `from` to before `to`, all of them unless `holes`. */
struct limits {
    int32_t from, to, holes;
};

/* What is known of a row after some spans: the sum of exp(score - most), the sum of exp(score - most) (score - most), in
 * base 2, and the first key's score. */
struct row {
    float most, sum, mean, first;
};

struct plan {
    int64_t units, block, blocks, rows, span;
    int64_t depth, key_words;                    /* words of a query; of all keys, along which values are summed */
    int64_t panels, factor_panels;               /* of values; of R o */
    int64_t score_stride, output_stride;         /* floats from row to row */
    int64_t values, factor, limits, scratch;     /* where they begin in the workspace, in bytes; keys at 0 */
    int64_t scores, outputs, states, per_thread; /* the same in a thread's scratch; queries at 0 */
};

static int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
static int64_t at_least(int64_t x, int64_t y) { return x > y ? x : y; }
static int64_t at_most(int64_t x, int64_t y) { return x < y ? x : y; }

static struct plan plan(const struct attention *t, int per_word) {
    struct plan p;
    const int64_t group = t->heads / t->groups, padded_keys = round_up(t->keys, SPAN_STEP);
    p.units = t->examples * t->groups;
    p.block = at_most(at_least(t->block_rows / group / BLOCK_STEP, 1) * BLOCK_STEP, 64);
    p.blocks = round_up(t->queries, p.block) / p.block;
    p.rows = round_up(p.block * group, ROW_STEP);
    p.span = at_most(round_up(at_least(t->held_scores / p.rows, 1), SPAN_STEP), padded_keys);
    p.depth = round_up(round_up(t->dim, per_word) / per_word, per_word == 2 ? DEPTH_STEP : 1);
    p.key_words = padded_keys / per_word;
    p.panels = round_up(t->value_dim, PANEL) / PANEL;
    p.factor_panels = t->factor ? round_up(t->factor_rows, PANEL) / PANEL : 0;
    p.score_stride = at_least(p.span, p.factor_panels * PANEL) + 16; /* not a power of two: rows would share cache lines */
    p.output_stride = p.panels * PANEL;
    p.values = round_up(4 * p.units * padded_keys * p.depth, 64);
    p.factor = p.values + round_up(4 * p.units * p.key_words * p.output_stride, 64);
    p.limits = p.factor + round_up(4 * t->heads * p.factor_panels * PANEL * t->value_dim, 64);
    p.scratch = p.limits + round_up(t->mask ? t->examples * t->queries * (int64_t)sizeof(struct limits) : 0, 64);
    p.scores = round_up(4 * p.rows * p.depth, 64);
    p.outputs = p.scores + 4 * p.rows * p.score_stride;
    p.states = p.outputs + 4 * p.rows * p.output_stride;
    p.per_thread = p.states + round_up(p.rows * (int64_t)sizeof(struct row), 64);
    return p;
}

static struct limits limits_of(const struct attention *t, const struct plan *p, int64_t example, int64_t query) {
    if (t->mask) return ((const struct limits *)(t->workspace + p->limits))[example * t->queries + query];
    return (struct limits){0, t->causal ? query + 1 : t->keys, 0};
}

/* What the mask allows a query, once for all heads. */
static void scan_mask(const struct attention *t, const struct plan *p, int64_t i) {
    const uint8_t *allowed = t->mask + i / t->queries * t->mask_example + i % t->queries * t->mask_query;
    int64_t from = 0, to = t->keys, count = 0;
    while (from < to && !allowed[from]) from++;
    while (from < to && !allowed[to - 1]) to--;
    for (int64_t j = from; j < to; j++) count += allowed[j];
    ((struct limits *)(t->workspace + p->limits))[i] = (struct limits){from, to, count != to - from};
}

/* A head's factor: its rows become columns of panels. */
static void pack_factor(const struct attention *t, const struct plan *p, int64_t head) {
    uint32_t *to = (uint32_t *)(t->workspace + p->factor) + head * p->factor_panels * PANEL * t->value_dim;
    const float *from = t->factor + head * t->factor_rows * t->value_dim;
    memset(to, 0, 4 * p->factor_panels * PANEL * t->value_dim);
    for (int64_t row = 0; row < t->factor_rows; row++)
        for (int64_t k = 0; k < t->value_dim; k++)
            memcpy(to + row / PANEL * PANEL * t->value_dim + k * PANEL + row % PANEL, from + row * t->value_dim + k, 4);
}

/* scale · score, capped, in place. */
static void cap_scores(float *scores, int64_t from, int64_t to, float scale, float softcap) {
    for (int64_t j = from / LANES * LANES; j < to; j += LANES)
        store(scores + j, softcap * tanh_of(load(scores + j) * (scale / softcap)));
}

INLINE ints allowed_lanes(const uint8_t *allowed, int64_t j, int64_t from, int64_t to) {
    ints lanes = between(j, from, to);
    if (allowed)
        for (int i = 0; i < LANES; i++)
            if (lanes[i] && !allowed[j + i]) lanes[i] = 0;
    return lanes;
}

static float largest_score(const float *scores, const uint8_t *allowed, int64_t from, int64_t to) {
    floats most[4] = {splat(-INFINITY), splat(-INFINITY), splat(-INFINITY), splat(-INFINITY)};
    int64_t j = from / LANES * LANES;
    for (; j < to; j += LANES) {
        floats x = load(scores + j);
        if (allowed || j < from || j + LANES > to) x = choose(allowed_lanes(allowed, j, from, to), x, splat(-INFINITY));
        else if (j + 4 * LANES <= to) {
            for (int i = 1; i < 4; i++) most[i] = maximum(load(scores + j + i * LANES), most[i]);
            j += 3 * LANES;
        }
        most[0] = maximum(x, most[0]);
    }
    return largest(maximum(maximum(most[0], most[1]), maximum(most[2], most[3])));
}

/* After the last span: the row's measurements, and the factor that makes its sums of values an output. */
static float finish_row(const struct attention *t, struct row state, float factor, int64_t head, int64_t place) {
    if (state.mean != state.mean) state.sum = NAN; /* a NaN score; what became of its exponential is no witness */
    float shrink = 1;
    if (t->sinks) {
        const float sink = t->sinks[head] * LOG2_E, most = state.most * factor, top = sink > most ? sink : most;
        const float mine = exp2f(sink - top), fall = most - top;
        shrink = exp2f(fall);
        if (state.sum != 0) state.mean = shrink * (state.mean + state.sum * fall);
        state.mean += mine * (sink - top);
        state.sum = state.sum * shrink + mine;
    }
    const float reciprocal = state.sum == 0 ? 0 : 1 / state.sum;
    const float first = state.first == -INFINITY ? 0 : exp2f((state.first - state.most) * factor) * shrink;
    if (t->entropy) t->entropy[place] = state.sum == 0 ? 0 : logf(state.sum) - LN_2 * state.mean * reciprocal;
    if (t->first_token_weight) t->first_token_weight[place] = first * reciprocal;
    return reciprocal * shrink;
}

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(name) JOIN(name, ELEMENT_NAME)

#define ELEMENT float
#define ELEMENT_NAME float32
#define PER_WORD 1
#define to_float(x) (x)
INLINE void store_output_float32(float *to, floats x, int64_t count) { memcpy(to, &x, 4 * count); }
#include "block.h"
#undef ELEMENT
#undef ELEMENT_NAME
#undef PER_WORD
#undef to_float

#define ELEMENT bfloat16
#define ELEMENT_NAME bfloat16
#if BFLOAT16_PAIRS
#define PER_WORD 2
#define product_bfloat16 product_pairs
#else
#define PER_WORD 1
#define product_bfloat16 product_float32
#endif
INLINE void store_output_bfloat16(bfloat16 *to, floats x, int64_t count) {
    const halves narrow = to_bfloat16(x);
    memcpy(to, &narrow, 2 * count);
}
#include "block.h"

int64_t attention_bytes(void) { return sizeof(struct attention); }
int64_t attention_lanes(void) { return LANES; }
