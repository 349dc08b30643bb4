"""Which of several ways to the same numbers attends for a layer: compiled, fused or plain.

They differ by rounding and in speed. ``compiled`` and ``fused`` rest on a compiler or on PyTorch's private operators, so
each is compared with ``plain`` on a small random input before its first use, and given up for the process if it fails.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from headcount.attention.blocks import attend_in_blocks
from headcount.attention.compiled import attend_compiled, supports_compiled
from headcount.attention.fused import attend_fused, attend_fused_measured, supports_fused
from headcount.attention.inputs import AttentionInputs, Positions
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
) -> tuple[Tensor, dict[str, Tensor]]:
    """Attention output, and for each query ``first_token_weight`` and ``entropy`` as far as ``wanted``.

    Other names in ``wanted`` are given too where the way has them for nothing.

    Raises:
        InputError: ``HEADCOUNT_ATTENTION`` names no way.
    """
    way = _choose(inputs, wanted)
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
    if "compiled" in allowed and supports_compiled(inputs) and _works("compiled", *_kind(inputs)):
        return "compiled"
    if "fused" in allowed and weigh and supports_fused(inputs) and _works("fused", *_kind(inputs), wanted & OF_WEIGHTS):
        return "fused"
    return without


def _kind(inputs: AttentionInputs) -> tuple[str, torch.dtype, int, int, bool]:
    """What a way may work for or not: device, dtype, both head sizes, and whether there is a mask."""
    query, value = inputs.query, inputs.value
    return query.device.type, query.dtype, query.shape[-1], value.shape[-1], inputs.mask is not None


@cache
def _works(
    way: str,
    device: str,
    dtype: torch.dtype,
    head_dim: int,
    value_dim: int,
    masked: bool,
    wanted: frozenset[str] = OF_WEIGHTS,
) -> bool:
    """Whether a way gives what plain attention gives, tried once; logs a warning if not.

    Memory that ran out says nothing about the way: that error goes on, and the next call tries again.
    """
    try:
        with torch.inference_mode():
            difference = _difference_from_plain(way, device, dtype, head_dim, value_dim, masked, wanted)
        if difference <= _TOLERANCES[dtype]:
            return True
        problem = f"its results are off by {difference:.2g}"
    except Exception as error:
        if out_of_memory(error):
            raise
        # Whatever fails inside a compiler or a private operator, plain attention is there.
        problem = str(error) or type(error).__name__
    _logger.warning(
        "The %s way to measure attention is not used on %s in %s: %s. Numbers stay the same; measuring is slower.",
        way, device, str(dtype).removeprefix("torch."), problem,
    )  # fmt: skip
    return False


def _difference_from_plain(
    way: str, device: str, dtype: torch.dtype, head_dim: int, value_dim: int, masked: bool, wanted: frozenset[str]
) -> float:
    """On two examples of different length, one with padding: on the left with a window where there are masks."""
    generator = torch.Generator().manual_seed(0)
    batch, heads, groups, length = 2, 4, 2, 70
    query, key, value = (
        torch.randn(batch, number, length, size, generator=generator).to(device, dtype)
        for number, size in ((heads, head_dim), (groups, head_dim), (groups, value_dim))
    )
    padding = torch.ones(batch, length, dtype=torch.bool)
    mask = None
    if masked:
        padding[1, :5] = False
        window = torch.ones(length, length, dtype=torch.bool).tril().triu(-40)
        mask = (window & padding[:, None, None]).to(device)
    else:
        padding[1, -5:] = False
    inputs = AttentionInputs(query=query, key=key, value=value, mask=mask, scaling=head_dim**-0.5)
    exact = replace(inputs, query=query.float(), key=key.float(), value=value.float())
    positions = Positions.from_mask(padding, batch, length, query.device)
    real = padding.to(device)[:, None]
    if way == "compiled":  # in small parts, so that what joins them is compared too
        output, found = attend_compiled(inputs, positions, wanted=wanted, block_rows=32, held_scores=64 * 32)
    else:
        output, found = attend_fused_measured(inputs, positions, wanted=wanted)
    expected_output, expected = attend_in_blocks(exact, positions, wanted=wanted)
    differences = [(output.float() - expected_output) * real[..., None]]
    differences += [(found[name] - expected[name]) * real for name in wanted]
    # A NaN anywhere must fail the comparison, and max() alone would drop it.
    return max(torch.nan_to_num(difference.abs(), nan=torch.inf).max().item() for difference in differences)
