"""Cumulative distributions of scores."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from headcount.errors import InputError
from headcount.report.head_map import score_facts
from headcount.report.plot.paper import paper_style
from headcount.report.style import score_style
from headcount.report.wording import shown
from headcount.thresholding import thresholds


def distributions(
    table: xr.Dataset,
    *,
    scores: Sequence[str] | None = None,
    shares: Sequence[float] = (0.1, 0.2, 0.3),
    columns: int = 4,
    figure: Figure | None = None,
) -> np.ndarray:
    """The cumulative distribution of each score over all heads and inputs, with the thresholds at some shares.

    Args:
        table: scores, dims (example, layer, head).
        scores: ids to draw; None for all that were measured anywhere.
        shares: thresholds to mark, as shares of heads and inputs.
        columns: panels in a row.
        figure: an empty figure to draw into; None for a new one.

    Returns:
        The axes, [row, column]; those left over are hidden.

    Raises:
        InputError: nothing to draw.
    """
    wanted = (
        [str(name) for name in table.data_vars if bool(table[name].notnull().any())] if scores is None else list(scores)
    )
    if not wanted:
        raise InputError("There is no measured score in this table.")
    rows = -(-len(wanted) // columns)
    with paper_style():
        figure = figure or plt.figure(figsize=(5.5, 0.3 + 1.1 * rows))
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for ax, name in zip(panels.flat, wanted, strict=False):
        _panel(ax, table, name, shares)
    for ax in panels.flat[len(wanted) :]:
        ax.set_visible(False)
    return panels


def _panel(ax: Axes, table: xr.Dataset, name: str, shares: Sequence[float]) -> None:
    values = table[name].to_numpy()
    level = np.arange(101) / 100
    cuts = np.quantile(values[~np.isnan(values)].astype(float), level, method="interpolated_inverted_cdf")
    style = score_style(name)
    ax.plot(cuts, level, color=style.light)
    side = score_facts(name)["inactive_when"]
    if side:
        marks = thresholds(table[[name]], shares)[name].to_numpy()
        at = [share if side == "low" else 1 - share for share in shares]
        ax.plot(marks, at, linestyle="none", marker="|", color="black", markersize=6, markeredgewidth=1)
    ax.set(xlim=(cuts[1], cuts[-2]), ylim=(0, 1), title=shown(name, 24))
    ax.xaxis.set_major_locator(MaxNLocator(3))
    ax.set_yticks([0, 0.5, 1])
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
