"""Small panels side by side, one a score."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from headcount.analysis import layer_profile
from headcount.analysis.inactivity import score_names
from headcount.errors import InputError, nearest
from headcount.report.head_map import score_facts
from headcount.report.plot.paper import LINES, paper_style, plain
from headcount.report.style import RUNS, score_style
from headcount.summaries import Summary
from headcount.thresholding import quantiles, thresholds

LEVELS = np.arange(101) / 100  # of cumulative distributions


def distributions(
    table: xr.Dataset | Summary,
    *,
    scores: Sequence[str] | None = None,
    shares: Sequence[float] = (0.1, 0.2, 0.3),
    columns: int = 4,
    figure: Figure | None = None,
) -> np.ndarray:
    """The cumulative distribution of each score over all heads and inputs, with the thresholds at some shares.

    Args:
        table: scores, dims (example, layer, head), or a summary; for ``layers`` one that counts by layer.
        scores: ids to draw; None for all that were measured anywhere.
        shares: thresholds to mark, as shares of heads and inputs.
        columns: panels in a row.
        figure: an empty figure to draw into; None for a new one.

    Returns:
        The axes, [row, column]; those left over are hidden.

    Raises:
        InputError: nothing to draw, or a score that the table does not have.
    """
    panels = _Panels(_measured([table], scores), columns, figure, sharey=True)
    for ax, name in panels:
        of_summary = isinstance(table, Summary)
        cuts = table.scores[name].quantiles(LEVELS) if of_summary else quantiles(table[name].to_numpy(), LEVELS)
        ax.plot(cuts, LEVELS, color=score_style(name).light)
        side = score_facts(name, table)["inactive_when"]
        if side:
            marks = thresholds(table[[name]], shares)[name].to_numpy()
            at = [share if side == "low" else 1 - share for share in shares]
            ax.plot(marks, at, linestyle="none", marker="|", color="black", markersize=6, markeredgewidth=1)
        _cumulative_axes(ax, cuts[1], cuts[-2])
    return panels.axes


def comparison(
    tables: Mapping[str, xr.Dataset],
    *,
    scores: Sequence[str] | None = None,
    columns: int = 4,
    figure: Figure | None = None,
) -> np.ndarray:
    """The cumulative distributions of each score in several models, or on several data, in one panel.

    Arguments and result are those of ``distributions``, and:

    Args:
        tables: name → scores, dims (example, layer, head).
        scores: ids to draw; None for all that were measured in each.

    Raises:
        InputError: fewer than two tables, or nothing in common to draw.
    """
    if len(tables) < 2:
        raise InputError(f"A comparison is between at least two; got {', '.join(tables) or 'none'}.")
    panels = _Panels(_measured(list(tables.values()), scores), columns, figure, sharey=True)
    lines = list(LINES.values())
    for ax, name in panels:
        ends = []
        for number, (label, table) in enumerate(tables.items()):
            cuts = quantiles(table[name].to_numpy(), LEVELS)
            style = lines[number % len(lines)]
            ax.plot(cuts, LEVELS, color=RUNS[number % len(RUNS)], linestyle=style, label=plain(label, 60))  # pyright: ignore[reportArgumentType]
            ends += [cuts[1], cuts[-2]]
        _cumulative_axes(ax, min(ends), max(ends))
    handles, labels = panels.axes.flat[0].get_legend_handles_labels()
    columns = len(labels) if sum(map(len, labels)) <= 60 else 1
    panels.figure.legend(handles, labels, loc="outside lower center", ncols=columns)
    return panels.axes


def layers(
    table: xr.Dataset | Summary, *, scores: Sequence[str] | None = None, columns: int = 4, figure: Figure | None = None
) -> np.ndarray:
    """Each score from the first layer to the last: the median over heads and inputs, and the middle 80% shaded.

    Arguments and result are those of ``distributions``.

    Raises:
        InputError: nothing to draw, or a score that the table does not have.
    """
    names = _measured([table], scores)
    profile = layer_profile(table[names])
    panels = _Panels(names, columns, figure, sharey=False)
    for ax, name in panels:
        rows = profile.loc[profile["score"] == name]
        colour = score_style(name).light
        ax.fill_between(rows["layer"], rows["q10"], rows["q90"], color=colour, alpha=0.18, linewidth=0)
        ax.plot(rows["layer"], rows["q50"], color=colour)
        ax.set(ylim=(min(0.0, float(rows["q10"].min())), None), xlim=(rows["layer"].min(), rows["layer"].max()))
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(3))
    for ax in panels.axes[-1]:
        ax.set_xlabel("Layer")
    return panels.axes


def _cumulative_axes(ax: Axes, low: float, high: float) -> None:
    ax.set(xlim=(low, high), ylim=(0, 1))
    ax.xaxis.set_major_locator(MaxNLocator(3))
    ax.set_yticks([0, 0.5, 1])
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _measured(tables: Sequence[xr.Dataset | Summary], scores: Sequence[str] | None) -> list[str]:
    """The scores to draw: those asked for, or all that have values in every table."""

    def has_values(table: xr.Dataset | Summary, name: str) -> bool:
        if isinstance(table, Summary):
            return name in table and bool(table.scores[name].moments.count.any())
        return name in table and bool(table[name].notnull().any())

    known = [name for name in score_names(tables[0]) if all(has_values(table, name) for table in tables)]
    if not known:
        raise InputError("There is no measured score to draw. Measure some first, with `headcount.measure_heads`.")
    for name in scores or ():
        if name not in known:
            raise InputError(f"{name!r} was not measured here. {nearest(name, known)}")
    return known if scores is None else list(scores)


class _Panels:
    """Axes with scores as their titles; iterates over (axes, score)."""

    def __init__(self, names: list[str], columns: int, figure: Figure | None, *, sharey: bool) -> None:
        rows = -(-len(names) // columns)
        with paper_style():
            self.figure = figure or plt.figure(figsize=(5.5, 0.3 + 1.1 * rows))
        self.axes = self.figure.subplots(rows, columns, squeeze=False, sharey=sharey)
        self._names = names
        for ax, name in self:
            ax.set_title(plain(name, 24))
        for ax in self.axes.flat[len(names) :]:
            ax.set_visible(False)

    def __iter__(self) -> Iterator[tuple[Axes, str]]:
        return zip(self.axes.flat, self._names, strict=False)
