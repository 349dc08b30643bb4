"""Which of several ways to the same numbers measures a layer: compiled, fused or plain.

They differ by rounding and in speed. ``compiled`` and ``fused`` rest on a compiler or on PyTorch's private operators, so
each is compared with ``plain`` on a small random input before its first use, and given up for the process if it fails.
"""

import logging
import os
from functools import cache

import torch
from torch import Tensor

from headcount.attention.blocks import attend_in_blocks
from headcount.attention.compiled import attend_compiled, supports_compiled
from headcount.attention.fused import attend_fused_measured, supports_fused
from headcount.attention.inputs import AttentionInputs, Positions
from headcount.errors import InputError

WAYS = ("compiled", "fused", "plain")
#: Environment variable that forces one way, for tests and benchmarks; plain serves the layers that it cannot.
VARIABLE = "HEADCOUNT_ATTENTION"

_logger = logging.getLogger(__name__)
_NEEDS = frozenset({"first_token_weight", "entropy"})
#: Largest difference from plain float32 attention that a probe allows, in outputs, weights and nats.
_TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def attend_and_weigh(
    inputs: AttentionInputs, positions: Positions, *, needs: frozenset[str]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Attention output, and the ``needs`` among ``first_token_weight`` and ``entropy``, by the fastest way that works.

    Raises:
        InputError: ``HEADCOUNT_ATTENTION`` names no way.
    """
    output, measured = _run(_choose(inputs), inputs, positions, needs)
    return output, {name: measured[name] for name in needs}


def _choose(inputs: AttentionInputs) -> str:
    forced = os.environ.get(VARIABLE)
    if forced and forced not in WAYS:
        raise InputError(f"{VARIABLE}={forced!r} is no way to attend. Use {', '.join(WAYS)}, or leave it unset.")
    query, key, value = inputs.query, inputs.key, inputs.value
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value)):
        return "plain"
    for way, supports in (("compiled", supports_compiled), ("fused", supports_fused)):
        if (
            forced in (None, "", way)
            and supports(inputs)
            and _works(way, query.device.type, query.dtype, query.shape[-1])
        ):
            return way
    return "plain"


def _run(
    way: str, inputs: AttentionInputs, positions: Positions, needs: frozenset[str]
) -> tuple[Tensor, dict[str, Tensor]]:
    if way == "compiled":
        return attend_compiled(inputs, positions)
    attend = attend_fused_measured if way == "fused" else attend_in_blocks
    return attend(inputs, positions, needs=needs)


@cache
def _works(way: str, device: str, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether a way gives what plain attention gives, tried once; logs a warning if not."""
    try:
        with torch.inference_mode():
            difference = _difference_from_plain(way, device, dtype, head_dim)
        if difference <= _TOLERANCES[dtype]:
            return True
        problem = f"its results are off by {difference:.2g}"
    except Exception as error:  # whatever fails inside a compiler or a private operator, plain attention is there
        problem = str(error) or type(error).__name__
    _logger.warning(
        "The %s way to measure attention is not used on %s in %s: %s. Numbers stay the same; measuring is slower.",
        way, device, str(dtype).removeprefix("torch."), problem,
    )  # fmt: skip
    return False


def _difference_from_plain(way: str, device: str, dtype: torch.dtype, head_dim: int) -> float:
    generator = torch.Generator().manual_seed(0)
    batch, heads, groups, length = 2, 4, 2, 37
    query, key, value = (
        torch.randn(batch, number, length, head_dim, generator=generator).to(device, dtype)
        for number in (heads, groups, groups)
    )
    inputs = AttentionInputs(query=query, key=key, value=value, mask=None, scaling=head_dim**-0.5)
    exact = AttentionInputs(
        query=query.float(), key=key.float(), value=value.float(), mask=None, scaling=inputs.scaling
    )
    padding = torch.tensor([[1] * length, [1] * (length - 5) + [0] * 5])
    positions = Positions.from_mask(padding, batch, length, query.device)
    output, measured = _run(way, inputs, positions, _NEEDS)
    expected_output, expected = attend_in_blocks(exact, positions, needs=_NEEDS)
    differences = [output.float() - expected_output, *(measured[name] - expected[name] for name in _NEEDS)]
    # A NaN anywhere must fail the comparison, and max() alone would drop it.
    return max(torch.nan_to_num(difference.abs(), nan=torch.inf).max().item() for difference in differences)
