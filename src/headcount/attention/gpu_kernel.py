"""Attention and what is measured of it, in one Triton kernel for CUDA and ROCm. Imported where Triton is.

A program is a block of queries of one head of one row of the batch. It meets BLOCK_N keys at a time and keeps for each
query, of scores s in base 2,

    m   the largest so far,        l   Σ 2^(s − m),        t   Σ 2^(s − m) (s − m),

which go on to a larger maximum m′ by a = 2^(m − m′): t becomes a (t + (m − m′) l), and l becomes a l. In the end
p = 2^(s − m) / l is a key's weight, and −Σ p ln p = ln l − ln 2 · t / l. Where one weight is near 1 both terms are small, so
that nothing cancels, unlike in lse − E[s].
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
    accumulator, m, l, t, q, key, value, mask, key_step, value_step, begin, end, i, num_keys, scale, softcap,
    EDGE: tl.constexpr, CAUSAL: tl.constexpr, MASKED: tl.constexpr, CAPPED: tl.constexpr, DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_N: tl.constexpr,
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
            if MASKED:
                seen = seen & (tl.load(mask + start + n[None, :], mask=seen, other=0) != 0)
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
    QUERY, KEY, VALUE, OUTPUT, NUMBERS, ROWS, MASK, SPANS, SINKS, query_row, query_head, query_step, key_row, key_head,
    key_step, value_row, value_head, value_step, output_row, output_head, output_step, numbers_of_each, numbers_row,
    numbers_head, mask_row, mask_query, group, length, scale, softcap,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr, CAPPED: tl.constexpr, SUNK: tl.constexpr, DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One block of queries. ROWS [row, 3]: the numbers of its queries and keys, and its first real key.

    NUMBERS [3, row, head, query], float32: entropy, weight of the first real key, norm of the output. Queries beyond a
    row's number have output and numbers 0. MASK is bytes; SPANS [row, block, 2] between which keys it is not all 0.
    Offsets are 64 bits wide up to the block and 32 within.
    """
    block = tl.num_programs(0) - 1 - tl.program_id(0)  # the one with the most keys first
    head, row = tl.program_id(1), tl.program_id(2)
    num_queries, num_keys = tl.load(ROWS + row * 3), tl.load(ROWS + row * 3 + 1)
    first = tl.load(ROWS + row * 3 + 2)
    before = block * BLOCK_M
    own, d, e = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    i = before + own
    row, at = row.to(tl.int64), before.to(tl.int64)
    key = KEY + row * key_row + (head // group).to(tl.int64) * key_head
    value = VALUE + row * value_row + (head // group).to(tl.int64) * value_head
    query = QUERY + row * query_row + head.to(tl.int64) * query_head + at * query_step
    q = tl.load(
        query + own[:, None] * query_step + d[None, :], mask=(i < num_queries)[:, None] & (d[None, :] < DIM), other=0.0
    )
    mask = MASK + row * mask_row + at * mask_query + own[:, None] * mask_query

    accumulator = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    m = tl.full([BLOCK_M], -1e30, tl.float32)  # not −inf, which times a sum of 0 is NaN
    l = tl.zeros([BLOCK_M], tl.float32)
    t = tl.zeros([BLOCK_M], tl.float32)
    if MASKED:
        span = SPANS + (row * tl.num_programs(0) + block) * 2
        begin, end = tl.load(span) // BLOCK_N * BLOCK_N, tl.load(span + 1)
    else:
        whole, end = num_keys, num_keys
        if CAUSAL:
            whole, end = (
                tl.minimum(before + 1, num_keys),
                tl.minimum(before + BLOCK_M, tl.minimum(num_queries, num_keys)),
            )
        begin = whole // BLOCK_N * BLOCK_N
        if before >= num_queries:
            begin, end = 0, 0
        accumulator, m, l, t = _keys(
            accumulator, m, l, t, q, key, value, mask, key_step, value_step, 0, begin, i, num_keys, scale, softcap,
            False, CAUSAL, MASKED, CAPPED, DIM, VALUE_DIM, BLOCK_D, BLOCK_V, BLOCK_N, PRECISION, WIDEN,
        )  # fmt: skip
    accumulator, m, l, t = _keys(
        accumulator, m, l, t, q, key, value, mask, key_step, value_step, begin, end, i, num_keys, scale, softcap,
        True, CAUSAL, MASKED, CAPPED, DIM, VALUE_DIM, BLOCK_D, BLOCK_V, BLOCK_N, PRECISION, WIDEN,
    )  # fmt: skip

    if SUNK:  # one more score, without a value
        sink = tl.load(SINKS + head) * 1.4426950408889634
        top = tl.maximum(m, sink)
        fall = m - top
        shrink = tl.exp2(fall)
        alone = tl.exp2(sink - top)
        t = shrink * (t + fall * l) + alone * (sink - top)
        l = shrink * l + alone
        accumulator = accumulator * shrink[:, None]
        m = top
    real = (i < num_queries) & (l != 0)  # NaN is not 0, and goes on
    l = tl.where(real, l, 1.0)
    accumulator = tl.where(real[:, None], accumulator / l[:, None], 0.0)
    entropy = tl.where(real, 0.6931471805599453 * (tl.log2(l) - t / l), 0.0)
    k = tl.load(key + first.to(tl.int64) * key_step + d, mask=d < DIM, other=0.0).to(tl.float32)
    s = _scores(tl.sum(q.to(tl.float32) * k[None, :], 1), scale, softcap, CAPPED)
    sees = real
    if CAUSAL:
        sees = sees & (first <= i)
    if MASKED:
        seen = MASK + row * mask_row + at * mask_query + own * mask_query + first
        sees = sees & (tl.load(seen, mask=sees, other=0) != 0)
    weight = tl.exp2(tl.where(sees, s - m, -float("inf"))) / l
    weight = tl.where(weight > 1, 1.0, weight)

    output = OUTPUT + row * output_row + head.to(tl.int64) * output_head + at * output_step
    output += own[:, None] * output_step + e[None, :]
    inside = i < length
    tl.store(output, accumulator.to(OUTPUT.dtype.element_ty), mask=inside[:, None] & (e[None, :] < VALUE_DIM))
    numbers = NUMBERS + row * numbers_row + head.to(tl.int64) * numbers_head + i
    tl.store(numbers, tl.maximum(entropy, 0.0, propagate_nan=tl.PropagateNan.ALL), mask=inside)
    tl.store(numbers + numbers_of_each, weight, mask=inside)
    tl.store(numbers + 2 * numbers_of_each, tl.sqrt(tl.sum(accumulator * accumulator, 1)), mask=inside)
