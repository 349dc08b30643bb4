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
_SINGLE = (Tiles(queries=32, keys=32, warps=4, stages=1), Tiles(queries=32, keys=16, warps=4, stages=1))
#: For a new token or a few: the smallest block of queries that the products allow.
_FEW = (Tiles(queries=16, keys=64, warps=4, stages=2), Tiles(queries=16, keys=16, warps=4, stages=1))


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
        choices = _SINGLE
    else:
        choices = _HALF[0 if wide <= 128 else 1 if wide <= 192 else 2 :]
    fitting = (t for t in choices if t.shared_memory(_padded(dim), _padded(value_dim), itemsize) <= shared_memory)
    return next(fitting, choices[-1])


def supports_gpu(inputs: AttentionInputs) -> bool:
    """Whether this layer's attention is of a kind the kernel computes: on CUDA or ROCm, boolean mask or none."""
    query, mask = inputs.query, inputs.mask
    return (
        query.device.type == "cuda"
        and _has_triton()
        and query.dtype in _DTYPES
        and query.dtype == inputs.key.dtype == inputs.value.dtype
        and max(query.shape[-1], inputs.value.shape[-1]) <= _LARGEST_HEAD
        and inputs.scaling > 0
        and (mask is None or (mask.dtype == torch.bool and mask.shape[1] == 1))
    )


def attend_on_gpu(
    inputs: AttentionInputs, positions: Positions, *, tiles: Tiles | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Attention output, and for each query what the kernel measures, up to rounding as ``attend_in_blocks`` gives it.

    Scores, sums and norms are float32 in half precision too; the exponentials are rounded for their product with the
    values, as in PyTorch's fused kernels. Norms are of outputs not yet rounded.

    Args:
        inputs: a layer that ``supports_gpu``, or, in Triton's interpreter, one in main memory.
        positions: which positions are real. Without a mask, padding on the right is left out: its outputs are 0.
        tiles: how the work is cut, if not by ``tiles_for``.

    Returns:
        Output ``[batch, head, query, value head_dim]``, and ``entropy``, ``first_token_weight`` and ``output_norm``, float32
        ``[batch, head, query]``.
    """
    from headcount.attention.gpu_kernel import attention, triton

    query, key, value = (
        tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (inputs.query, inputs.key, inputs.value)
    )
    batch, heads, length, dim = query.shape
    value_dim, mask, sinks, softcap = value.shape[-1], inputs.mask, inputs.sinks, inputs.softcap
    causal = mask is None and length > 1
    keys = length if causal else key.shape[2]  # a static cache has more slots than it has keys
    if tiles is None:
        tiles = tiles_for(length, dim, value_dim, query.element_size(), _shared_memory(query.device))
    rows = torch.empty(batch, 3, dtype=torch.int32, device=query.device)
    rows[:, 0] = positions.last + 1 if mask is None and positions.real is not None else length
    rows[:, 1] = keys
    rows[:, 2] = positions.first
    spans = rows  # stands for what is not given
    if mask is not None:
        spans = _spans(mask, tiles.queries).expand(batch, -1, -1).contiguous()
        mask = _bytes(mask).expand(batch, -1, -1, -1)
    output = query.new_empty(batch, length, heads, value_dim)
    numbers = query.new_empty(3, batch, heads, length, dtype=torch.float32)
    grid = triton.cdiv(length, tiles.queries), heads, batch
    launch: Any = attention[grid]  # takes the compiler's options too
    launch(
        query, key, value, output, numbers, rows, rows if mask is None else mask, spans,
        rows if sinks is None else sinks.float().contiguous(), *query.stride()[:3], *key.stride()[:3], *value.stride()[:3],
        output.stride(0), output.stride(2), output.stride(1), *numbers.stride()[:3],
        *((0, 0) if mask is None else (mask.stride(0), mask.stride(2))),
        inputs.group_size, length, inputs.scaling / softcap if softcap else inputs.scaling * _LOG2_E,
        softcap * _LOG2_E if softcap else 0.0,
        **variant(dim, value_dim, tiles, causal=causal, masked=mask is not None, capped=softcap is not None,
                  sunk=sinks is not None),
        PRECISION="ieee" if _interpreted() else PRECISIONS["hip" if torch.version.hip else "cuda"],
        WIDEN=_interpreted() and query.dtype == torch.bfloat16,
        enable_fp_fusion=True, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    names = ("entropy", "first_token_weight", "output_norm")
    return output.transpose(1, 2), dict(zip(names, numbers, strict=True))


def variant(
    dim: int, value_dim: int, tiles: Tiles, *, causal: bool, masked: bool, capped: bool, sunk: bool
) -> dict[str, Any]:
    """What the kernel is compiled for."""
    return {
        "CAUSAL": causal, "MASKED": masked, "CAPPED": capped, "SUNK": sunk, "DIM": dim, "VALUE_DIM": value_dim,
        "BLOCK_D": _padded(dim), "BLOCK_V": _padded(value_dim), "BLOCK_M": tiles.queries, "BLOCK_N": tiles.keys,
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
