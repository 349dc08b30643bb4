"""Log-likelihoods of continuations, with one forward pass for each distinct input, under a policy."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from transformers import PreTrainedModel

from headcount.errors import InputError
from headcount.interventions import Policy
from headcount.models.batching import Progress, input_device, no_progress, pad, run_in_batches
from headcount.models.instrument import instrument

#: Positions whose log-softmax over the vocabulary is taken at a time, in float32.
_POSITIONS_AT_A_TIME = 256


@dataclass(frozen=True, kw_only=True)
class ScoringPlan:
    """Requests reduced to the distinct inputs that the model must read.

    A request asks for the log-likelihood of a continuation after a context. The model reads context and continuation
    without the last token; requests that share this input share its forward pass.
    """

    inputs: list[list[int]]
    input_of: list[int]
    """For each request, its input."""
    continuations: list[list[int]]
    """For each request, the tokens that the last positions of its input predict."""
    num_truncated: int
    """Inputs whose start was cut because they were longer than the model's positions, as lm-eval does."""

    @classmethod
    def from_requests(cls, requests: Iterable[tuple[Sequence[int], Sequence[int]]], max_length: int) -> "ScoringPlan":
        """From (context, continuation) token ids.

        Raises:
            InputError: a continuation is empty or longer than ``max_length``.
        """
        found: dict[tuple[int, ...], int] = {}
        input_of, continuations, truncated = [], [], set()
        for context, continuation in requests:
            if not 0 < len(continuation) <= max_length:
                raise InputError(
                    f"A continuation of {len(continuation)} tokens cannot be scored: it must have between 1 and {max_length} "
                    "tokens, the model's positions."
                )
            whole = (*context, *continuation)
            row = whole[-(max_length + 1) :][:-1]
            index = found.setdefault(row, len(found))
            if len(whole) > max_length + 1:
                truncated.add(index)
            input_of.append(index)
            continuations.append(list(continuation))
        return cls(
            inputs=[list(row) for row in found], input_of=input_of, continuations=continuations, num_truncated=len(truncated)
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What running a ScoringPlan gave."""

    loglikelihoods: list[tuple[float, bool]]
    """For each request, the continuation's log-likelihood in nats, and whether it is the greedy one."""
    share_zeroed: np.ndarray
    """float64 [input]: heads zeroed over heads of the model."""
    scores: xr.Dataset
    """The recorded scores, dims (example, layer, head), one example an input."""


def run_plan(
    model: PreTrainedModel,
    plan: ScoringPlan,
    *,
    policy: Policy | None = None,
    scores: str | Iterable[str] = (),
    batch_tokens: int = 4096,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Scored:
    """Read every input of the plan once, under ``policy``, and score its continuations in float32.

    Raises:
        InputError: NaN logits, with the policy that caused them.
    """
    lengths = [len(row) for row in plan.inputs]
    requests_of: list[list[int]] = [[] for _ in plan.inputs]
    for request, index in enumerate(plan.input_of):
        requests_of[index].append(request)
    results: list[tuple[float, bool]] = [(float("nan"), False)] * len(plan.input_of)
    device = input_device(model)
    order: list[int] = []

    with instrument(model, policy=policy, scores=scores, seed=seed) as probe, torch.inference_mode():

        def run(batch: list[int]) -> None:
            tokens, mask = pad([plan.inputs[i] for i in batch], device)
            requests = [(place, request) for place, index in enumerate(batch) for request in requests_of[index]]
            spans = [len(plan.continuations[request]) for _, request in requests]
            rows = np.repeat([place for place, _ in requests], spans)
            columns = np.concatenate(
                [
                    np.arange(lengths[batch[place]] - span, lengths[batch[place]])
                    for (place, _), span in zip(requests, spans, strict=True)
                ]
            )
            targets = np.concatenate([plan.continuations[request] for _, request in requests])
            # Requests of one input read the same positions: project each position to the vocabulary once.
            flat, inverse = np.unique(rows * tokens.shape[1] + columns, return_inverse=True)
            where = torch.from_numpy(np.stack(np.divmod(flat, tokens.shape[1])))
            with _projecting_only(model, tokens.shape, where):
                logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
            if logits.shape[:2] != (1, len(flat)):  # the model does not go through get_output_embeddings()
                logits = logits[where[0], where[1]][None]
            nats, greedy = _token_loglikelihoods(logits[0], torch.from_numpy(inverse), torch.from_numpy(targets))
            if bool(nats.isnan().any()):
                raise InputError(
                    f"The model's logits are NaN under {policy.label if policy else 'no policy'}. Use float32 or bfloat16, or "
                    "another policy."
                )
            ends = np.cumsum(spans)
            for (_, request), start, end in zip(requests, ends - spans, ends, strict=True):
                results[request] = float(nats[start:end].sum()), bool(greedy[start:end].all())
            order.extend(batch)

        run_in_batches(lengths, batch_tokens, run, progress)
        back = np.argsort(order)
        return Scored(
            loglikelihoods=results, share_zeroed=probe.share_zeroed[back], scores=probe.scores.isel(example=back)
        )  # fmt: skip


def _token_loglikelihoods(logits: Tensor, index: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """For each target its log-probability (float32) and whether it is the most likely token, on the CPU.

    Args:
        logits: ``[position, vocabulary]``.
        index: ``[target]``, the position that predicts each target.
        targets: ``[target]`` token ids.
    """
    index, targets = index.to(logits.device), targets.to(logits.device)
    normaliser, best = [], []
    for some in logits.split(_POSITIONS_AT_A_TIME):
        normaliser.append(torch.logsumexp(some.float(), dim=-1))
        best.append(some.argmax(dim=-1))
    nats = logits[index, targets].float() - torch.cat(normaliser)[index]
    return nats.cpu(), (torch.cat(best)[index] == targets).cpu()


@contextmanager
def _projecting_only(model: PreTrainedModel, shape: torch.Size, where: Tensor) -> Iterator[None]:
    """Inside, the model's vocabulary projection runs on the positions ``where`` [2, position] alone.

    The hidden states ``[batch, position, hidden]`` become ``[1, chosen, hidden]`` just before the projection, so
    whatever the model does to its logits afterwards (scaling, softcapping) still happens.
    """
    projection = model.get_output_embeddings()
    if not isinstance(projection, nn.Module):
        yield
        return

    def select(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden = args[0] if args else None
        if isinstance(hidden, Tensor) and hidden.dim() == 3 and hidden.shape[:2] == shape:
            rows, columns = where.to(hidden.device)
            return (hidden[rows, columns][None], *args[1:])
        return None

    handle = projection.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
