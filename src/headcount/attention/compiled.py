"""Attention on the CPU by a C kernel: output, weights, entropies and norms in one pass while the scores are in the cache.

PyTorch's fused kernel keeps no attention weights, and passes over its output afterwards cost memory traffic. The kernel
(``native/attention.c``) takes every measurement where the numbers already are.
"""

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

from headcount.attention.inputs import AttentionInputs, Positions
from headcount.attention.kernel import Call, Strides, load_kernel

#: Rows of queries per block. More read each key less often, and waste more products above the causal diagonal.
BLOCK_ROWS = 96
#: Scores that a thread holds at a time: with the operands beside them they stay in a second-level cache of 1 MiB.
HELD_SCORES = 96 * 512

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def supports_compiled(inputs: AttentionInputs) -> bool:
    """Whether this layer's attention is of a kind the kernel computes: CPU, float32 or bfloat16, boolean mask or none."""
    query, mask = inputs.query, inputs.mask
    return (
        query.device.type == "cpu"
        and inputs.rows is None
        and query.dtype in _DTYPES
        and query.dtype == inputs.key.dtype == inputs.value.dtype
        and inputs.scaling > 0
        and (mask is None or (mask.dtype == torch.bool and mask.shape[1] == 1))
    )


def attend_compiled(
    inputs: AttentionInputs,
    positions: Positions,
    *,
    wanted: frozenset[str] = frozenset(),
    projection_factor: Callable[[], Tensor] | None = None,
    block_rows: int = BLOCK_ROWS,
    held_scores: int = HELD_SCORES,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Attention output, and everything ``wanted`` for each query or key, up to rounding as ``attend_in_blocks`` gives it.

    Scores, sums and norms are float32 in bfloat16 too. Where the processor multiplies bfloat16, the exponentials are
    rounded to it for their product with the values, as in PyTorch's fused kernel. Norms are of outputs not yet rounded.

    Args:
        inputs: a layer that ``supports_compiled``.
        positions: which positions are real; only the first of each example is read.
        wanted: any of ``PER_POSITION``.
        projection_factor: for ``contribution_norm``; see ``attend``.
        block_rows: rows of queries a block.
        held_scores: scores that a thread holds at a time.

    Returns:
        Output ``[batch, head, query, value head_dim]`` and, float32, ``value_norm [batch, key-value head, key]`` and the
        others ``[batch, head, query]``.

    Raises:
        KernelUnavailable: the kernel could not be built.
    """
    library = load_kernel()
    query, key, value = (
        tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (inputs.query, inputs.key, inputs.value)
    )
    batch, heads, length, head_dim = query.shape
    causal = inputs.mask is None and length > 1
    keys = length if causal else key.shape[2]  # a static cache has more slots than it has keys
    groups, value_dim = value.shape[1], value.shape[-1]
    first = positions.first.contiguous()  # what the call points to has a name here, and so outlives it
    output = query.new_empty(batch, length, heads, value_dim)
    call = Call(
        query=query.data_ptr(), query_strides=Strides.of(query), key=key.data_ptr(), key_strides=Strides.of(key),
        value=value.data_ptr(), value_strides=Strides.of(value), first=first.data_ptr(),
        examples=batch, heads=heads, groups=groups, queries=length, keys=keys, dim=head_dim, value_dim=value_dim,
        causal=causal, threads=torch.get_num_threads(), block_rows=block_rows, held_scores=held_scores,
        scale=inputs.scaling, softcap=inputs.softcap or 0, output=output.data_ptr(),
    )  # fmt: skip
    if inputs.mask is not None:
        mask = inputs.mask.expand(batch, 1, length, keys)
        mask = mask if mask.stride(-1) == 1 else mask.contiguous()
        call.mask, call.mask_example, call.mask_query = mask.data_ptr(), mask.stride(0), mask.stride(2)
    if inputs.sinks is not None:
        sinks = inputs.sinks.float().contiguous()
        call.sinks = sinks.data_ptr()
    if "contribution_norm" in wanted:
        assert projection_factor is not None
        factor = projection_factor().contiguous()  # [head, row, value head_dim]
        call.factor, call.factor_rows = factor.data_ptr(), factor.shape[1]
    measured = {
        name: query.new_empty(
            batch, *((groups, keys) if name == "value_norm" else (heads, length)), dtype=torch.float32
        )
        for name in wanted
    }
    for name, tensor in measured.items():
        setattr(call, name, tensor.data_ptr())
    dtype = _DTYPES[query.dtype]
    workspace = torch.empty(getattr(library, f"attention_workspace_{dtype}")(ctypes.byref(call)), dtype=torch.uint8)
    call.workspace = workspace.data_ptr()
    getattr(library, f"attention_{dtype}")(ctypes.byref(call))
    return output.transpose(1, 2), measured
