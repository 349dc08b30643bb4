"""What a score is, apart from its function: what a table of its values must say for them to be understood."""

from dataclasses import dataclass
from typing import Literal

#: Of a threshold, on which a head is inactive.
Side = Literal["low", "high"]


@dataclass(frozen=True, kw_only=True)
class ScoreFacts:
    """The facts that show a score.

    A head is inactive when its score is beyond a threshold on the side that ``inactive_when`` names.
    """

    id: str
    name: str
    inactive_when: Side
    unit: str
    source: str
