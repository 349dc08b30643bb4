"""How numbers are said, the same on the page and in the terminal."""

import math
import unicodedata
from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from headcount.metrics import Metric
from headcount.policies import BASELINE, PRUNED, RANDOM, is_random

NOT_MEASURED = "–"
ACCURACY = Metric(name="acc")
_MARKS = {"Cc": " ", "Zl": " ", "Zp": " ", "Cf": "", "Cs": "\N{REPLACEMENT CHARACTER}"}  # by Unicode category


def shown(text: Any, limit: int = 160) -> str:
    """Text from strangers on one line: spaces for line breaks, no control or direction marks, its middle cut if long.

    >>> shown("a\\nb\\u202ec"), shown("abcdefghij", limit=5)
    ('a bc', 'ab…ij')
    """
    spaced = "".join(_MARKS.get(unicodedata.category(c), c) for c in str(text)[: 20 * limit])
    line = " ".join(spaced.split())
    half = (limit - 1) // 2
    return line if len(line) <= limit else f"{line[:half]}…{line[-half:]}"


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction as a percentage; a dash for NaN.

    >>> percent(0.123)
    '12.3%'
    """
    return NOT_MEASURED if math.isnan(fraction) else f"{100 * fraction:.{digits}f}%"


def points(fraction: float) -> str:
    """A change of a fraction in percentage points, always signed; a dash for NaN.

    >>> points(-0.015), points(0.0)
    ('−1.5', '0.0')
    """
    if math.isnan(fraction):
        return NOT_MEASURED
    text = f"{100 * fraction:+.1f}".replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text


def mean_of(metric: Metric, value: float) -> str:
    """A mean of a metric: a percentage where every question is worth between 0 and 1, else in the metric's own unit."""
    return percent(value) if metric.is_share else number(value)


def change_of(metric: Metric, change: float) -> str:
    """A change of a metric, signed: in points, or in the metric's own unit.

    >>> change_of(Metric(name="words", is_share=False), 12.34)
    '+12.3'
    """
    return points(change) if metric.is_share else f"{'+' * (change > 0)}{number(change)}"


def change_with_interval(row: Any, metric: Metric = ACCURACY) -> str:
    """The change of one row of the accuracy table, with its interval where there is one."""
    if math.isnan(row.change_low):
        return NOT_MEASURED if row.policy == BASELINE else change_of(metric, row.change)
    low, high = (change_of(metric, end) for end in (row.change_low, row.change_high))
    return f"{change_of(metric, row.change)} [{low}, {high}]"


def policy_name(row: Any) -> str:
    """The curve where a share of heads was asked for, else the policy's own label."""
    return row.policy if not row.curve or math.isnan(row.share_asked) else row.curve


def removable_with_interval(row: Any) -> str:
    """One row of the removable table: "12.3% [8.1, 17.0]", "≥ 24.1% [20.3, ≥ 24.1]" for a lower bound."""
    bound = "≥ " if row.is_lower_bound else ""
    high = "≥ " if open_above(row) else ""
    return f"{bound}{percent(row.removable_share)} [{100 * row.low:.1f}, {high}{100 * row.high:.1f}]"


def open_above(row: Any) -> bool:
    """Whether the interval of a removable share ends only because no larger share was measured."""
    return row.high >= row.largest_share_measured


def number(value: float) -> str:
    """A measured value to three significant digits; a dash for NaN.

    >>> number(12.345), number(0.04567), number(-0.5), number(0.0000123), number(123456.0)
    ('12.3', '0.0457', '−0.500', '1.2e−5', '1.2e5')
    """
    if math.isnan(value):
        return NOT_MEASURED
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e5):
        digits, exponent = f"{value:.1e}".split("e")
        return f"{digits}e{int(exponent)}".replace("-", "−")
    return f"{value:.{0 if size == 0 else max(0, 2 - math.floor(math.log10(size)))}f}".replace("-", "−")


def nats(value: float, low: float, high: float, *, signed: bool = False) -> str:
    """A mean in nats with its interval; a dash for NaN.

    >>> nats(-0.0312, -0.05, 0.004, signed=True), nats(0.1, 0.05, 0.2)
    ('−0.031 [−0.050, +0.004]', '0.100 [0.050, 0.200]')
    """
    if math.isnan(value):
        return NOT_MEASURED
    said = [f"{number:{'+' if signed else ''}.3f}".replace("-", "−") for number in (value, low, high)]
    return f"{said[0]} [{said[1]}, {said[2]}]"


def p_value(p: float) -> str:
    """A p-value; a dash for NaN.

    >>> p_value(0.0004), p_value(0.0123)
    ('< 0.001', '0.012')
    """
    return NOT_MEASURED if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def left_out(accuracy: pd.DataFrame, metric: Metric) -> list[str]:
    """That questions without a finite value were left out, in a sentence; none where there are none."""
    counts = accuracy["num_not_finite"].to_numpy() if "num_not_finite" in accuracy else np.zeros(1, int)
    worst = int(counts.max())
    if not worst:
        return []
    baseline, policies = int(counts[0]), int((counts > counts[0]).sum())
    asked = worst + int(accuracy["num_questions"].to_numpy()[int(counts.argmax())])
    more = f", untouched in {baseline}" + f"; more than that under {policies} policies" * bool(policies)
    return [
        f"Not finite: {metric.name} has no finite value in up to {worst:,} of {asked:,} questions{more}. They are left out "
        "here; lm-eval's own metrics have them."
    ]


def possible(metric: Metric, values: Iterable[float]) -> list[float]:
    """Bounds of means, none beyond 0 and 1 where every question is worth between 0 and 1."""
    return [min(max(value, 0.0), 1.0) if metric.is_share else value for value in values]


def ratio(value: float) -> str:
    """A part of 1 to two digits; a dash for NaN."""
    return NOT_MEASURED if math.isnan(value) else f"{value:.2f}"


def verdict(within: str | float | None) -> str:
    """Whether a fall is within a margin: shown, refuted or undecided; a dash where nothing is to be judged."""
    return within if isinstance(within, str) else NOT_MEASURED


def first_paragraph(docstring: str | None) -> str:
    """What a docstring says first, on one line and without its code marks."""
    return " ".join((docstring or "").strip().split("\n\n")[0].replace("``", "").split())


def rows(table: pd.DataFrame) -> list[Any]:
    """The rows of a table with its columns as attributes."""
    return list(table.itertuples(index=False))


def by_score(curve: str) -> bool:
    """Whether a curve's heads were chosen by a score: not at random, and not gone for good."""
    return curve != PRUNED and not is_random(curve)


def best_first(removable: pd.DataFrame) -> pd.DataFrame:
    """The curve with the largest removable share first, random last."""
    table = removable.sort_values("removable_share", ascending=False, kind="stable")
    return table.sort_values("curve", key=lambda curves: curves.map(is_random), kind="stable", ignore_index=True)


def best_row(removable: pd.DataFrame) -> Any | None:
    """The row of the score with the largest removable share; None without one."""
    scored = [row for row in rows(removable) if by_score(row.curve)]
    return max(scored, key=lambda row: row.removable_share, default=None)


def answer(
    removable: pd.DataFrame,
    *,
    metric: Metric | str,
    margin: float,
    tasks: Sequence[str],
    confidence: float,
    num_questions: int,
    units: str = "heads",
) -> str:
    """What a reader takes home: the best score's removable share with its interval, and random's.

    Where one question alone is worth more than the margin, that comes first.
    """
    metric = Metric(name=metric) if isinstance(metric, str) else metric
    best = best_row(removable)
    what = f"{' and '.join(tasks) or 'the'} {metric_name(metric.name)}"
    within = f"within {fall_name(margin, metric)} of {what}"
    if metric.sign < 0:
        within = f"with {what} at most {fall_name(margin, metric)} higher"
    randoms = [row for row in rows(removable) if is_random(row.curve)]
    randoms = sorted(randoms, key=lambda row: row.curve != RANDOM)[:1]  # those of all layers, where there are several
    at_random = " ".join(f"{'at least ' * row.is_lower_bound}{_whole(row.removable_share)}" for row in randoms)
    doubt = ""
    if metric.is_share and _too_few(num_questions, margin):
        asked = "One question is" if num_questions == 1 else f"{num_questions} questions are"
        doubt = (
            f"{asked} too few to say how many {units} can be off {within}: one answer is worth "
            f"{100 / num_questions:.3g} points. Taken literally, "
        )
        within = ""
    if best is None:
        share, by = at_random, f"of {units}, chosen at random, can be off"
    else:
        if best.is_lower_bound:
            interval = f"{_whole(best.low)} or more"
        elif open_above(best):
            interval = f"{_whole(best.low)} to at least {_whole(best.high)}"
        else:
            interval = f"{_whole(best.low)[:-1]}–{_whole(best.high)}"
        share = f"{'at least ' * best.is_lower_bound}{_whole(best.removable_share)}"
        within = f"{within} by {shown(best.curve, 40)} ({percent(confidence, 0)} interval {interval})".strip()
        if at_random:
            within += f"; random {units}: {at_random}"
        by = f"of {units} can be off"
    said = f"{share} {by} {within}".strip()
    return f"{doubt}{said}." if doubt else f"{said[:1].upper()}{said[1:]}."


def _too_few(num_questions: int, margin: float) -> bool:
    """Whether a single answer is worth more than the margin."""
    return num_questions * margin < 1


def proof(
    removable: pd.DataFrame, *, num_questions: int, margin: float, confidence: float, units: str = "heads"
) -> str:
    """What of ``answer`` the questions show, in a sentence as weighty as that; empty where they show all of it.

    Empty also where ``answer`` says itself that they are too few.
    """
    best = best_row(removable)
    if best is None or best.share_shown >= best.removable_share or _too_few(num_questions, margin):
        return ""
    asked, sure = f"These {num_questions:,} questions", f"with {percent(confidence, 0)} confidence"
    if best.share_shown:
        return f"{asked} show it, {sure}, only up to {_whole(best.share_shown)} of {units}."
    return f"{asked} do not show it {sure} even at the smallest share tried."


def caveats(
    accuracy: pd.DataFrame,
    removable: pd.DataFrame,
    *,
    margin: float,
    confidence: float,
    chance: float | None,
    metric: Metric = ACCURACY,
    units: str = "heads",
) -> list[str]:
    """What a careful reader must know before repeating the answer; empty when nothing is to be said."""
    baseline = rows(accuracy.head(1))[0]
    low, high = _wilson(baseline.accuracy, baseline.num_questions, confidence)
    said = [metric.doubt] * bool(metric.doubt) + left_out(accuracy, metric)
    fall, name = "rise" if metric.sign < 0 else "fall", metric_name(metric.name)
    if metric.is_share and high - low > 2 * margin:
        said.append(
            f"Few questions: from {baseline.num_questions:,} the untouched model's own {name} is known only to lie "
            f"between {percent(low)} and {percent(high)}, so a {fall} of {fall_name(margin)} is hard to tell from luck. "
            "Read the interval, not the single number."
        )
    if chance is not None and low <= chance:
        said.append(
            f"Near chance: guessing would give {percent(chance)} and the untouched model has "
            f"{percent(baseline.accuracy)}. Where a model cannot do the task, switching {units} off has little to take away."
        )
    if (best := best_row(removable)) is None:
        return said
    below = [row for row in rows(accuracy) if row.curve == best.curve and metric.sign * row.change < -margin]
    if dips := [row for row in below if row.share_realised < best.removable_share]:
        worst = min(dips, key=lambda row: metric.sign * row.change)
        size = 100 * abs(worst.change) if metric.is_share else abs(worst.change)
        apart = f"{size:.1f} points" if metric.is_share else number(size)
        side, moves = ("above", "rises above") if metric.sign < 0 else ("below", "falls below")
        said.append(
            f"Not at every smaller share: with {percent(worst.share_realised)} of {units} off by {shown(best.curve, 40)}, "
            f"{name} was {apart} {side}. The share is where the curve last {moves}, as in the paper."
        )
    chosen = max((row.removable_share for row in rows(removable) if is_random(row.curve)), default=0.0)
    if chosen >= best.removable_share:
        said.append(f"No better than chance: with random {units} the share is {_whole(chosen)}, as large or larger.")
    tried = sum(by_score(row.curve) for row in rows(removable))
    if tried > 1:
        said.append(
            f"{shown(best.curve, 40)} is the best of {tried} scores on these very questions, which flatters it; "
            "the interval does not correct for that. Confirm it on other questions."
        )
    return said


def _wilson(mean: float, count: int, confidence: float) -> tuple[float, float]:
    """Wilson's interval of a mean of values from 0 to 1, which does not close at 0 and 1; as it is for any other mean."""
    if not 0 <= mean <= 1:
        return mean, mean
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    middle = (count * mean + z2 / 2) / (count + z2)
    half = math.sqrt(z2 * count * mean * (1 - mean) + z2 * z2 / 4) / (count + z2)
    return max(0.0, middle - half), min(1.0, middle + half)


def metric_name(metric: str) -> str:
    """A metric of lm-eval as a reader says it."""
    return {"acc": "accuracy", "acc_norm": "length-normalised accuracy"}.get(metric, metric)


def titled(text: str) -> str:
    """With a capital letter in front."""
    return f"{text[:1].upper()}{text[1:]}"


def names_of(metrics: Iterable[Metric]) -> str:
    """What several runs were measured by, each once: "accuracy", "err, lower is better; f1"."""
    return "; ".join(
        dict.fromkeys(f"{shown(metric_name(m.name), 40)}{', lower is better' * (m.sign < 0)}" for m in metrics)
    )


def margins_of(margin: float, metrics: Iterable[Metric]) -> str:
    """A margin in the units of several metrics: "1 point", "1 point or 0.01"."""
    return " or ".join(dict.fromkeys(fall_name(margin, metric) for metric in metrics))


def judged_in(table: pd.DataFrame) -> Metric:
    """What a table of ``accuracy_table`` or ``sequential_table`` was judged by, as its columns say."""
    first = rows(table.head(1))[0]
    way = getattr(first, "higher_is_better", True)
    return Metric(
        name=str(getattr(first, "metric", "")),
        higher_is_better=None if pd.isna(way) else bool(way),
        is_share=bool(getattr(first, "is_share", True)),
    )


def fall_name(margin: float, metric: Metric = ACCURACY) -> str:
    """A margin as a reader says it: "1 point", "2.5 points", or in the metric's own unit "0.01"."""
    if not metric.is_share:
        return f"{margin:g}"
    return f"{100 * margin:g} point{'' if margin == 0.01 else 's'}"


def _whole(fraction: float) -> str:
    """A share in running text: whole percent, one decimal below 10% where it says more."""
    return percent(fraction, 0 if fraction >= 0.0995 or fraction == 0 else 1)
