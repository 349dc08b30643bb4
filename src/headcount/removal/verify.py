"""Hold a pruned checkpoint, as it loads, to the masked model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from headcount.errors import ModelError
from headcount.models.state import input_device
from headcount.removal.replace import Replacement

#: Largest difference of logits that counts as rounding, in units of their standard deviation.
_LIMITS = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.25}


@dataclass(frozen=True, kw_only=True)
class Verification:
    """How a checkpoint's logits differ from those of the masked model, on the same tokens.

    Attributes:
        num_tokens: positions compared.
        max_difference: largest absolute difference of a logit.
        standard_deviation: of the masked model's logits.
        kl: mean KL(masked‖pruned) of the next token's distribution, nats.
        same_top: share of positions with the same most likely token.
        dtype: that both computed in.
    """

    num_tokens: int
    max_difference: float
    standard_deviation: float
    kl: float
    same_top: float
    dtype: str

    @property
    def equal(self) -> bool:
        """Whether the difference is rounding. NaN is not."""
        return self.max_difference <= _LIMITS[getattr(torch, self.dtype)] * self.standard_deviation

    def __str__(self) -> str:
        return (
            f"largest difference of a logit {self.max_difference:.2g} (their standard deviation is "
            f"{self.standard_deviation:.2g}), KL {self.kl:.2g} nats, same most likely token at {100 * self.same_top:.1f}% of "
            f"{self.num_tokens} positions, {self.dtype}"
        )


def verify(
    model: PreTrainedModel, replacement: Replacement, saved: PreTrainedModel, rows: Sequence[Sequence[int]]
) -> Verification:
    """Compare ``saved`` with ``model`` under ``replacement`` on a few rows of token ids.

    Half precision may round the same sums so differently, on unlikely tokens above all, that it cannot tell rounding from
    a mistake. What looks unequal there is compared again with the same weights in float32.
    """
    with replacement.applied(model), torch.inference_mode():
        found = _compare(model, saved, rows)
        if not found.equal and model.dtype in (torch.float16, torch.bfloat16):
            with _in_float32(model), _in_float32(saved):
                found = _compare(model, saved, rows)
    return found


@contextmanager
def _in_float32(model: PreTrainedModel) -> Iterator[None]:
    """Inside, tensors of half precision are the same numbers in float32; afterwards the same tensors as before."""
    tensors = [*model.parameters(), *model.buffers()]
    before = [(tensor, tensor.data) for tensor in tensors if tensor.dtype in (torch.float16, torch.bfloat16)]
    try:
        for tensor, values in before:
            tensor.data = values.float()
        yield
    finally:
        for tensor, values in before:
            tensor.data = values


def _compare(model: PreTrainedModel, saved: PreTrainedModel, rows: Sequence[Sequence[int]]) -> Verification:
    totals = torch.zeros(2, dtype=torch.float64)
    count, largest, values = 0, 0.0, []
    for row in rows:
        tokens = torch.tensor([list(row)])
        expected = model(input_ids=tokens.to(input_device(model)), use_cache=False).logits[0].float().cpu()
        found = saved(input_ids=tokens.to(input_device(saved)), use_cache=False).logits[0].float().cpu()
        difference = (found - expected).abs()
        largest = max(largest, difference.nan_to_num(nan=torch.inf).max().item())
        log_expected, log_found = expected.log_softmax(-1), found.log_softmax(-1)
        kl = (log_expected.exp() * (log_expected - log_found)).sum(-1)
        same = expected.argmax(-1) == found.argmax(-1)
        totals += torch.stack([kl.double().sum(), same.double().sum()])
        count += len(kl)
        values.append(expected.std().item())
    return Verification(
        num_tokens=count,
        max_difference=largest,
        standard_deviation=sum(values) / len(values),
        kl=max(0.0, (totals[0] / count).item()),  # below 0 by rounding alone
        same_top=(totals[1] / count).item(),
        dtype=str(model.dtype).removeprefix("torch."),
    )


def refuse_unequal(verification: Verification, what: str) -> None:
    """Raise ModelError if a checkpoint is not the masked model."""
    if not verification.equal:
        raise ModelError(
            f"{what} does not compute what the masked model does: {verification}. Nothing was kept. Please report the model; "
            "zero-filled weights (--format zeros) may serve meanwhile."
        )
