"""What sections have in common: figures, and how the numbers of charts travel."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from headcount.report.style import score_style
from headcount.report.wording import shown


class Drawing(NamedTuple):
    """One figure: its file name, which of a template's widths it has, its height over its width, and how to draw it."""

    name: str
    width: str
    aspect: float
    draw: Callable[[Figure], Any]


def on_axes(name: str, width: str, aspect: float, draw: Callable[..., Any], /, *given: Any, **options: Any) -> Drawing:
    """A figure that one of ``headcount.plot`` draws on axes of its own."""
    return Drawing(name, width, aspect, lambda figure: draw(*given, ax=figure.subplots(), **options))


def panels(name: str, count: int, draw: Callable[..., Any], *given: Any) -> Drawing:
    """A figure of panels, one a score."""
    return Drawing(name, "text", 0.08 + 0.19 * -(-count // 4), lambda figure: draw(*given, figure=figure))


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
