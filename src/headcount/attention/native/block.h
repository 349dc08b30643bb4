/* The part of attention.c that depends on the type of queries, keys and values; included once for each.
 *
 * ELEMENT is that type, ELEMENT_NAME its name. PER_WORD of them make an operand of a product: two bfloat16 where the
 * processor multiplies pairs of them, else one; a bfloat16 alone becomes a float32. PRODUCT multiplies such operands.
 */

/* An operand made of *x, or with two to a word of *x and *y. */
INLINE uint32_t NAME(operand)(const ELEMENT *x, const ELEMENT *y) {
    if (sizeof(ELEMENT) == 4) {
        uint32_t word;
        memcpy(&word, x, 4);
        return word;
    }
    return PER_WORD == 2 ? (uint32_t)*x | (uint32_t)*y << 16 : (uint32_t)*x << 16;
}

/* A query or key: operand k to to[k · step]. */
static void NAME(pack_row)(uint32_t *to, int64_t step, const ELEMENT *row, int64_t elements) {
    int64_t k = 0;
    for (; (k + 1) * PER_WORD <= elements; k++, row += PER_WORD) to[k * step] = NAME(operand)(row, row + PER_WORD - 1);
    if (k * PER_WORD < elements) to[k * step] = NAME(operand)(row, row) & 0xffff;
}

/* SPAN_STEP keys and values of a unit into the workspace, from `key` on; 0 beyond the last. */
static void NAME(pack)(const struct attention *t, const struct plan *p, int64_t unit, int64_t key) {
    const int64_t example = unit / t->groups, group = unit % t->groups, end = at_most(key + SPAN_STEP, t->keys);
    const ELEMENT *keys = (const ELEMENT *)t->key + example * t->key_strides.example + group * t->key_strides.head;
    uint32_t *to = (uint32_t *)t->workspace + (unit * p->key_words * PER_WORD + key) * p->depth;
    memset(to, 0, 4 * SPAN_STEP * p->depth);
    for (int64_t j = key; j < end; j++)
        NAME(pack_row)(to + (j - key) / PANEL * PANEL * p->depth + j % PANEL, PANEL, keys + j * t->key_strides.position, t->dim);

    const ELEMENT *values = (const ELEMENT *)t->value + example * t->value_strides.example + group * t->value_strides.head;
    to = (uint32_t *)(t->workspace + p->values) + unit * p->key_words * p->output_stride;
    for (int64_t column = 0; column < p->output_stride; column += PANEL, to += p->key_words * PANEL) {
        const int64_t columns = at_most(PANEL, t->value_dim - column);
        memset(to + key / PER_WORD * PANEL, 0, 4 * SPAN_STEP / PER_WORD * PANEL);
        for (int64_t j = key; j < end; j += PER_WORD) {
            const ELEMENT *x = values + j * t->value_strides.position + column;
            const ELEMENT *y = j + 1 < end ? x + t->value_strides.position : x;
            const uint32_t both = PER_WORD == 1 || j + 1 < end ? ~0u : 0xffff;
            for (int64_t i = 0; i < columns; i++) to[j / PER_WORD * PANEL + i] = NAME(operand)(x + i, y + i) & both;
        }
    }
    if (t->value_norm)
        for (int64_t j = key; j < end; j++) {
            float square = 0;
            for (int64_t i = 0; i < t->value_dim; i++) {
                const float x = to_float(values[j * t->value_strides.position + i]);
                square += x * x;
            }
            t->value_norm[unit * t->keys + j] = sqrtf(square);
        }
}

INLINE void NAME(store_operands)(float *scores, int64_t j, floats x) {
    if (PER_WORD == 1) store(scores + j, x);
    else {
        const halves narrow = to_bfloat16(x);
        memcpy((char *)scores + 2 * j, &narrow, sizeof narrow);
    }
}

/* A row's scores of a span become exp(score - most) in place, operands of the product with the values: never wider than
 * the scores, so never ahead of those still to be read. 0 where the query may not attend. Returns the factor by which what
 * the row has summed so far shrinks. */
static float NAME(exponentials)(float *scores, const uint8_t *allowed, int64_t from, int64_t to, int64_t width,
                                float factor, struct row *state) {
    float shrink = 1;
    int64_t j = 0;
    if (from < to) {
        const float before = state->most, here = largest_score(scores, allowed, from, to);
        const float most = here > before ? here : before;
        const float base = most == -INFINITY ? 0 : most; /* nothing allowed, or nothing but NaN, which must go on */
        if (before > -INFINITY && most > before) {
            const float fall = (before - most) * factor;
            shrink = exp2f(fall);
            state->mean = shrink * (state->mean + state->sum * fall);
            state->sum *= shrink;
        }
        state->most = most;
        floats sum = {0}, mean = {0};
        for (; j + LANES <= from; j += LANES) NAME(store_operands)(scores, j, (floats){0});
        for (; j < to; j += LANES) {
            const floats below = maximum(splat(-126.0f), (load(scores + j) - base) * factor);
            floats term = exp2_negative(below);
            if (allowed || j < from || j + LANES > to) {
                const ints lanes = allowed_lanes(allowed, j, from, to);
                term = choose(lanes, term, (floats){0});
                mean += term * choose(lanes, below, (floats){0});
            } else mean += term * below;
            sum += term;
            NAME(store_operands)(scores, j, term);
        }
        state->sum += total(sum);
        state->mean += total(mean);
    }
    for (; j < width; j += LANES) NAME(store_operands)(scores, j, (floats){0});
    return shrink;
}

static void NAME(attend_block)(const struct attention *t, const struct plan *p, char *scratch, int64_t unit,
                               int64_t first_query) {
    const int64_t example = unit / t->groups, group = unit % t->groups, sharing = t->heads / t->groups;
    const int64_t queries = at_most(p->block, t->queries - first_query);
    const float factor = t->softcap ? LOG2_E : t->scale * LOG2_E;
    uint32_t *packed = (uint32_t *)scratch;
    float *scores = (float *)(scratch + p->scores), *outputs = (float *)(scratch + p->outputs);
    struct row *states = (struct row *)(scratch + p->states);
    const uint32_t *keys = (const uint32_t *)t->workspace + unit * p->key_words * PER_WORD * p->depth;
    const uint32_t *values = (const uint32_t *)(t->workspace + p->values) + unit * p->key_words * p->output_stride;

    memset(packed, 0, 4 * p->rows * p->depth);
    int64_t low = t->keys, high = 0;
    for (int64_t q = 0; q < queries; q++) {
        const struct limits seen = limits_of(t, p, example, first_query + q);
        if (seen.from < seen.to) low = at_most(low, seen.from), high = at_least(high, seen.to);
        for (int64_t head = 0; head < sharing; head++) {
            const ELEMENT *row = (const ELEMENT *)t->query + example * t->query_strides.example +
                                 (group * sharing + head) * t->query_strides.head +
                                 (first_query + q) * t->query_strides.position;
            NAME(pack_row)(packed + (head * p->block + q) * p->depth, 1, row, t->dim);
            states[head * p->block + q] = (struct row){-INFINITY, 0, 0, -INFINITY};
        }
    }
    low = low / PANEL * PANEL;
    if (low >= high) memset(outputs, 0, 4 * p->rows * p->output_stride);

    for (int64_t key = low; key < high; key += p->span) {
        const int64_t width = round_up(at_most(p->span, high - key), PANEL);
        for (int64_t part = 0; part < p->depth; part += PART)
            NAME(product)(scores, p->score_stride, packed + part, p->depth, keys + key * p->depth + part * PANEL,
                          p->depth * PANEL, p->rows, width, at_most(PART, p->depth - part), part > 0);
        for (int64_t q = 0; q < queries; q++) {
            const struct limits seen = limits_of(t, p, example, first_query + q);
            const int64_t from = at_least(seen.from - key, 0), to = at_most(seen.to - key, width);
            const uint8_t *allowed = !seen.holes ? 0 : t->mask + example * t->mask_example + (first_query + q) * t->mask_query + key;
            const int64_t first = t->first[example] - key;
            for (int64_t head = 0; head < sharing; head++) {
                const int64_t row = head * p->block + q;
                float *mine = scores + row * p->score_stride;
                if (t->softcap) cap_scores(mine, from, to, t->scale, t->softcap);
                if (from <= first && first < to && (!allowed || allowed[first])) states[row].first = mine[first];
                const float shrink = NAME(exponentials)(mine, allowed, from, to, width, factor, &states[row]);
                if (key > low && shrink != 1)
                    for (int64_t i = 0; i < p->output_stride; i++) outputs[row * p->output_stride + i] *= shrink;
            }
        }
        NAME(product)(outputs, p->output_stride, (const uint32_t *)scores, p->score_stride, values + key / PER_WORD * PANEL,
                      p->key_words * PANEL, p->rows, p->output_stride, width / PER_WORD, key > low);
    }

    for (int64_t head = 0; head < sharing; head++) {
        const int64_t h = group * sharing + head, place = (example * t->heads + h) * t->queries + first_query;
        float *mine = outputs + head * p->block * p->output_stride;
        for (int64_t q = 0; q < queries; q++) {
            const float scale = finish_row(t, states[head * p->block + q], factor, h, place + q);
            ELEMENT *to = (ELEMENT *)t->output + ((example * t->queries + first_query + q) * t->heads + h) * t->value_dim;
            float *row = mine + q * p->output_stride;
            floats square = {0};
            for (int64_t i = 0; i < t->value_dim; i += LANES) {
                const floats x = load(row + i) * scale;
                store(row + i, x);
                square += x * x;
                NAME(store_output)(to + i, x, at_most(LANES, t->value_dim - i));
            }
            if (t->output_norm) t->output_norm[place + q] = sqrtf(total(square));
        }
        if (!t->contribution_norm) continue;
        const int64_t width = p->factor_panels * PANEL;
        product_float32(scores, p->score_stride, (const uint32_t *)mine, p->output_stride,
                        (const uint32_t *)(t->workspace + p->factor) + h * width * t->value_dim, t->value_dim * PANEL,
                        round_up(queries, TILE), width, t->value_dim, 0);
        for (int64_t q = 0; q < queries; q++) {
            floats square = {0};
            for (int64_t i = 0; i < width; i += LANES) {
                const floats x = load(scores + q * p->score_stride + i);
                square += x * x;
            }
            t->contribution_norm[place + q] = sqrtf(total(square));
        }
    }
}

int64_t NAME(attention_workspace)(const struct attention *t) {
    const struct plan p = plan(t, PER_WORD);
    return p.scratch + p.per_thread * t->threads;
}

void NAME(attention)(const struct attention *t) {
    const struct plan p = plan(t, PER_WORD);
    const int64_t chunks = p.key_words * PER_WORD / SPAN_STEP;
#pragma omp parallel num_threads(t->threads) if (t->threads > 1)
    {
#pragma omp for schedule(dynamic) nowait
        for (int64_t i = 0; i < p.units * chunks; i++) NAME(pack)(t, &p, i / chunks, i % chunks * SPAN_STEP);
#pragma omp for schedule(static) nowait
        for (int64_t head = 0; head < (t->factor ? t->heads : 0); head++) pack_factor(t, &p, head);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < (t->mask ? t->examples * t->queries : 0); i++) scan_mask(t, &p, i);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < p.units * p.blocks; i++) /* the longest first, where later queries see more keys */
            NAME(attend_block)(t, &p, t->workspace + p.scratch + p.per_thread * omp_get_thread_num(), i / p.blocks,
                               (p.blocks - 1 - i % p.blocks) * p.block);
    }
}
