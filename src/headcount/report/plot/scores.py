"""Scores beside one another: agreement, stability, ranks, and the paper's results."""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from headcount.analysis import score_agreement, threshold_stability
from headcount.errors import InputError, nearest
from headcount.policies import is_random
from headcount.report.plot.outcomes import Outcomes, evaluated
from headcount.report.plot.paper import MARKERS, colour_bar, line_style, name_rows, new_axes, plain
from headcount.report.published import paper_ranks, published_shares
from headcount.report.results import MARGIN
from headcount.report.style import ACCENT, GREY, score_style
from headcount.report.wording import fall_name, names_of, rows
from headcount.thresholding import thresholds

_MEASURES = {"iou": "Overlap (IoU)", "precision": "Precision"}


def agreement(table: xr.Dataset, *, share: float = 0.10, measure: str = "iou", ax: Axes | None = None) -> Axes:
    """Whether two scores call the same heads inactive, each at its own threshold for the same share, as a matrix.

    Args:
        table: scores, dims (example, layer, head).
        share: of heads and inputs beyond the thresholds.
        measure: ``iou`` (intersection over union), or ``precision``: of the row's heads, how many the column has too.
        ax: where to draw; None for a new figure.

    Raises:
        InputError: another measure, or a share outside 0…1.
    """
    if measure not in _MEASURES:
        raise InputError(f"Unknown measure {measure!r}. {nearest(measure, _MEASURES)}")
    found = score_agreement(table, thresholds(table, [share]))[measure].isel(share=0)
    values = found.to_numpy()
    names = [plain(name, 24) for name in found["score"].values]
    ax = ax or new_axes(4.2, 3.8)
    image = ax.imshow(np.where(np.eye(len(names), dtype=bool), np.nan, values), cmap="viridis", vmin=0, vmax=1)
    for row, column in np.ndindex(values.shape):
        value = values[row, column]
        if row != column and not np.isnan(value):
            text = f"{value:.2f}".removeprefix("0")
            ax.text(column, row, text, ha="center", va="center", size=4.5, color="white" if value < 0.42 else "black")
    ax.set_xticks(range(len(names)), names, rotation=90)
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    colour_bar(ax, image, label=f"{_MEASURES[measure]} at {100 * share:g}%", aspect=18)
    return ax


def stability(tables: Mapping[str, xr.Dataset], *, share: float = 0.15, ax: Axes | None = None) -> Axes:
    """Each score's threshold on several benchmarks, relative to its mean over them; flat is stable.

    Args:
        tables: benchmark → scores of one model, dims (example, layer, head).
        share: of heads and inputs beyond the thresholds.
        ax: where to draw; None for a new figure.

    Raises:
        InputError: fewer than two benchmarks.
    """
    cuts = threshold_stability({name: thresholds(table, [share]) for name, table in tables.items()})
    names = list(tables)
    ax = ax or new_axes()
    for row in cuts.to_dict("records"):
        values = np.array([row[name] for name in names])
        style = line_style(score_style(str(row["score"])))
        ax.plot(range(len(names)), values / abs(values.mean()), label=plain(row["score"], 40), **style)  # pyright: ignore[reportArgumentType]
    ax.set_xticks(range(len(names)), [plain(name, 24) for name in names])
    ax.set(ylabel=f"Threshold at {100 * share:g}%, relative to mean")
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def ranks(
    outcomes: Outcomes, *, metric: str | None = None, higher_is_better: bool | None = None, ax: Axes | None = None
) -> Axes:
    """Each score's rank by the normalised area under its curve; a grey bar is its mean rank among them in the paper.

    Arguments are those of ``accuracy``.

    Raises:
        InputError: no baseline, an unknown metric, or no score beside the baseline.
    """
    results = evaluated(outcomes, metric, higher_is_better)
    found = results.ranks.iloc[:, 0]
    theirs = "paper's mean" + ", accuracy" * (not results.judged.is_accuracy)
    names = [str(name) for name in found.index]
    ax = ax or new_axes(2.7, 0.5 + 0.18 * len(names))
    ax.plot(paper_ranks(names), range(len(names)), linestyle="none", marker="|", color=GREY, markersize=7)
    for at, name in enumerate(names):
        style = score_style(name)
        ax.plot(found.iloc[at], at, marker=MARKERS[style.symbol], color=style.light, markersize=4.5)
    name_rows(ax, names)
    ax.set(xlabel=f"Rank (grey: {theirs})", xlim=(0.4, len(names) + 0.6))
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return ax


def paper(
    outcomes: Outcomes,
    *,
    metric: str | None = None,
    higher_is_better: bool | None = None,
    name: str = "this run",
    ax: Axes | None = None,
) -> Axes:
    """The share of heads that each score lets one switch off within 1 point: the paper's 14 models in grey, and this run
    with its 95% intervals.

    The paper's are on MMLU, 5-shot.

    Arguments are those of ``accuracy``, and:

    Args:
        name: what to call this run.

    Raises:
        InputError: no baseline, an unknown metric or one unlike accuracy, or no score beside the baseline.
    """
    results = evaluated(outcomes, metric, higher_is_better)
    if not results.beside_paper:
        raise InputError(
            f"The paper's removable shares are within 1 point of accuracy; those by {names_of([results.judged])} cannot "
            "stand beside them. Give a metric between 0 and 1 that is better when higher."
        )
    own = {row.curve: row for row in rows(results.removable)}
    published = published_shares()
    scores = sorted({**published, **own}, key=is_random)
    ax = ax or new_axes(height=2.6)
    for at, score in enumerate(scores):
        shares = published.get(score, np.array([]))
        spread = np.linspace(-0.22, 0.22, len(shares)) if len(shares) else shares
        ax.plot(at + spread, 100 * shares, linestyle="none", marker="o", color=GREY, alpha=0.6, markersize=2)
        if score in own:
            row = own[score]
            ax.plot([at, at], [100 * row.low, 100 * row.high], color=ACCENT, alpha=0.4, linewidth=1.5)
            ax.plot(
                at, 100 * row.removable_share, marker="^" if row.is_lower_bound else "D", color=ACCENT, markersize=4.5
            )
    ax.set_xticks(
        range(len(scores)), [plain(score, 24) for score in scores], rotation=45, ha="right", rotation_mode="anchor"
    )
    ax.set(ylabel=f"Heads off within {fall_name(MARGIN, results.judged)}", ylim=(0, None))
    ax.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.plot([], [], linestyle="none", marker="D", color=ACCENT, label=plain(name, 60))
    ax.plot([], [], linestyle="none", marker="o", color=GREY, label="the paper's models, MMLU")
    ax.legend()
    return ax
