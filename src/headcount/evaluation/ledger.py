"""Read the log-probabilities of a plan's tokens out of logits, and keep them, under every policy, as passes find them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headcount.evaluation.plan import ScoringPlan
from headcount.models.batching import Progress
from headcount.models.prefixes import Segment

#: Positions whose log-softmax over the vocabulary is taken at a time, in float32.
_POSITIONS_AT_A_TIME = 256


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a ScoringPlan's requests were answered under one policy.

    Attributes:
        loglikelihoods: for each request, the continuation's log-likelihood in nats, and whether it is the greedy one.
        share_off: float64 [input]: heads off over heads of the model.
        failure: why the policy was given up; None if it was not.
    """

    loglikelihoods: list[tuple[float, bool]]
    share_off: np.ndarray
    failure: str | None = None


class Ledger:
    """One row of tokens for each policy, and one more for the untouched model."""

    def __init__(self, plan: ScoringPlan, num_policies: int, progress: Progress) -> None:
        self._plan, self._targets, self._progress = plan, plan.targets(), progress
        spans = np.array([len(continuation) for continuation in plan.continuations], dtype=np.int64)
        self._starts = np.cumsum(spans) - spans  # of each request's tokens
        size = int(spans.sum())
        self._nats = np.full((num_policies + 1, size), np.nan, np.float32)
        self._greedy = np.zeros((num_policies + 1, size), bool)
        self._share_off = np.full((num_policies, len(plan.inputs)), np.nan)
        self._slots_of: list[list[int]] = [
            [self._starts[request] + place for of_position in wanted.values() for _, request, place in of_position]
            for wanted in self._targets
        ]
        self.failures: dict[int, str] = {}
        self.untouched = num_policies
        """The row of the untouched model."""

    def wanted(self, row: int, segment: Segment) -> Iterable[tuple[int, int, int, int]]:
        """What is to be read while ``row`` reads a segment: (row, position in the segment, token, slot in the ledger)."""
        for input in segment.inputs:
            for position, of_position in self._targets[input].items():
                if segment.start <= position < segment.end:
                    for token, request, place in of_position:
                        yield row, position - segment.start, token, int(self._starts[request] + place)

    def write(
        self, lead: int | np.ndarray, slots: Sequence[int] | np.ndarray, nats: np.ndarray, greedy: np.ndarray
    ) -> None:
        """Enter tokens' log-probabilities and whether they are the likeliest, all of one row or each of its own."""
        self._nats[lead, slots] = nats
        self._greedy[lead, slots] = greedy

    def settle(self, policy: int, input: int, share_off: float, *, like: int | None = None) -> None:
        """An input is answered under a policy: by the policy's own tokens, or ``like`` those of another row."""
        if like is not None:
            slots = self._slots_of[input]
            self.write(policy, slots, self._nats[like, slots], self._greedy[like, slots])
            if like in self.failures and np.isnan(self._nats[like, slots]).any():
                self.failures.setdefault(policy, self.failures[like])
        self._share_off[policy, input] = share_off

    def report(self, num_read: int = 0) -> None:
        """Say how many inputs were answered, each once a policy; without policies how many were read."""
        if self._share_off.size:
            self._progress(int((~np.isnan(self._share_off)).sum()), self._share_off.size)
        else:
            self._progress(num_read, len(self._targets))

    def results(self) -> list[Scored]:
        results = []
        for policy, share_off in enumerate(self._share_off):
            nats = np.add.reduceat(self._nats[policy].astype(np.float64), self._starts).tolist()
            greedy = np.logical_and.reduceat(self._greedy[policy], self._starts).tolist()
            answers = list(zip(nats, greedy, strict=True))
            results.append(Scored(loglikelihoods=answers, share_off=share_off, failure=self.failures.get(policy)))
        return results


class Reading:
    """Which positions of a batch are read, for which tokens."""

    def __init__(self, wanted: Sequence[tuple[int, int, int]]) -> None:
        """``wanted``: (row, position, token) triples. Several tokens may be asked of one position."""
        self.places = list(dict.fromkeys((row, position) for row, position, _ in wanted))
        index = {place: i for i, place in enumerate(self.places)}
        self._index = torch.tensor([index[row, position] for row, position, _ in wanted], dtype=torch.int64)
        self._targets = torch.tensor([token for *_, token in wanted], dtype=torch.int64)

    def loglikelihoods(self, logits: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """For each triple the token's log-probability (float32), and whether it is the likeliest one.

        ``logits`` are those at ``places``, ``[place, vocabulary]``.
        """
        index, targets = self._index.to(logits.device), self._targets.to(logits.device)
        normaliser, best = [logits.new_zeros(0, dtype=torch.float32)], [targets[:0]]
        for some in logits.split(_POSITIONS_AT_A_TIME):
            if len(some):
                normaliser.append(torch.logsumexp(some.float(), dim=-1))
                best.append(some.argmax(dim=-1))
        nats = logits[index, targets].float() - torch.cat(normaliser)[index]
        return nats.cpu().numpy(), (torch.cat(best)[index] == targets).cpu().numpy()
