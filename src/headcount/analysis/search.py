"""Find the removable share with few evaluations: ask at one share, and let the answer choose the next."""

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import pandas as pd
from pydantic import Field

from headcount.analysis.sequential import Verdict
from headcount.errors import InputError

_STRAIGHT = (
    0.1  # the next share stays this part of the interval away from its ends, for curves that are flat and then steep
)


@dataclass(frozen=True, kw_only=True)
class Look:
    """What an evaluation at one share found.

    Attributes:
        change: of accuracy, against the baseline on the same questions; above 0 is better, whatever the metric.
        verdict: ``within`` or ``beyond`` the margin; None where that stayed undecided.
        share_realised: of the heads, while answering.
    """

    change: float
    verdict: Verdict | None
    share_realised: float


@dataclass(frozen=True, kw_only=True)
class Search:
    """Where the removable share lies. All shares are those asked for; ``looks`` has the realised ones.

    Attributes:
        within: the largest share found within the margin; 0 if none was.
        beyond: the smallest share that was not; None if the largest was within.
        looks: every share asked, in order, with what was found.
    """

    within: float
    beyond: float | None
    looks: tuple[tuple[float, Look], ...]


@dataclass(frozen=True, kw_only=True)
class ShareSearch:
    """How the share is looked for at which a score's curve falls by more than a margin.

    The largest share is asked first. While it is not within, the next share lies where a straight line between the ends of
    the interval crosses the margin (false position, with the halving of a stale end that is known as Illinois), and becomes
    one of its ends: the lower one if it is found within the margin, else the upper one. An undecided share is not within.
    On the published curves this takes 4.1 looks on average for a resolution of 1 percent of the heads, bisection 6.

    A curve that comes back after a fall has several places where it falls; this finds one of them, not always the last.
    Each verdict errs as rarely as the test that made it; all of them are right with at least 1 minus the number of looks
    times that. Ask with higher confidence where this matters.

    Attributes:
        largest: the largest share worth asking.
        resolution: the interval at which to stop. Shares are multiples of a twentieth of it.

    Raises:
        InputError: a share or resolution that makes no search.
    """

    largest: Annotated[float, Field(gt=0, le=1)] = 0.30
    resolution: Annotated[float, Field(gt=0, lt=1)] = 0.01

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # where a study holds it

    def __post_init__(self) -> None:
        if not (0 < self.largest <= 1 and self.resolution > 0):
            raise InputError(
                f"A search takes a largest share in 0…1 and a resolution above 0; got {self.largest} and {self.resolution}."
            )

    def bisections(self) -> int:
        """Looks that bisection would take: more than this takes on average."""
        return 1 + max(0, math.ceil(math.log2(self.largest / self.resolution)))

    def looks(self, margin: float) -> Generator[float, Look, Search]:
        """The shares to ask at, one after the other; takes what was found at each, and ends with where the share lies.

        Raises:
            InputError: a margin below 0, or a look without a change.
        """
        if not margin >= 0:
            raise InputError(f"A search takes a margin of 0 or more; got {margin}.")
        look = yield self.largest
        looks = [(self.largest, look)]
        if look.verdict == "within":
            return Search(within=self.largest, beyond=None, looks=tuple(looks))
        low, high = 0.0, self.largest
        above, below = margin, min(_excess(look, margin), 0.0)  # how far the curve lies above the line at the ends
        kept = ""
        while high - low > self.resolution * (1 + 1e-9):
            part = above / (above - below) if above > below else 0.5
            share = low + min(max(part, _STRAIGHT), 1 - _STRAIGHT) * (high - low)
            share = self._rounded(min(max(share, low + self.resolution / 2), high - self.resolution / 2))
            look = yield share
            looks.append((share, look))
            if look.verdict == "within":
                low, above = share, max(_excess(look, margin), 0.0)
                below = below / 2 if kept == "high" else below
                kept = "high"
            else:
                high, below = share, min(_excess(look, margin), 0.0)
                above = above / 2 if kept == "low" else above
                kept = "low"
        return Search(within=low, beyond=high, looks=tuple(looks))

    def _rounded(self, share: float) -> float:
        step = self.resolution / 20
        return round(round(share / step) * step, 12)


def find_removable_share(
    ask: Callable[[float], Look], *, margin: float = 0.01, largest: float = 0.30, resolution: float = 0.01
) -> Search:
    """Close in on the share at which a score's curve falls by more than ``margin``, as ``ShareSearch`` says.

    Args:
        ask: evaluates at a share of heads.
        margin: the fall that is tolerated, as a fraction of 1.
        largest: the largest share worth asking.
        resolution: the interval at which to stop.

    Raises:
        InputError: a margin, share or resolution that makes no search, or a look without a change.
    """
    steps = ShareSearch(largest=largest, resolution=resolution).looks(margin)
    share = next(steps)
    while True:
        try:
            share = steps.send(ask(share))
        except StopIteration as ended:
            return ended.value


def decided_shares(decided: pd.DataFrame) -> pd.DataFrame:
    """Between which shares each curve's removable share lies, from the verdicts on the shares that were asked.

    Args:
        decided: as from ``sequential_table``.

    Returns:
        One row a curve: curve; within, the largest share asked up to which every one is within the margin (0 without
        one); beyond, the next one that was asked (NaN without one: the removable share is at least ``within``);
        within_realised and beyond_realised; looks, shares asked; num_questions, asked under all of them. Shares are
        fractions of all heads.
    """
    rows = []
    for curve, looks in decided.dropna(subset=["share_asked"]).groupby("curve", sort=False):
        looks = looks.sort_values("share_asked", kind="stable")
        within = (looks["verdict"] == "within").cummin().to_numpy(dtype=bool)
        row: dict[str, object] = {"curve": curve}
        for suffix in ("", "_realised"):
            shares = looks["share_realised" if suffix else "share_asked"].to_numpy(dtype=float)
            row[f"within{suffix}"] = shares[within][-1] if within.any() else 0.0
            row[f"beyond{suffix}"] = math.nan if within.all() else shares[~within][0]
        rows.append(row | {"looks": len(looks), "num_questions": int(looks["num_questions"].to_numpy().sum())})
    columns = ["curve", "within", "beyond", "within_realised", "beyond_realised", "looks", "num_questions"]
    return pd.DataFrame(rows, columns=columns)


def _excess(look: Look, margin: float) -> float:
    if math.isnan(look.change):
        raise InputError("A look found no change (NaN): no question was answered under the policy and the baseline.")
    return look.change + margin
