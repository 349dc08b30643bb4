"""What policies have in common that decide by one score."""

from dataclasses import dataclass

from headcount.policies.policy import Policy
from headcount.scores import Rows, get_score


@dataclass(frozen=True)
class ByScore(Policy):
    """Decides by one score, on the rows that the score is of.

    Args:
        score: id or alias of a registered score.

    Raises:
        InputError: unknown score.
    """

    score: str

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "score", get_score(self.score).id)

    @property
    def needs(self) -> frozenset[str]:
        return get_score(self.score).needs

    @property
    def per(self) -> Rows:
        return get_score(self.score).per
