"""The one style of all figures, and the widths of the usual templates."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable

from headcount.report.style import ScoreStyle
from headcount.report.wording import shown

MARKERS = {
    "square": "s", "diamond": "D", "triangle-up": "^", "triangle-down": "v", "pentagon": "p", "circle": "o", "star": "*",
    "x": "x",
}  # fmt: skip
LINES = {"solid": "-", "dash": (0, (4, 1.5)), "dot": (0, (1, 1))}
OFF, OFF_EDGE = "#e4e4de", "#b3b3aa"

#: matplotlib's settings. The font comes with matplotlib, so that figures are the same on every machine.
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 7, "axes.titlesize": 7.5, "axes.labelsize": 7.5, "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5, "legend.fontsize": 6.5, "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5,
    "ytick.major.size": 2.5, "axes.grid": False, "lines.linewidth": 1.2, "lines.markersize": 3.2, "legend.frameon": False,
    "figure.dpi": 150, "savefig.dpi": 300, "pdf.fonttype": 42, "svg.hashsalt": "headcount", "figure.constrained_layout.use": True,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Template:
    """Widths in inches: of a column (half the text where there is one column), and of the whole text."""

    column: float
    text: float


TEMPLATES = {
    "iclr": Template(column=2.7, text=5.5),
    "neurips": Template(column=2.7, text=5.5),
    "icml": Template(column=3.25, text=6.75),
    "acl": Template(column=3.03, text=6.3),
    "ieee": Template(column=3.5, text=7.16),
}


@contextmanager
def paper_style() -> Iterator[None]:
    """headcount's settings of matplotlib, and the reader's own again afterwards."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def new_axes(width: float = 5.5, height: float = 3.4) -> Axes:
    """The axes of a new figure in headcount's style."""
    with paper_style():
        return plt.figure(figsize=(width, height)).subplots()


def name_rows(ax: Axes, names: Sequence[str]) -> None:
    """Scores or curves one below the other."""
    ax.set_yticks(range(len(names)), [plain(name, 40) for name in names])
    ax.set(ylim=(len(names) - 0.5, -0.5))
    ax.tick_params(axis="y", length=0)


def colour_bar(ax: Axes, mapped: ScalarMappable, **options: Any) -> None:
    """What the colours mean, beside the axes."""
    assert ax.figure is not None
    bar = ax.figure.colorbar(mapped, ax=ax, shrink=0.8, **options)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]


def plain(text: Any, limit: int) -> str:
    """Text from strangers as matplotlib is to draw it: no mathematics between $ and $, no name that legends leave out.

    >>> plain("$x$", 40), plain("_x", 40)
    ('\\\\$x\\\\$', ' _x')
    """
    line = shown(text, limit).replace("$", r"\$")
    return f" {line}" if line.startswith("_") else line


def line_style(style: ScoreStyle) -> dict[str, object]:
    """matplotlib's arguments for a score's line."""
    return {"color": style.light, "linestyle": LINES[style.dash], "marker": MARKERS[style.symbol]}
