"""Off are heads drawn at random, which every score is held against: ``random:0.10``."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

from torch import Tensor

from headcount.errors import InputError, seed_of
from headcount.policies.policy import Policy, PolicyFacts, read_name, read_share, share_of
from headcount.policies.seen import Seen
from headcount.scores import PER_TOKEN, Rows

#: Its name in texts, its curve, and the id of the score of the same numbers.
RANDOM = "random"


def is_random(curve: str) -> bool:
    """Whether a curve is of heads drawn at random, whatever stands in their place and whichever layers are left alone."""
    return re.split(r"[/+ ]", curve, maxsplit=1)[0] == RANDOM


@dataclass(frozen=True)
class Random(Policy):
    """Each head of each layer is off on each example, or on each token, independently with probability ``share``.

    The draw depends on the seed and the example's tokens alone, or on the seed, the token and its place, so it is the same
    in any batch.

    Args:
        share: the probability.
        seed: of the draws.
        per: what a decision is about, an ``input`` or a ``token``.
    """

    share: float
    seed: int = 0
    per: Rows = field(default="input", kw_only=True)  # type: ignore[assignment]  (a field where others have a property)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per not in ("input", "token"):
            raise InputError(f"per is 'input' or 'token', not {self.per!r:.60}.")
        object.__setattr__(self, "share", share_of(self.share))
        object.__setattr__(self, "seed", seed_of(self.seed))

    @classmethod
    def parse(cls, text: str, *, exclude_layers: Iterable[int], seed: int) -> Self | None:
        """``random:SHARE`` or ``random:SHARE#SEED``, and ``random/token`` with the same; None for anything else."""
        name, _, rest = text.partition(":")
        number, own_seed, digits = rest.partition("#")
        own_name = name.partition("+")[0].strip().lower()
        if own_name not in (RANDOM, RANDOM + PER_TOKEN):
            return None
        try:
            seed = int(digits) if own_seed else seed
        except ValueError:
            return None
        if (share := read_share(number, text)) is None:
            return None
        per: Rows = "token" if own_name.endswith(PER_TOKEN) else "input"
        return cls(share, seed, per=per, exclude_layers=frozenset(exclude_layers), **read_name(name)[1])

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"uniform"})

    def facts(self) -> PolicyFacts:
        name = RANDOM + PER_TOKEN if self.per == "token" else RANDOM
        at = f":{self.share:.12g}" if self.seed == 0 else f":{self.share:.12g}#{self.seed}"
        return PolicyFacts(
            policy=self.called(name, at), curve=self.called(name), score=name, share_asked=self.share, threshold=self.share,
            decides=self.decides,
        )  # fmt: skip

    def __str__(self) -> str:
        each = f"{self._verb} each head of each {self.per} with probability {100 * self.share:g}%, seed {self.seed}"
        return each + self._how

    def decide(self, seen: Seen) -> Tensor:
        return seen.uniform(self.seed) < self.share
