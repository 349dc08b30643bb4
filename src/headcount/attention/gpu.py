"""Attention on a GPU by a Triton kernel: output, weights, entropies and norms in one pass, of which no score leaves the chip.

Triton comes with PyTorch for CUDA and ROCm.
"""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from headcount.attention.inputs import AttentionInputs, Positions

_LOG2_E = 1.4426950408889634
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_LARGEST_HEAD = 256
#: How float32 is multiplied: on NVIDIA's tensor cores as three products of 11 bits each, together as exact as float32.
PRECISIONS = {"cuda": "tf32x3", "hip": "ieee"}
#: Keys of a new token that one program meets, the others by others: always as many, so that sums are the same on any device.
PART_KEYS = 512
#: What a program may hold where the device does not say: the least of the GPUs that multiply bfloat16 (sm 8.6 and 8.9).
_SHARED_MEMORY = 99 << 10


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """How the work is cut: queries a program, keys at a time, warps, and how many loads of keys are under way."""

    queries: int
    keys: int
    warps: int
    stages: int

    def shared_memory(self, dim: int, value_dim: int, itemsize: int) -> int:
        """Bytes that a program holds on the chip: its queries, and the keys and values under way."""
        return (self.queries * dim + self.stages * self.keys * (dim + value_dim)) * itemsize


#: From the fastest to what fits anywhere, as registers allow: those of wide heads, and of float32, hold fewer.
_HALF = (
    Tiles(queries=128, keys=64, warps=8, stages=2),
    Tiles(queries=64, keys=64, warps=8, stages=2),
    Tiles(queries=64, keys=32, warps=8, stages=2),
    Tiles(queries=64, keys=32, warps=4, stages=1),
)
_SINGLE = (
    Tiles(queries=32, keys=32, warps=4, stages=1),
    Tiles(queries=32, keys=32, warps=8, stages=1),
    Tiles(queries=16, keys=16, warps=8, stages=1),
)
#: For a new token or a few: the smallest block of queries that the products allow.
_FEW = (Tiles(queries=16, keys=64, warps=4, stages=2), Tiles(queries=16, keys=16, warps=8, stages=1))


def tiles_for(length: int, dim: int, value_dim: int, itemsize: int, shared_memory: int = _SHARED_MEMORY) -> Tiles:
    """How to cut the work, by a rule instead of trials at the first use: ``benchmarks/kernel.py`` says what it takes.

    Args:
        length: number of queries.
        dim, value_dim: head sizes.
        itemsize: bytes of a number.
        shared_memory: bytes that a program may hold on the chip.
    """
    wide = max(dim, value_dim)
    if length <= _FEW[0].queries:
        choices = _FEW
    elif itemsize > 2:
        choices = _SINGLE[0 if wide <= 64 else 1 if wide <= 128 else 2 :]
    else:
        choices = _HALF[0 if wide <= 128 else 1 if wide <= 192 else 2 :]
    fitting = (t for t in choices if t.shared_memory(_padded(dim), _padded(value_dim), itemsize) <= shared_memory)
    return next(fitting, choices[-1])


def reads_rows(device: torch.device) -> bool:
    """Whether the kernel may attend there, and so packed rows and windows are best said by number."""
    return device.type == "cuda" and _has_triton()


def supports_gpu(inputs: AttentionInputs) -> bool:
    """Whether this layer's attention is of a kind the kernel computes: on CUDA or ROCm, boolean mask or none."""
    query, mask = inputs.query, inputs.mask
    return (
        reads_rows(query.device)
        and query.dtype in _DTYPES
        and query.dtype == inputs.key.dtype == inputs.value.dtype
        and max(query.shape[-1], inputs.value.shape[-1]) <= _LARGEST_HEAD
        and inputs.scaling > 0
        and (mask is None or (mask.dtype == torch.bool and mask.shape[1] == 1))
    )


def attend_on_gpu(
    inputs: AttentionInputs,
    positions: Positions,
    *,
    means: bool = False,
    tiles: Tiles | None = None,
    part_keys: int = PART_KEYS,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Attention output, and for each query what the kernel measures, up to rounding as ``attend_in_blocks`` gives it.

    Scores, sums and norms are float32 in half precision too; the exponentials are rounded for their product with the
    values, as in PyTorch's fused kernels. Norms are of outputs not yet rounded.

    Args:
        inputs: a layer that ``supports_gpu``, or, in Triton's interpreter, one in main memory.
        positions: which positions are real. Without a mask, padding is left out: its outputs are 0.
        means: where there is no mask, measure rows instead of queries: what is given is means over a row's real queries
            in an order of its own, whatever else is in the batch, and the norm of its last output.
        tiles: how the work is cut, if not by ``tiles_for``.
        part_keys: a new token's keys are cut into parts of so many, each met by a program of its own.

    Returns:
        Output ``[row, head, query, value head_dim]``, and ``entropy``, ``first_token_weight`` and ``output_norm``, float32
        ``[row, head, query]``; with ``means`` these and ``last_output_norm``, ``[row, head]``.
    """
    numbers, length = _numbers(inputs, positions)
    mask, heads, value_dim = inputs.mask, inputs.query.shape[1], inputs.value.shape[-1]
    means = means and mask is None and length > 1
    new = inputs.query.new_empty if positions.real is None or mask is not None else inputs.query.new_zeros
    output = new(len(numbers), length, heads, value_dim)
    found = new(4 if means else 3, len(numbers), heads, *([] if means else [length]), dtype=torch.float32)
    if tiles is None:
        queries = inputs.group_size if length == 1 and inputs.rows is None else length
        shared_memory = _shared_memory(output.device)
        tiles = tiles_for(queries, inputs.query.shape[-1], value_dim, output.element_size(), shared_memory)
    _launch(inputs, numbers, output.transpose(1, 2), found, tiles, means, part_keys)
    names = ("entropy", "first_token_weight", "output_norm", "last_output_norm")
    return output.transpose(1, 2), dict(zip(names, found, strict=False))


def _launch(
    inputs: AttentionInputs, numbers: Tensor, output: Tensor, found: Tensor, tiles: Tiles, means: bool, part_keys: int
) -> None:
    """Fill ``output`` and ``found`` of ``attend_on_gpu``."""
    from headcount.attention import gpu_kernel

    query, key, value = (
        tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (inputs.query, inputs.key, inputs.value)
    )
    rows, mask, sinks, softcap, group = inputs.rows, inputs.mask, inputs.sinks, inputs.softcap, inputs.group_size
    batch, heads, length, value_dim = output.shape
    together = length == 1 and rows is None  # a new token's heads that share keys are the queries of one
    of_queries = found
    if together:
        query, output = (of[:, :, 0].unflatten(1, (-1, group)) for of in (query, output))
        of_queries, numbers[:, 1] = found[..., 0].unflatten(2, (-1, group)), group
    programs, num_queries = query.shape[1], group if together else length
    blocks, spans = -(-num_queries // tiles.queries), numbers  # which stands for what is not given
    if mask is not None:
        spans = _spans(mask.expand(-1, -1, num_queries, -1), tiles.queries).expand(batch, -1, -1).contiguous()
        mask = _bytes(mask).expand(batch, -1, num_queries, -1)
    parts = -(-key.shape[2] // part_keys) if together else 1
    kept = [batch, programs, blocks, parts, tiles.queries, _padded(value_dim) + 4] if parts > 1 else [0]
    sums = found.new_empty([batch, heads, blocks, 4] if means else [0])
    of_rows = [0 if rows is not None and rows.packed else tensor.stride(0) for tensor in (query, key, value)]
    arguments = (
        query, key, value, output, found, sums, found.new_empty(kept), numbers, numbers if mask is None else mask, spans,
        numbers if sinks is None else sinks.float().contiguous(), of_rows[0], *query.stride()[1:3], of_rows[1],
        *key.stride()[1:3], of_rows[2], *value.stride()[1:3], *output.stride()[:3],
        *((0, 0, 0) if means else of_queries.stride()[:3]), *((0, 0) if mask is None else (mask.stride(0), mask.stride(2))),
        group if together else 1, int(together), 1 if together else group, (numbers.shape[1] - 4) // 2,
        0 if rows is None else rows.window or 0, parts, part_keys,
        inputs.scaling / softcap if softcap else inputs.scaling * _LOG2_E, softcap * _LOG2_E if softcap else 0.0,
    )  # fmt: skip
    options = variant(
        query.shape[-1], value_dim, tiles, causal=length > 1 and mask is None,
        windowed=rows is not None and rows.window is not None, masked=mask is not None, capped=softcap is not None,
        sunk=sinks is not None, means=means,
    ) | {
        "PRECISION": "ieee" if _interpreted() else PRECISIONS["hip" if torch.version.hip else "cuda"],
        "WIDEN": _interpreted() and query.dtype == torch.bfloat16,
        "enable_fp_fusion": True, "num_warps": tiles.warps, "num_stages": tiles.stages,
    }  # fmt: skip
    for phase in (0,) if parts == 1 else (1, 2):
        launch: Any = gpu_kernel.attention[blocks * (parts if phase == 1 else 1), programs, batch]
        launch(*arguments, PHASE=phase, **options)  # takes the compiler's options too
    if means:
        launch = gpu_kernel.means[heads, batch]
        launch(sums, found, numbers, numbers.shape[1], blocks, BLOCK_M=tiles.queries)


def _numbers(inputs: AttentionInputs, positions: Positions) -> tuple[Tensor, int]:
    """``ROWS`` of the kernel, and how many queries the longest row has."""
    rows, (batch, _, length, _) = inputs.rows, inputs.query.shape
    if rows is not None:
        outputs = torch.zeros_like(rows.queries[:, :1]) if rows.packed else rows.queries[:, :1]
        return torch.cat([rows.queries, outputs, rows.keys[:, 0, :1], rows.keys.flatten(1)], 1), rows.most_queries
    numbers = torch.zeros(batch, 6, dtype=torch.int32, device=inputs.query.device)
    causal = inputs.mask is None and length > 1
    numbers[:, 1] = positions.last + 1 if inputs.mask is None and positions.real is not None else length
    numbers[:, 3] = positions.first
    # A static cache has more slots than it has keys.
    numbers[:, 5] = numbers[:, 1] if causal else inputs.key.shape[2]
    return numbers, length


def variant(
    dim: int,
    value_dim: int,
    tiles: Tiles,
    *,
    causal: bool = False,
    windowed: bool = False,
    masked: bool = False,
    capped: bool = False,
    sunk: bool = False,
    means: bool = False,
) -> dict[str, Any]:
    """What the kernel is compiled for."""
    return {
        "CAUSAL": causal, "WINDOWED": windowed, "MASKED": masked, "CAPPED": capped, "SUNK": sunk, "MEANS": means,
        "DIM": dim, "VALUE_DIM": value_dim, "BLOCK_D": _padded(dim), "BLOCK_V": _padded(value_dim),
        "BLOCK_M": tiles.queries, "BLOCK_N": tiles.keys,
    }  # fmt: skip


def _bytes(mask: Tensor) -> Tensor:
    """The mask with rows that begin at multiples of 16 bytes: these are read 16 at a time, in a tenth of the registers."""
    as_bytes = mask.view(torch.uint8)
    if mask.stride(-1) == 1 and mask.stride(0) % 16 == mask.stride(2) % 16 == mask.data_ptr() % 16 == 0:
        return as_bytes
    return F.pad(as_bytes, (0, -mask.shape[-1] % 16))


def _spans(mask: Tensor, block: int) -> Tensor:
    """int32 ``[row, block, 2]``: the first key that any query of a block sees, and the one after the last."""
    length, keys = mask.shape[2:]
    blocks = -(-length // block)
    seen = F.pad(mask[:, 0], (0, 0, 0, blocks * block - length)).unflatten(1, (blocks, block)).any(2)
    index = torch.arange(keys, dtype=torch.int32, device=mask.device)
    first = torch.where(seen, index, keys).amin(-1)
    return torch.stack([first, torch.where(seen, index + 1, 0).amax(-1)], dim=-1)


def _padded(size: int) -> int:
    """The next power of 2, as the kernel's blocks have to be."""
    return max(16, 1 << (size - 1).bit_length())


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _interpreted() -> bool:
    from triton.runtime.interpreter import InterpretedFunction

    from headcount.attention.gpu_kernel import attention

    return isinstance(attention, InterpretedFunction)


@cache
def _shared_memory(device: torch.device) -> int:
    if device.type != "cuda":
        return _SHARED_MEMORY
    facts = torch.cuda.get_device_properties(device)
    said = (getattr(facts, f"shared_memory_per_block{kind}", None) for kind in ("_optin", ""))
    return next(filter(None, said), _SHARED_MEMORY)
