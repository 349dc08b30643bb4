"""Accuracy with heads off, and how many can be."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from headcount.errors import InputError, nearest
from headcount.policies import is_random
from headcount.report.plot.paper import line_style, name_rows, new_axes, plain
from headcount.report.results import MARGIN, RunResults
from headcount.report.style import ACCENT, GREY, score_style
from headcount.report.wording import fall_name, names_of, open_above, possible, rows, titled
from headcount.store.manifest import Manifest, Settings

#: One row a policy and question; or all that a report is made from.
Outcomes = pd.DataFrame | RunResults


def accuracy(
    outcomes: Outcomes,
    *,
    metric: str | None = None,
    higher_is_better: bool | None = None,
    scores: Sequence[str] | None = None,
    bands: Sequence[str] | None = None,
    relative: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Accuracy against the realised share of heads off, one line a score, the untouched model dashed.

    Args:
        outcomes: one row a policy and question, the baseline among them, as ``Evaluation.outcomes`` or ``Run.outcomes()``;
            or all that a report is made from, as from ``headcount.report.read_results``.
        metric: a metric of lm-eval's; None for ``acc`` or else the first there is.
        higher_is_better: which way it is better, where its tasks are not to be asked.
        scores: which to draw; None for all.
        bands: scores whose 95% intervals are shaded; None for the one with the largest removable share, and random.
        relative: draw percent of the untouched model's accuracy.
        ax: where to draw; None for a new figure.

    Raises:
        InputError: no baseline, an unknown metric or score, or ``relative`` to an accuracy of 0.
    """
    results = evaluated(outcomes, metric, higher_is_better)
    known = results.removable["curve"].tolist()
    wanted = _known(scores, known)
    if bands is None:
        bands = [curve for curve in wanted if curve == known[0] or is_random(curve)]
    table = results.answers.accuracy
    baseline = float(table["accuracy"].iloc[0])
    if relative and not baseline:
        raise InputError(
            "The untouched model has no question right, so nothing is relative to it. Give relative=False."
        )
    judged = results.judged
    scale = 100 / baseline if relative else 100 if judged.is_share else 1
    ax = ax or new_axes()
    for score in wanted:
        points = sorted((row for row in rows(table) if row.curve == score), key=lambda row: row.share_realised)
        x = [0.0, *(100 * row.share_realised for row in points)]
        style = score_style(score)
        if score in bands:
            low, high = ([0.0, *(getattr(row, side) for row in points)] for side in ("change_low", "change_high"))
            bottom, top = (
                [scale * bound for bound in possible(judged, [baseline + change for change in changes])]
                for changes in (low, high)
            )
            ax.fill_between(x, bottom, top, color=style.light, alpha=0.15, linewidth=0)
        y = [scale * baseline, *(scale * (baseline + row.change) for row in points)]
        ax.plot(x, y, label=plain(score, 40), **line_style(style))  # pyright: ignore[reportArgumentType]
    ax.axhline(scale * baseline, color="black", linewidth=0.7, linestyle=(0, (5, 3)), zorder=0)
    ax.axhline(scale * (baseline - judged.sign * MARGIN), color="#8a5a00", linewidth=0.7, linestyle=":", zorder=0)
    name, of = titled(plain(names_of([judged]), 60)), titled(results.kind.short)
    ax.set(xlabel=f"{of} off, realised", ylabel=f"{name}, relative to untouched" if relative else name, xlim=(0, None))
    ax.xaxis.set_major_formatter(PercentFormatter(decimals=0))
    if judged.is_share or relative:
        ax.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    ax.legend(ncols=2 if len(wanted) > 6 else 1)
    return ax


def removable(
    outcomes: Outcomes, *, metric: str | None = None, higher_is_better: bool | None = None, ax: Axes | None = None
) -> Axes:
    """The share of heads that each score lets one switch off within 1 point, with 95% intervals; an arrow where it is open.

    Arguments are those of ``accuracy``.

    Raises:
        InputError: no baseline, an unknown metric, or no score beside the baseline.
    """
    results = evaluated(outcomes, metric, higher_is_better)
    table = rows(results.removable)
    ax = ax or new_axes(height=0.5 + 0.2 * len(table))
    for at, row in enumerate(table):
        colour = GREY if is_random(row.curve) else ACCENT
        low, share, high = 100 * row.low, 100 * row.removable_share, 100 * row.high
        ax.plot([low, high], [at, at], color=colour, alpha=0.4, linewidth=2.5, solid_capstyle="butt")
        if open_above(row):
            ax.plot(high, at, marker=">", color=colour, alpha=0.6, markersize=4)
        ax.plot(share, at, marker="o", color=colour, markersize=4.5)
    name_rows(ax, [row.curve for row in table])
    ax.set(
        xlabel=f"{titled(results.kind.short)} that can be off within {fall_name(MARGIN, results.judged)}",
        xlim=(0, None),
    )
    ax.xaxis.set_major_formatter(PercentFormatter(decimals=0))
    return ax


def evaluated(outcomes: Outcomes, metric: str | None, higher_is_better: bool | None = None) -> RunResults:
    """Results that have at least one score beside the baseline. Raises InputError where there is none."""
    results = outcomes
    if not isinstance(results, RunResults):
        settings = Settings(metric=metric, higher_is_better=higher_is_better)
        results = RunResults.of(Manifest(settings=settings), outcomes=results)
    if results.judged.doubt:
        raise InputError(results.judged.doubt)
    if results.removable.empty:
        raise InputError("Only the baseline is in these outcomes. Evaluate at least one score and share as well.")
    return results


def _known(scores: Sequence[str] | None, known: list[str]) -> list[str]:
    for score in scores or ():
        if score not in known:
            raise InputError(f"{score!r} was not evaluated. {nearest(score, known)}")
    return list(known if scores is None else scores)
