"""How sure tables are to be: the same numbers in every table, wherever it is read."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What all tables of a run or study have in common; each function that makes one has the same defaults.

    Attributes:
        margin: the fall that is tolerated, in the metric's unit: 0.01 is the paper's 1 point of accuracy.
        confidence: of two-sided intervals, and of one-sided verdicts.
        resamples: bootstrap draws.
        seed: of the draws.
    """

    margin: float = 0.01
    confidence: float = 0.95
    resamples: int = 10_000
    seed: int = 0
