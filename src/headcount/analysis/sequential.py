"""Ask questions in random order, and stop as soon as it is known whether a policy's fall is within a margin."""

import math
from dataclasses import dataclass
from random import Random
from typing import Annotated, ClassVar, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from headcount.analysis.bootstrap import check_confidence
from headcount.analysis.outcomes import MEASURES, metrics_of, pair_outcomes
from headcount.errors import InputError, nearest
from headcount.metrics import Metric
from headcount.policies import BASELINE

Verdict = Literal["within", "beyond"]

# Shares of the wealth that are bet, side by side, each on a sixth of it: the lowest suit falls near the margin among many
# changed answers, the highest none at all. Six cost ln 6 nats against the best one; more of them ask for more questions.
_STAKES = np.geomspace(0.04, 0.95, 6)
_HALVINGS = 40  # of a range of at most 2
_ROUNDING = 1e-9  # in questions: sums of differences are whole numbers for metrics that are 0 or 1


class SequentialTest:
    """Whether a policy's fall over a whole benchmark is within a margin, from its questions one batch after another.

    The statement is about the ``total`` questions of the benchmark and nothing else: "if all were asked, the metric
    would fall by at most ``margin``" (*within*) or "by more" (*beyond*). The questions must come in random order,
    without replacement, whatever the answers. Looking after every question is allowed: over all looks together the
    verdict is wrong with probability at most 1 − ``confidence``. When all questions were asked it is exact. Other
    questions of the same kind are another matter: ``accuracy_table`` says what these show about them.

    Against "the mean change is at most −margin" a bettor stakes a share of his wealth on every next difference to come
    out above the mean that would be left for the questions not asked yet; were it true, the wealth would be a
    supermartingale, and reach 1 / (1 − confidence) with probability at most 1 − confidence (Ville). Another bets against
    "at least −margin". Only one of the two can be wrong, so neither is corrected for the other.

    Source: Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, JRSS B 86 (2024), Section 5
    (sampling without replacement). Differs: a mixture over fixed stakes instead of stakes that follow the data, which
    asks for fewer questions here, and the two one-sided tests apart.

    Args:
        total: questions of the whole benchmark.
        margin: the fall that is tolerated, as a fraction of 1.
        confidence: of the verdict.

    Raises:
        InputError: no questions, a margin outside 0…1 or a confidence outside 0…1.
    """

    def __init__(self, *, total: int, margin: float = 0.01, confidence: float = 0.95) -> None:
        if total < 1:
            raise InputError(f"total is the number of questions of the benchmark, at least 1; got {total}.")
        if not 0 <= margin < 1:
            raise InputError(f"margin is a fall of accuracy as a fraction of 1 (0.01 for 1 point); got {margin}.")
        self.total = total
        self.margin = margin
        self.confidence = check_confidence(confidence)
        self.differences: NDArray[np.float64] = np.zeros(0)
        self.decided_after: int | None = None
        self._log_wealth = np.zeros((2, len(_STAKES)))  # against "at most −margin" and against "at least −margin"
        self.verdict: Verdict | None = None
        """``within`` or ``beyond`` the margin; None while neither is known."""

    def __repr__(self) -> str:
        return f"<SequentialTest: {self.num_asked} of {self.total} questions, verdict {self.verdict}>"

    def update(self, differences: ArrayLike) -> Verdict | None:
        """Take in the next questions' differences, and say the verdict.

        Args:
            differences: the metric under the policy minus the baseline's, or the other way round where lower is better.

        Raises:
            InputError: a difference that is NaN or outside −1…1, or more questions than the benchmark has.
        """
        new = np.atleast_1d(np.asarray(differences, dtype=float))
        if new.ndim != 1 or not (np.abs(new) <= 1).all():
            wrong = new[~(np.abs(new) <= 1)][:1]
            raise InputError(
                f"Differences lie between −1 and 1, one a question; got {', '.join(map(str, wrong)) or new.shape}. Decide by "
                "a metric that is between 0 and 1 on every question."
            )
        if self.num_asked + len(new) > self.total:
            raise InputError(f"The benchmark has {self.total} questions; {self.num_asked + len(new)} came.")
        crossings: list[tuple[int, Verdict]] = []
        sides: tuple[tuple[int, Verdict], ...] = (1, "within"), (-1, "beyond")
        for side, (sign, verdict) in enumerate(sides):
            paths = self._log_wealth[side] + _log_wealth(
                sign * new, -sign * self.margin, total=self.total, asked=self.num_asked,
                so_far=sign * float(self.differences.sum()),
            )  # fmt: skip
            reached = np.flatnonzero(_mixture(paths) >= -math.log1p(-self.confidence))
            if reached.size:
                crossings.append((self.num_asked + int(reached[0]) + 1, verdict))
            if len(new):
                self._log_wealth[side] = paths[-1]
        if self.verdict is None and crossings:
            self.decided_after, self.verdict = min(crossings)
        self.differences = np.concatenate([self.differences, new])
        if self.num_asked == self.total:
            enough = self.differences.sum() >= -self.margin * self.total - _ROUNDING
            self.verdict = "within" if enough else "beyond"
            self.decided_after = self.decided_after or self.total
        return self.verdict

    @property
    def num_asked(self) -> int:
        return len(self.differences)

    @property
    def change(self) -> float:
        """Mean difference of the questions asked so far; NaN before the first."""
        return float(self.differences.mean()) if self.num_asked else math.nan

    @property
    def bounds(self) -> tuple[float, float]:
        """The mean change over the whole benchmark lies above the first, and below the second, each with ``confidence``.

        One-sided, as the verdict is: together they hold with 2 · ``confidence`` − 1. Valid whenever one looks.
        """
        if self.num_asked == self.total:
            return self.change, self.change
        return self._lower(1), -self._lower(-1)

    def _lower(self, sign: int) -> float:
        values = sign * self.differences
        certain = (values.sum() - (self.total - self.num_asked)) / self.total
        rejected, kept = certain, 1.0
        for _ in range(_HALVINGS):
            middle = (rejected + kept) / 2
            wealth = _mixture(_log_wealth(values, middle, total=self.total, asked=0, so_far=0.0))
            if wealth.max(initial=0.0) >= -math.log1p(-self.confidence):
                rejected = middle
            else:
                kept = middle
        return rejected


@dataclass(frozen=True, kw_only=True)
class UntilDecided:
    """When to stop asking questions under a policy: once its fall is known to be within a margin, or beyond it.

    The verdict is about the benchmark's questions, and wrong with probability at most 1 − ``confidence`` however often one
    looks: that of ``SequentialTest``.

    Attributes:
        metric: of lm-eval's, between 0 and 1.
        margin: the fall that is tolerated, as a fraction of 1.
        confidence: of each policy's verdict.
        questions_a_look: asked between two looks.
        higher_is_better: which way the metric is better, where its tasks are not to be asked. A fall is a rise where
            lower is better.

    Raises:
        InputError: a margin or confidence outside 0…1, or no questions between two looks.
    """

    metric: str = "acc"
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.01
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    questions_a_look: Annotated[int, Field(ge=1)] = 64
    higher_is_better: bool | None = None

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # where a study holds it

    def __post_init__(self) -> None:
        self.test(total=1)
        if self.questions_a_look < 1:
            raise InputError(f"At least one question is asked between two looks; got {self.questions_a_look}.")

    def test(self, total: int) -> SequentialTest:
        """The test of one policy on a benchmark of ``total`` questions."""
        return SequentialTest(total=total, margin=self.margin, confidence=self.confidence)

    def judged(self, outcomes: pd.DataFrame) -> Metric:
        """The metric, found in every question of ``outcomes`` and with a known direction.

        Raises:
            InputError: it is not.
        """
        return judged_metric(outcomes, self.metric, self.higher_is_better)

    def table(self, outcomes: pd.DataFrame, total: int) -> pd.DataFrame:
        """Each policy's verdict so far; ``total`` is the number of questions of the whole benchmark."""
        return sequential_table(
            outcomes, total=total, metric=self.metric, higher_is_better=self.higher_is_better, margin=self.margin,
            confidence=self.confidence,
        )  # fmt: skip

    def decided(self, outcomes: pd.DataFrame, total: int) -> set[str]:
        """The policies that need no more questions."""
        table = self.table(outcomes, total)
        return set(table.loc[table["verdict"].notna(), "policy"])


def asking_order(num_questions: int, seed: int) -> list[int]:
    """The random order in which questions are asked until it is decided: the same for a seed, on any machine."""
    draw = Random(seed).random  # noqa: S311  (no secret; its stream is the same in every version of Python)
    keys = [draw() for _ in range(num_questions)]
    return sorted(range(num_questions), key=keys.__getitem__)


def judged_metric(outcomes: pd.DataFrame, metric: str, higher_is_better: bool | None = None) -> Metric:
    """A metric to decide by, one question after the other: every question has it, finite, and better is one way.

    Raises:
        InputError: it is not so.
    """
    known = metrics_of(outcomes)
    if metric not in known and metric not in MEASURES:
        said = nearest(metric, known) if known else "There is none here."
        raise InputError(f"Unknown metric {metric!r} to decide by. {said}")
    without = outcomes.loc[~np.isfinite(outcomes[metric].to_numpy(dtype=float))]
    if len(without):
        first = without.iloc[0]
        lacks = f"question {first['doc_id']} of {first['task']} has no finite value of it under {first['policy']!r}"
        if bool(outcomes.loc[outcomes["task"] == first["task"], metric].isna().all()):
            lacks = f"{first['task']} does not have it"
        raise InputError(
            f"Questions are asked until {metric!r} decides, and {lacks}. Choose a metric that "
            "every question has, or ask that task by itself."
        )
    found = Metric.of(outcomes, metric, higher_is_better)
    if found.higher_is_better is None:
        raise InputError(found.doubt)
    return found


def sequential_table(
    outcomes: pd.DataFrame,
    *,
    total: int,
    metric: str = "acc",
    higher_is_better: bool | None = None,
    margin: float = 0.01,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Each policy's ``SequentialTest`` over its questions in the order of the rows, which is that of asking.

    The table of an evaluation that stopped policies as soon as they were decided: ``accuracy_table``'s bounds do not
    hold there, because a policy's number of questions depends on its answers.

    Args:
        outcomes: one row a policy and question, each policy's in the random order in which they were asked.
        total: questions of the whole benchmark.
        metric: the column to compare, between 0 and 1.
        higher_is_better: which way it is better, where its tasks are not to be asked.
        margin: the fall that is tolerated, as a fraction of 1.
        confidence: of the verdict, and of each bound.

    Returns:
        One row a policy other than the baseline: policy, curve, share_asked, share_realised, num_questions, total,
        change (of the questions asked), change_low, change_high (``SequentialTest.bounds``), verdict (within, beyond or
        None), decided_after (questions; NaN without a verdict), higher_is_better, is_share (whether every question is worth
        between 0 and 1). Changes are the metric's own: a rise is positive, whether it is better or not.

    Raises:
        InputError: as ``accuracy_table`` and ``SequentialTest``; a question without a finite value, or a metric of which
            is not known which way it is better.
    """
    pair_outcomes(outcomes, metric)  # refuses what cannot be compared
    judged = judged_metric(outcomes, metric, higher_is_better)
    of_baseline = outcomes[outcomes["policy"] == BASELINE].set_index(["task", "doc_id"])[metric]
    rows = []
    for policy in outcomes.loc[outcomes["policy"] != BASELINE, "policy"].unique():
        asked = outcomes.loc[outcomes["policy"] == policy]
        before = of_baseline.reindex(pd.MultiIndex.from_frame(asked[["task", "doc_id"]])).to_numpy(dtype=float)
        common = ~np.isnan(before)
        test = SequentialTest(total=total, margin=margin, confidence=confidence)
        test.update(judged.sign * (asked[metric].to_numpy(dtype=float) - before)[common])
        low, high = sorted(judged.sign * bound for bound in test.bounds)
        share_off = asked["share_off"].to_numpy(dtype=float)[common].mean()
        rows.append((
            policy, asked["curve"].iloc[0], asked["share_asked"].iloc[0], share_off, test.num_asked, total,
            judged.sign * test.change, low, high, test.verdict, test.decided_after, judged.higher_is_better, judged.is_share,
        ))  # fmt: skip
    columns = ["policy", "curve", "share_asked", "share_realised", "num_questions", "total", "change"]
    columns += ["change_low", "change_high", "verdict", "decided_after", "higher_is_better", "is_share"]
    return pd.DataFrame(rows, columns=columns)


def _log_wealth(
    differences: NDArray[np.float64], mean: float, *, total: int, asked: int, so_far: float
) -> NDArray[np.float64]:
    """Gains of log wealth, cumulated, [question, stake], of betting that the mean of all ``total`` exceeds ``mean``.

    ``asked`` questions with sum ``so_far`` came before. Infinite from where the questions left cannot undo the excess.
    """
    left = total - asked - np.arange(len(differences))  # before each question
    owed = total * mean - so_far - np.cumsum(differences)  # sum of the questions after it, if the mean were ``mean``
    room = 1 + (owed + differences) / left  # how far their mean, with it, lies above −1
    gain = np.ones(len(differences))
    np.divide(1 + differences, room, out=gain, where=room > _ROUNDING / left)
    gain[owed < -(left - 1) - _ROUNDING] = np.inf
    return np.cumsum(np.log1p(_STAKES * (gain[:, None] - 1)), axis=0)


def _mixture(log_wealth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log of the mean wealth over stakes, [question]."""
    return np.logaddexp.reduce(log_wealth, axis=1) - math.log(log_wealth.shape[1])
