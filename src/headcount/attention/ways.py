"""Which of several ways to the same numbers attends for a layer: compiled, fused or plain.

They differ by rounding and in speed. ``compiled`` is a kernel of our own: in C for processors, in Triton for CUDA and ROCm.
It and ``fused`` rest on a compiler or on PyTorch's private operators, so each is compared with ``plain`` on a small random
input before its first use, and given up for the process if it fails.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from headcount.attention.blocks import attend_in_blocks
from headcount.attention.compiled import attend_compiled, supports_compiled
from headcount.attention.fused import attend_fused, attend_fused_measured, supports_fused
from headcount.attention.gpu import PART_KEYS, attend_on_gpu, supports_gpu
from headcount.attention.inputs import AttentionInputs, Positions, Rows
from headcount.attention.measurements import OF_WEIGHTS
from headcount.devices import out_of_memory
from headcount.errors import InputError

WAYS = ("compiled", "fused", "plain")
#: Environment variable that forces one way, for tests and benchmarks; plain serves the layers that it cannot.
VARIABLE = "HEADCOUNT_ATTENTION"

_logger = logging.getLogger(__name__)
#: Largest difference from plain float32 attention that a probe allows, in outputs, weights and nats.
_TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def attend_by_the_fastest_way(
    inputs: AttentionInputs,
    positions: Positions,
    *,
    wanted: frozenset[str],
    projection_factor: Callable[[], Tensor] | None = None,
    means: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Attention output, and for each query ``first_token_weight`` and ``entropy`` as far as ``wanted``.

    Other names in ``wanted`` are given too where the way has them for nothing. With ``means`` rows may be measured instead.

    Raises:
        InputError: ``HEADCOUNT_ATTENTION`` names no way.
    """
    way = _choose(inputs, wanted)
    if inputs.rows is not None and way != "compiled":
        inputs = inputs.laid_out()
        way = _choose(inputs, wanted)
    if way == "compiled" and inputs.query.device.type == "cuda":
        return attend_on_gpu(inputs, positions, means=means)
    if way == "compiled":
        return attend_compiled(inputs, positions, wanted=wanted, projection_factor=projection_factor)
    if way == "fused":
        return attend_fused_measured(inputs, positions, wanted=wanted & OF_WEIGHTS)
    if way == "sdpa":
        return attend_fused(inputs), {}
    return attend_in_blocks(inputs, positions, wanted=wanted & OF_WEIGHTS)


def _choose(inputs: AttentionInputs, wanted: frozenset[str]) -> str:
    """The way for a layer; ``sdpa`` is PyTorch's attention as it is.

    The compiled way serves the layers of which nothing is wanted too: so all passes round alike, and two policies that zero
    the same heads give the same logits, bit for bit, whatever they measure.
    """
    forced = os.environ.get(VARIABLE)
    if forced and forced not in WAYS:
        raise InputError(f"{VARIABLE}={forced!r} is no way to attend. Use {', '.join(WAYS)}, or leave it unset.")
    weigh = bool(wanted & OF_WEIGHTS)
    without = "plain" if weigh or inputs.softcap is not None or inputs.sinks is not None else "sdpa"
    if torch.is_grad_enabled() and any(t.requires_grad for t in (inputs.query, inputs.key, inputs.value)):
        return without
    allowed = [way for way in WAYS if forced in (None, "", way)]
    compiled = supports_compiled(inputs) or supports_gpu(inputs)
    if "compiled" in allowed and compiled and _works("compiled", _Kind.of(inputs)):
        return "compiled"
    if (
        "fused" in allowed
        and weigh
        and supports_fused(inputs)
        and _works("fused", _Kind.of(inputs), wanted & OF_WEIGHTS)
    ):
        return "fused"
    if weigh and inputs.query.device.type not in ("cpu", "cuda"):
        _say_that_it_is_slow(inputs.query.device.type)
    return without


class _Kind(NamedTuple):
    """What a way may work for or not."""

    device: str
    dtype: torch.dtype
    head_dim: int
    value_dim: int
    masked: bool
    capped: bool
    sunk: bool
    windowed: bool
    queries: int
    """As many as a probe takes: on a GPU one, few and many are computed by code of their own."""

    @classmethod
    def of(cls, inputs: AttentionInputs) -> "_Kind":
        query = inputs.query
        queries = 70 if query.device.type == "cpu" else next(n for n in (1, 16, 70) if n >= min(query.shape[2], 70))
        return cls(
            query.device.type, query.dtype, query.shape[-1], inputs.value.shape[-1], inputs.mask is not None,
            inputs.softcap is not None, inputs.sinks is not None,
            inputs.rows is not None and inputs.rows.window is not None, queries,
        )  # fmt: skip

    def example(self) -> tuple[AttentionInputs, Positions]:
        """Two random rows of different length: the second with padding on the left and a window where there are masks."""
        generator = torch.Generator().manual_seed(0)
        batch, heads, groups, length = 2, 4, 2, self.queries
        keys = PART_KEYS + 70 if length == 1 else 70 if self.masked else length
        query, key, value = (
            torch.randn(batch, number, tokens, size, generator=generator).to(self.device, self.dtype)
            for number, tokens, size in (
                (heads, length, self.head_dim), (groups, keys, self.head_dim), (groups, keys, self.value_dim)
            )
        )  # fmt: skip
        real, first, mask = torch.ones(batch, keys, dtype=torch.bool), torch.zeros(batch, dtype=torch.int64), None
        rows = None
        if self.masked or self.windowed:
            real[1, :5] = False
            first[1] = 5
        if self.masked:
            window = torch.ones(length, keys, dtype=torch.bool).tril(keys - length).triu(keys - length - 40)
            mask = (window & real[:, None, None]).to(self.device)
        elif self.windowed:
            numbers = torch.tensor([[0, length], [5, length - 5]], dtype=torch.int32).to(self.device)
            rows = Rows(
                queries=numbers, keys=numbers[:, None], packed=False, most_queries=length, most_keys=length, window=40
            )
        elif length > 1:
            real[1, -5:] = False
        inputs = AttentionInputs(
            query=query, key=key, value=value, mask=mask, scaling=self.head_dim**-0.5,
            softcap=2.0 if self.capped else None,
            sinks=torch.linspace(-1, 1, heads).to(self.device) if self.sunk else None, rows=rows,
        )  # fmt: skip
        positions = Positions.from_mask(real[:, keys - length :], batch, length, query.device)
        return inputs, replace(positions, first=first.to(self.device))


@cache
def _works(way: str, kind: _Kind, wanted: frozenset[str] = OF_WEIGHTS) -> bool:
    """Whether a way gives what plain attention gives, tried once; logs a warning if not.

    Memory that ran out says nothing about the way: that error goes on, and the next call tries again.
    """
    try:
        with torch.inference_mode():
            difference = _difference_from_plain(way, kind, wanted)
        if difference <= _TOLERANCES[kind.dtype]:
            return True
        problem = f"its results are off by {difference:.2g}"
    except Exception as error:
        if out_of_memory(error):
            raise
        # Whatever fails inside a compiler or a private operator, plain attention is there.
        problem = str(error) or type(error).__name__
    _logger.warning(
        "The %s way to measure attention is not used on %s in %s: %s. Numbers stay the same; measuring is slower.",
        way, kind.device, str(kind.dtype).removeprefix("torch."), problem,
    )  # fmt: skip
    return False


def _difference_from_plain(way: str, kind: _Kind, wanted: frozenset[str]) -> float:
    """On a small random example."""
    inputs, positions = kind.example()
    of_rows: dict[str, Tensor] = {}
    exact = replace(inputs, query=inputs.query.float(), key=inputs.key.float(), value=inputs.value.float())
    if way == "fused":
        output, found = attend_fused_measured(inputs, positions, wanted=wanted)
    elif kind.device == "cpu":  # in small parts, so that what joins them is compared too
        output, found = attend_compiled(inputs, positions, wanted=wanted, block_rows=32, held_scores=64 * 32)
    else:
        output, found = attend_on_gpu(inputs, positions)
        of_rows = attend_on_gpu(inputs, positions, means=True)[1]
    expected_output, expected = attend_in_blocks(exact.laid_out(), positions, wanted=wanted)
    real = (torch.ones_like(output[:, 0, :, 0]) if positions.real is None else positions.real)[:, None]
    differences = [(output.float() - expected_output) * real[..., None]]
    differences += [(found[name] - expected[name]) * real for name in wanted]
    differences += [of_rows[n] - positions.mean(expected[n]) for n in wanted & of_rows.keys() if of_rows[n].dim() == 2]
    # A NaN anywhere must fail the comparison, and max() alone would drop it.
    return max(torch.nan_to_num(difference.abs(), nan=torch.inf).max().item() for difference in differences)


@cache
def _say_that_it_is_slow(device: str) -> None:
    _logger.warning(
        "On %s attention is measured the plain way, in PyTorch's own operations: numbers stay the same, measuring is slower.",
        device,
    )
