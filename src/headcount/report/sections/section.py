"""What a section of the page is made of, and how its charts' numbers travel."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from headcount.report.results import Report
from headcount.report.style import score_style
from headcount.report.tables import Table
from headcount.report.wording import shown


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One figure: its file name, which of a template's widths it has, its height over its width, and how to draw it."""

    name: str
    width: str
    aspect: float
    draw: Callable[[Figure], Any]


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part of the page, all of it in the files of one name here: ``ID.py``, and beside it ``ID.html.j2`` and ``ID*.js``.

    Attributes:
        id: its anchor, and the name of its files.
        heading: above it; {} is what accuracy is measured by.
        tables: those that its template shows, by their ids in ``tables``, and that figures are written beside.
        data: for its script, which sets ``sections.ID``; None where there is nothing to draw. All templates see it as
            ``data.ID``.
        words: what its template needs besides, names of its own.
        figures: for papers.
    """

    id: str
    heading: str
    tables: Callable[[Report], Iterable[Table]] = lambda report: ()
    data: Callable[[Report], Any] = lambda report: None
    words: Callable[[Report], Mapping[str, Any]] = lambda report: {}
    figures: Callable[[Report], Iterable[Drawing]] = lambda report: ()


def on_axes(name: str, width: str, aspect: float, draw: Callable[..., Any], /, *given: Any, **options: Any) -> Drawing:
    """A figure that is drawn by one of ``headcount.plot`` on axes of its own."""
    draw = partial(draw, *given, **options)
    return Drawing(name=name, width=width, aspect=aspect, draw=lambda figure: draw(ax=figure.subplots()))


def panels(name: str, count: int, draw: Callable[..., Any], *given: Any) -> Drawing:
    """A figure of panels, one a score."""
    aspect = 0.08 + 0.19 * -(-count // 4)
    return Drawing(name=name, width="text", aspect=aspect, draw=lambda figure: draw(*given, figure=figure))


def line(score: str) -> dict[str, Any]:
    """What a score or curve is called and how it is drawn."""
    return {"score": shown(score, 40), "style": vars(score_style(score))}


def percentages(fractions: Iterable[float]) -> list[float]:
    return [round(100 * float(value), 3) for value in fractions]


def floats(values: Any, digits: int = 6) -> Any:
    """Nested lists of numbers with so many significant digits; None for NaN."""
    if isinstance(values, np.ndarray) and values.ndim > 1:
        return [floats(row, digits) for row in values]
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in map(float, values)]
