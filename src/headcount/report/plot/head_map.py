"""The map of all heads."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from headcount.analysis.inactivity import head_frequency, values_of
from headcount.errors import InputError, nearest
from headcount.report.plot.paper import OFF, OFF_EDGE, colour_bar, new_axes, plain
from headcount.scores import facts_of, get_score
from headcount.summaries import Moments
from headcount.thresholding import thresholds
from headcount.units import UnitMap


def head_map(
    table: xr.Dataset,
    score: str,
    *,
    share: float | None = None,
    often: bool = False,
    units: UnitMap | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Layers from left to right, query heads from top to bottom, coloured by the mean score over inputs.

    Args:
        table: scores, dims (example, layer, head), as from ``measure_heads`` or ``Run.scores()``.
        score: its id or alias.
        share: heads that are inactive on at least half of the inputs at the threshold of this share are grey.
        often: colour by the part of inputs on which a head is inactive at ``share`` instead; nothing is grey then.
        units: as from ``units_of``; gaps then part the heads of different key-value heads.
        ax: where to draw; None for a new figure.

    Raises:
        InputError: a score that the table does not have, or ``often`` without a share.
    """
    found = facts_of(score, table) or get_score(score)
    if found.id not in table:
        raise InputError(f"{found.id} is not in this table. {nearest(found.id, map(str, table.data_vars))}")
    if often and share is None:
        raise InputError("How often a head is inactive depends on the threshold: give share=0.10, say.")
    moments = Moments.of(values_of(table, found.id, slice(None)).astype(float))
    count, mean, part = moments.count, moments.mean, np.zeros(moments.count.shape)
    if share is not None:
        part = head_frequency(table, thresholds(table[[found.id]], [share]))[found.id][0].to_numpy()
    grey = (part >= 0.5) & np.bool_(share is not None and not often)
    coloured = part if often else mean
    ax = ax or new_axes(height=0.8 + 4.8 * count.shape[1] / count.shape[0])
    low, high = (0.0, 1.0) if often else np.nanquantile(mean, [0.01, 0.99]).tolist()
    norm = Normalize(low, high)
    # Dark is towards inactive.
    colours = "viridis_r" if often or found.inactive_when == "high" else "viridis"
    rows = _rows(table, units)
    exists = np.argwhere(count > 0)
    boxes = [Rectangle((float(layer) + 0.04, float(rows[layer, head]) + 0.04), 0.92, 0.92) for layer, head in exists]
    mapped = ScalarMappable(norm, colours)
    faces = [OFF if grey[at] else mapped.to_rgba(coloured[at]) for at in map(tuple, exists)]
    edges = [OFF_EDGE if grey[at] else (0, 0, 0, 0) for at in map(tuple, exists)]
    ax.add_collection(PatchCollection(boxes, facecolors=faces, edgecolors=edges, linewidths=0.3))
    ax.set(xlim=(0, len(table["layer"])), ylim=(rows.max() + 1, 0), xlabel="Layer", ylabel="Query head", aspect="equal")
    _ticks(ax, table["layer"].values, rows[0])
    ax.spines[:].set_visible(False)
    unit = "" if often or found.unit == "1" else f" ({found.unit})"
    label = f"inactive at {100 * (share or 0):g}%" if often else plain(found.id, 40) + unit
    colour_bar(ax, mapped, label=label, aspect=14, pad=0.015, extend="neither" if often else "both")
    return ax


def _rows(table: xr.Dataset, units: UnitMap | None) -> np.ndarray:
    """Where the top of each head is, [layer, head], with a gap of a quarter before every key-value group but the first."""
    heads = np.arange(table.sizes["head"])
    known = {layer.index: layer for layer in units.heads} if units is not None else {}
    gaps = np.zeros((table.sizes["layer"], len(heads)))
    for row, index in zip(gaps, table["layer"].values, strict=True):
        layer = known.get(int(index))
        if layer is not None and layer.num_key_value_heads < layer.num_attention_heads:
            row[: layer.num_attention_heads] = 0.25 * np.array(layer.key_value_heads)
            row[layer.num_attention_heads :] = row[layer.num_attention_heads - 1]
    return heads + gaps


def _ticks(ax: Axes, layers: np.ndarray, rows: np.ndarray) -> None:
    """Labels every so many layers and heads that they do not touch."""
    for axis, places, labels in ((ax.xaxis, np.arange(len(layers)), layers), (ax.yaxis, rows, np.arange(len(rows)))):
        every = max(1, -(-len(labels) // 16))
        axis.set_ticks(places[::every] + 0.5, [str(label) for label in labels[::every]])
        axis.set_tick_params(length=0)
