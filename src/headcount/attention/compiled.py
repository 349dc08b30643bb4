"""Attention by blocks of queries on the CPU: matrix products by PyTorch, everything between them in one C kernel.

Plain blocks spend most of their time passing over the block's scores again and again: scale, mask, maximum,
exponentials, sum, division, entropy. The kernel (``softmax.c``) does all of it in two passes while the row is in the
processor's cache, and skips the keys that a causal query does not see.
"""

from functools import cache

import torch
from torch import Tensor

from headcount.attention.inputs import AttentionInputs, Positions
from headcount.attention.kernel import load_kernel

#: Queries per block. More make larger, faster matrix products, and waste more of them above the causal diagonal.
BLOCK = 256
#: Scores of a block held at a time: small enough to stay in two cores' second-level caches.
MAX_SCORES = 2**20

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def supports_compiled(inputs: AttentionInputs) -> bool:
    """Whether this layer's attention is of a kind the kernel computes: CPU, float32 or bfloat16, boolean mask or none."""
    query, mask = inputs.query, inputs.mask
    return (
        query.device.type == "cpu"
        and query.dtype in _DTYPES
        and query.dtype == inputs.key.dtype == inputs.value.dtype
        and inputs.softcap is None
        and inputs.sinks is None
        and (mask is None or (mask.dtype == torch.bool and mask.shape[1] == 1))
    )


def attend_compiled(
    inputs: AttentionInputs, positions: Positions, *, block: int = BLOCK, max_scores: int = MAX_SCORES
) -> tuple[Tensor, dict[str, Tensor]]:
    """Attention output, ``first_token_weight`` and ``entropy``, as ``attend_in_blocks`` gives them up to rounding.

    Both measurements are always computed: they cost one multiplication and one addition for each attention weight.

    In bfloat16 the products q·k are rounded to bfloat16, as in transformers' eager attention, and the weights are
    rounded before their division by the row's sum instead of after it.

    Raises:
        KernelUnavailable: the kernel could not be built.
    """
    query, mask = inputs.query, inputs.mask
    batch, heads, length, head_dim = query.shape
    group = inputs.group_size
    causal = mask is None and length > 1
    keys = length if causal else inputs.key.shape[2]  # a static cache has more slots than it has keys
    key = inputs.key[:, :, :keys].reshape(-1, keys, head_dim)  # [unit, key, head_dim], unit = batch · key-value head
    value = inputs.value[:, :, :keys].reshape(len(key), keys, -1)
    # [unit, query · group, head_dim]: the query heads that share their keys become rows of one matrix
    query = query.unflatten(1, (-1, group)).transpose(2, 3).reshape(len(key), length * group, head_dim)
    if mask is not None:
        mask = mask.expand(batch, 1, length, keys)
        mask = mask if mask.stride(-1) == 1 else mask.contiguous()
    kernel = _Kernel(query, keys, group, heads // group, inputs.scaling, causal, mask, positions.first.contiguous())

    output = query.new_empty(batch, length, heads, value.shape[-1])
    block = min(block, length)
    workspace = query.new_empty(min(len(key) * block * group * keys, max(max_scores, block * group * keys)))
    for start in range(0, length, block):
        stop = min(start + block, length)
        seen, rows = (stop if causal else keys), (stop - start) * group
        units = max(1, min(len(key), max_scores // (rows * seen)))
        for unit in range(0, len(key), units):
            these = slice(unit, min(unit + units, len(key)))
            shape = (these.stop - unit, rows, seen)
            scores = workspace[: shape[0] * rows * seen].view(shape)
            torch.bmm(query[these, start * group : stop * group], key[these, :seen].mT, out=scores)
            sums = kernel.softmax(scores, unit, start)
            kernel.scale_rows(torch.bmm(scores, value[these, :seen]), sums, output, unit, start)

    def per_head(rows: Tensor) -> Tensor:
        """``[unit, query · group]`` → ``[batch, head, query]``"""
        return rows.view(batch, -1, length, group).transpose(2, 3).flatten(1, 2)

    measured = {
        "first_token_weight": positions.mean(per_head(kernel.first_weight)),
        "entropy": positions.mean(per_head(kernel.entropy)),
    }
    return output.transpose(1, 2), measured


_library = cache(load_kernel)


class _Kernel:
    """The C functions, with the arguments that all blocks of a layer share."""

    def __init__(
        self,
        query: Tensor,
        keys: int,
        group: int,
        units_per_example: int,
        scaling: float,
        causal: bool,
        mask: Tensor | None,
        first: Tensor,
    ) -> None:
        library, dtype = _library(), _DTYPES[query.dtype]
        self._softmax, self._scale_rows = getattr(library, f"softmax_{dtype}"), getattr(library, f"scale_rows_{dtype}")
        self._keys, self._group, self._units_per_example = keys, group, units_per_example
        self._scaling, self._causal, self._first, self._threads = scaling, causal, first, torch.get_num_threads()
        self._mask = mask
        self._mask_arguments = (None, 0, 0) if mask is None else (mask.data_ptr(), mask.stride(0), mask.stride(2))
        self.entropy, self.first_weight = query.new_empty(2, *query.shape[:2], dtype=torch.float32)

    def softmax(self, scores: Tensor, unit: int, query: int) -> Tensor:
        """Scores → exponentials, in place; returns the reciprocal sums ``[unit, row]`` and keeps the measurements."""
        units, rows, seen = scores.shape
        sums = scores.new_empty(units, rows, dtype=torch.float32)
        self._softmax(
            scores.data_ptr(), units, rows, seen, self._group, query, int(self._causal), *self._mask_arguments, unit,
            self._units_per_example, self._first.data_ptr(), self._scaling, sums.data_ptr(), self.entropy.data_ptr(),
            self.first_weight.data_ptr(), self.entropy.shape[1], self._threads,
        )  # fmt: skip
        return sums

    def scale_rows(self, block: Tensor, factors: Tensor, output: Tensor, unit: int, query: int) -> None:
        """``block [unit, row, head_dim]`` times its rows' factors, into ``output [batch, query, head, head_dim]``."""
        units, rows, width = block.shape
        self._scale_rows(
            block.data_ptr(), factors.data_ptr(), output.data_ptr(), units, rows, width, self._group, query,
            output.shape[1], unit, self._units_per_example, self._threads,
        )  # fmt: skip
