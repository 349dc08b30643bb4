"""Off are heads drawn at random, which every score is held against: ``random:0.10``."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from headcount.errors import InputError, seed_of
from headcount.policies.policy import Policy, PolicyFacts, Seen, share_of

#: Its name in texts, its curve, and the id of the score of the same numbers.
RANDOM = "random"


def is_random(curve: str) -> bool:
    """Whether a curve is of heads drawn at random, whatever stands in their place and whichever layers are left alone."""
    return curve.partition(" ")[0] == RANDOM


@dataclass(frozen=True)
class Random(Policy):
    """Zero each head of each layer and example independently with probability ``share``.

    The draw depends on the seed and the example's tokens alone, so it is the same in any batch.
    """

    share: float
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "share", share_of(self.share))
        object.__setattr__(self, "seed", seed_of(self.seed))

    @classmethod
    def parse(cls, text: str, *, exclude_layers: Iterable[int], seed: int) -> Self | None:
        """``random:SHARE`` or ``random:SHARE#SEED``; None for anything else."""
        name, _, rest = text.partition(":")
        number, own_seed, digits = rest.partition("#")
        if name.strip().lower() != RANDOM:
            return None
        try:
            value, seed = float(number), int(digits) if own_seed else seed
        except ValueError:
            return None
        if not 0 <= value <= 1:
            raise InputError(f"Policy {text!r}: a share of heads lies between 0 and 1; write 10% as 0.10.")
        return cls(value, seed, exclude_layers=frozenset(exclude_layers))

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"uniform"})

    def facts(self) -> PolicyFacts:
        name = f"{RANDOM}:{self.share:.12g}" if self.seed == 0 else f"{RANDOM}:{self.share:.12g}#{self.seed}"
        return PolicyFacts(
            policy=name + self.suffix, curve=RANDOM + self.suffix, score=RANDOM, share_asked=self.share, threshold=self.share
        )  # fmt: skip

    def __str__(self) -> str:
        return f"zeroes each head of each input with probability {100 * self.share:g}%, seed {self.seed}{self.suffix}"

    def decide(self, seen: Seen) -> Tensor:
        return seen.uniform(self.seed) < self.share
