"""Off are the same share of every layer on every row, those that come first by a score: ``ahon_ln:rank:0.10``."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from headcount.policies.by_score import ByScore
from headcount.policies.policy import PolicyFacts, read_name, read_share, share_of
from headcount.policies.seen import Seen
from headcount.scores import get_score


@dataclass(frozen=True)
class Ranked(ByScore):
    """So many heads of each layer are off that it comes to ``share`` of all, on every input or, by ``ID/token``, every token.

    Which they are the row says: those that a score calls least active. What is asked is so what comes about, on texts of
    any length and kind, where thresholds drift. A layer of H heads has H · share of them off, rounded so that
    what is rounded off in one layer is added in the next.

    Args:
        score: id or alias of a registered score.
        share: of heads, or of pairs of a head and a token.

    Raises:
        InputError: unknown score, or a share outside 0…1.
    """

    share: float

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "share", share_of(self.share))

    @classmethod
    def parse(cls, text: str, *, exclude_layers: Iterable[int], seed: int) -> Self | None:
        """``ID:rank:SHARE``, with ``ID`` as in ``Threshold``; None for anything else."""
        name, _, rest = text.partition(":")
        kind, _, number = rest.partition(":")
        if kind.strip().lower() != "rank" or (share := read_share(number, text)) is None:
            return None
        score, said = read_name(name)
        return cls(score, share, exclude_layers=frozenset(exclude_layers), **said)

    def facts(self) -> PolicyFacts:
        return PolicyFacts(
            policy=self.called(self.score, f":rank:{self.share:.12g}"), curve=self.called(self.score, ":rank"),
            score=self.score, share_asked=self.share, decides=self.decides,
        )  # fmt: skip

    def __str__(self) -> str:
        score = get_score(self.score)
        side = "lowest" if score.inactive_when == "low" else "highest"
        which = f"the {100 * self.share:g}% of each layer's heads with the {side} {self.score} ({score.name})"
        return f"{self._verb} {which}{self._how}"

    def decide(self, seen: Seen) -> Tensor:
        score, values = get_score(self.score), seen.score(self.score)
        towards = values if score.inactive_when == "low" else -values
        order = torch.where(towards.isnan(), torch.inf, towards).argsort(dim=1, stable=True)
        rank = order.argsort(dim=1)
        of_layer = self.share * values.shape[1]
        number = math.floor((seen.place + 1) * of_layer + 0.5) - math.floor(seen.place * of_layer + 0.5)
        return (rank < number) & ~values.isnan()
