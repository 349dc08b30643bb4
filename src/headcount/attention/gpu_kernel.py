"""Attention and what is measured of it, in one Triton kernel for CUDA and ROCm. Imported where Triton is.

A program is a block of queries of one head of one row of the batch. It meets BLOCK_N keys at a time and keeps for each
query, of scores s in base 2,

    m   the largest so far,        l   Σ 2^(s − m),        t   Σ 2^(s − m) (s − m),

which go on to a larger maximum m′ by a = 2^(m − m′): t becomes a (t + (m − m′) l), and l becomes a l. In the end
p = 2^(s − m) / l is a key's weight, and −Σ p ln p = ln l − ln 2 · t / l. Where one weight is near 1 both terms are small, so
that nothing cancels, unlike in lse − E[s].

Which keys a query sees is said by number: those of its own text up to itself, or the last few of them. A text's keys may
stand in several stretches. Only what cannot be said so is a mask.
"""

# Triton reads this, not Python: its constants are plain numbers here, and names that a constant leaves out are not read.
# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false

import triton
import triton.language as tl


@triton.jit
def _product(a, b, accumulator, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """a @ b + accumulator. Triton's interpreter multiplies bfloat16 as the integers that it keeps it in, unless widened."""
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, accumulator, input_precision=PRECISION)


@triton.jit
def _scores(products, scale, softcap, CAPPED: tl.constexpr):
    """In base 2: ``scale`` is the scaling times log2 e, or over the softcap, which is then times log2 e."""
    if CAPPED:
        x = products * scale
        e = tl.exp2(-2.8853900817779268 * tl.abs(x))  # e^(−2|x|)
        return tl.where(x < 0, e - 1, 1 - e) / (1 + e) * softcap
    return products * scale


@triton.jit
def _keys(
    accumulator, m, l, t, q, key, value, mask, key_step, value_step, begin, end, i, num_keys, window, scale, softcap,
    EDGE: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, MASKED: tl.constexpr, CAPPED: tl.constexpr,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Meet the keys from ``begin`` to ``end``. Where not EDGE, every query of the block sees all of them."""
    n, d, e = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    for start in range(begin, end, BLOCK_N):
        there = start + n < num_keys
        k = key + tl.cast(start, tl.int64) * key_step + n[None, :] * key_step + d[:, None]
        k = tl.load(k, mask=there[None, :] & (d[:, None] < DIM), other=0.0)
        products = _product(q, k, tl.zeros([q.shape[0], BLOCK_N], tl.float32), PRECISION, WIDEN)
        s = _scores(products, scale, softcap, CAPPED)
        if EDGE:
            seen = there[None, :]
            if CAUSAL:
                seen = seen & (start + n[None, :] <= i[:, None])
            if WINDOWED:
                seen = seen & (start + n[None, :] > i[:, None] - window)
            if MASKED:
                # As numbers: Triton for AMD fails on truth values that have to go through shared memory.
                s += tl.where(tl.load(mask + start + n[None, :], mask=seen, other=0) != 0, 0.0, -float("inf"))
                seen = s != -float("inf")  # which NaN is not
            s = tl.where(seen, s, -float("inf"))
        top = tl.maximum(m, tl.max(s, 1))
        fall = m - top
        shrink = tl.exp2(fall)
        gap = s - top[:, None]
        p = tl.exp2(gap)
        if EDGE:
            gap = tl.where(seen, gap, 0.0)  # 0 times −inf is NaN
        t = shrink * (t + fall * l) + tl.sum(p * gap, 1)
        l = shrink * l + tl.sum(p, 1)
        m = top
        v = value + tl.cast(start, tl.int64) * value_step + n[:, None] * value_step + e[None, :]
        v = tl.load(v, mask=there[:, None] & (e[None, :] < VALUE_DIM), other=0.0)
        accumulator = _product(p.to(v.dtype), v, accumulator * shrink[:, None], PRECISION, WIDEN)
    return accumulator, m, l, t


@triton.jit
def attention(
    QUERY, KEY, VALUE, OUTPUT, NUMBERS, SUMS, PARTS, ROWS, MASK, SPANS, SINKS, query_row, query_head, query_step, key_row,
    key_head, key_step, value_row, value_head, value_step, output_row, output_head, output_step, numbers_of_each,
    numbers_row, numbers_head, mask_row, mask_query, sinks_head, sinks_query, group, stretches, window, parts, part_keys,
    scale, softcap,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, MASKED: tl.constexpr, CAPPED: tl.constexpr, SUNK: tl.constexpr,
    MEANS: tl.constexpr, PHASE: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One block of queries.

    ROWS [row, 4 + 2 · stretches]: a row's first query and how many it has, the first of their outputs, the key of its first
    real token; and of each stretch of its keys the first and the number. Queries are the last of their row's tokens.

    NUMBERS [3, row, head, query], float32: entropy, weight of the first real key, norm of the output; or, with MEANS, SUMS
    [row, head, block, 4], those of the block's queries added up, and the norm of the row's last output. What is no query of
    its row is not written. MASK is bytes; SPANS [row, block, 2] between which keys it is not all 0.

    PHASE 0 is all of it. Few queries of many keys are cut into ``parts``: 1 meets ``part_keys`` keys and leaves m, l, t and
    the outputs in PARTS [row, head, block, part, query, BLOCK_V + 4]; 2 joins these, in their order, and goes on from there.
    Offsets are 64 bits wide up to the block and 32 within.
    """
    at_once = parts if PHASE == 1 else 1
    block = tl.num_programs(0) // at_once - 1 - tl.program_id(0) // at_once  # the one with the most keys first
    head, row = tl.program_id(1), tl.program_id(2)
    part = PARTS + ((row.to(tl.int64) * tl.num_programs(1) + head) * (tl.num_programs(0) // at_once) + block) * (
        parts * BLOCK_M * (BLOCK_V + 4)
    )
    ROWS += row * (4 + 2 * stretches)
    first_query, num_queries, first_output = tl.load(ROWS), tl.load(ROWS + 1), tl.load(ROWS + 2)
    before = block * BLOCK_M
    own, d, e = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    i = before + own
    inside = i < num_queries
    row, at = row.to(tl.int64), before.to(tl.int64)
    key = KEY + row * key_row + (head // group).to(tl.int64) * key_head
    value = VALUE + row * value_row + (head // group).to(tl.int64) * value_head
    query = QUERY + row * query_row + head.to(tl.int64) * query_head + (first_query + at) * query_step
    q = tl.load(query + own[:, None] * query_step + d[None, :], mask=inside[:, None] & (d[None, :] < DIM), other=0.0)
    mask = MASK + row * mask_row + at * mask_query + own[:, None] * mask_query
    total = 0
    for stretch in range(stretches):
        total += tl.load(ROWS + 5 + 2 * stretch)
    place = total - num_queries + i  # of each query in its text
    lowest, highest = total - num_queries + before, total - num_queries + tl.minimum(before + BLOCK_M, num_queries) - 1

    accumulator = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    m = tl.full([BLOCK_M], -1e30, tl.float32)  # not −inf, which times a sum of 0 is NaN
    l = tl.zeros([BLOCK_M], tl.float32)
    t = tl.zeros([BLOCK_M], tl.float32)
    if PHASE == 2:
        for p in range(parts):
            kept = part + p * (BLOCK_M * (BLOCK_V + 4)) + own * (BLOCK_V + 4)
            m2 = tl.load(kept + BLOCK_V)
            l2 = tl.load(kept + BLOCK_V + 1)
            top = tl.maximum(m, m2)
            shrink, shrink2 = tl.exp2(m - top), tl.exp2(m2 - top)
            t = shrink * (t + (m - top) * l) + shrink2 * (tl.load(kept + BLOCK_V + 2) + (m2 - top) * l2)
            l = shrink * l + shrink2 * l2
            accumulator = accumulator * shrink[:, None] + tl.load(kept[:, None] + e[None, :]) * shrink2[:, None]
            m = top
    else:
        passed = 0  # keys in earlier stretches
        for stretch in range(tl.where(before < num_queries, stretches, 0)):
            first, num_keys = tl.load(ROWS + 4 + 2 * stretch).to(tl.int64), tl.load(ROWS + 5 + 2 * stretch)
            begin, whole, after, end = 0, 0, num_keys, num_keys  # all see the keys from `whole` to `after`
            if CAUSAL:
                end, after = tl.minimum(num_keys, highest + 1 - passed), tl.minimum(num_keys, lowest + 1 - passed)
            if WINDOWED:
                begin, whole = tl.maximum(lowest - window + 1 - passed, 0), tl.maximum(highest - window + 1 - passed, 0)
            if MASKED:
                span = SPANS + (row * (tl.num_programs(0) // at_once) + block) * 2
                begin, end = tl.load(span), tl.load(span + 1)
            if PHASE == 1:
                begin = tl.maximum(begin, tl.program_id(0) % at_once * part_keys)
                end = tl.minimum(end, (tl.program_id(0) % at_once + 1) * part_keys)
                whole, after = tl.maximum(whole, begin), tl.minimum(after, end)
            begin = begin // BLOCK_N * BLOCK_N
            edge = begin  # up to which some queries see no key any more
            if WINDOWED:
                edge = tl.minimum((whole + BLOCK_N - 1) // BLOCK_N * BLOCK_N, tl.maximum(end, begin))
                accumulator, m, l, t = _keys(
                    accumulator, m, l, t, q, key + first * key_step, value + first * value_step, mask, key_step, value_step,
                    begin, edge, place - passed, num_keys, window, scale, softcap, True, CAUSAL, WINDOWED, MASKED, CAPPED,
                    DIM, VALUE_DIM, BLOCK_D, BLOCK_V, BLOCK_N, PRECISION, WIDEN,
                )  # fmt: skip
            if not MASKED:
                after = tl.maximum(after // BLOCK_N * BLOCK_N, edge)
                accumulator, m, l, t = _keys(
                    accumulator, m, l, t, q, key + first * key_step, value + first * value_step, mask, key_step, value_step,
                    edge, after, place - passed, num_keys, window, scale, softcap, False, CAUSAL, WINDOWED, MASKED, CAPPED,
                    DIM, VALUE_DIM, BLOCK_D, BLOCK_V, BLOCK_N, PRECISION, WIDEN,
                )  # fmt: skip
                edge = after
            accumulator, m, l, t = _keys(
                accumulator, m, l, t, q, key + first * key_step, value + first * value_step, mask, key_step, value_step,
                edge, end, place - passed, num_keys, window, scale, softcap, True, CAUSAL, WINDOWED, MASKED, CAPPED,
                DIM, VALUE_DIM, BLOCK_D, BLOCK_V, BLOCK_N, PRECISION, WIDEN,
            )  # fmt: skip
            passed += num_keys
    if PHASE == 1:
        kept = part + tl.program_id(0) % at_once * (BLOCK_M * (BLOCK_V + 4)) + own * (BLOCK_V + 4)
        tl.store(kept[:, None] + e[None, :], accumulator)
        tl.store(kept + BLOCK_V, m)
        tl.store(kept + BLOCK_V + 1, l)
        tl.store(kept + BLOCK_V + 2, t)
        return

    if SUNK:  # one more score, without a value
        sink = tl.load(SINKS + head * sinks_head + i * sinks_query, mask=inside, other=0.0) * 1.4426950408889634
        top = tl.maximum(m, sink)
        fall = m - top
        shrink = tl.exp2(fall)
        alone = tl.exp2(sink - top)
        t = shrink * (t + fall * l) + alone * (sink - top)
        l = shrink * l + alone
        accumulator = accumulator * shrink[:, None]
        m = top
    real = inside & (l != 0)  # NaN is not 0, and goes on
    l = tl.where(real, l, 1.0)
    accumulator = tl.where(real[:, None], accumulator / l[:, None], 0.0)
    entropy = tl.where(real, 0.6931471805599453 * (tl.log2(l) - t / l), 0.0)
    entropy = tl.maximum(entropy, 0.0, propagate_nan=tl.PropagateNan.ALL)
    first = tl.load(ROWS + 3)
    k = tl.load(key + first.to(tl.int64) * key_step + d, mask=d < DIM, other=0.0).to(tl.float32)
    s = _scores(tl.sum(q.to(tl.float32) * k[None, :], 1), scale, softcap, CAPPED)
    first_place = first - tl.load(ROWS + 4)
    sees = real
    if CAUSAL:
        sees = sees & (first_place <= place)
    if WINDOWED:
        sees = sees & (first_place > place - window)
    if MASKED:
        seen = MASK + row * mask_row + at * mask_query + own * mask_query + first
        sees = sees & (tl.load(seen, mask=sees, other=0) != 0)
    weight = tl.exp2(tl.where(sees, s - m, -float("inf"))) / l
    weight = tl.where(weight > 1, 1.0, weight)
    norm = tl.sqrt(tl.sum(accumulator * accumulator, 1))

    output = OUTPUT + row * output_row + head.to(tl.int64) * output_head + (first_output + at) * output_step
    output += own[:, None] * output_step + e[None, :]
    tl.store(output, accumulator.to(OUTPUT.dtype.element_ty), mask=inside[:, None] & (e[None, :] < VALUE_DIM))
    if MEANS:
        sums = SUMS + ((row * tl.num_programs(1) + head) * tl.num_programs(0) + block) * 4
        tl.store(sums, tl.sum(entropy, 0))
        tl.store(sums + 1, tl.sum(weight, 0))
        tl.store(sums + 2, tl.sum(norm, 0))
        tl.store(sums + 3, tl.sum(tl.where(i == num_queries - 1, norm, 0.0), 0))
    else:
        numbers = NUMBERS + row * numbers_row + head.to(tl.int64) * numbers_head + first_output + i
        tl.store(numbers, entropy, mask=inside)
        tl.store(numbers + numbers_of_each, weight, mask=inside)
        tl.store(numbers + 2 * numbers_of_each, norm, mask=inside)


@triton.jit
def means(SUMS, FOUND, ROWS, row_numbers, blocks, BLOCK_M: tl.constexpr):
    """FOUND [4, row, head]: means over a row's queries, and the norm of its last output, of SUMS [row, head, block, 4].

    Added in an order that the row's own length gives, whatever else is in the batch.
    """
    head, row, heads = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    num_queries = tl.load(ROWS + row * row_numbers + 1)
    own, what = tl.arange(0, 32), tl.arange(0, 4)
    sums = SUMS + (row * heads + head).to(tl.int64) * blocks * 4
    end = (num_queries + BLOCK_M - 1) // BLOCK_M
    total = tl.zeros([4], tl.float32)
    for start in range(0, end, 32):
        there = (start + own < end)[:, None]
        total += tl.sum(tl.load(sums + (start + own)[:, None] * 4 + what[None, :], mask=there, other=0.0), 0)
    found = tl.where(what < 3, total / num_queries, total)
    tl.store(FOUND + (what * tl.num_programs(1) + row) * heads + head, found)
