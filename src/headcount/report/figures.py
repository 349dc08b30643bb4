"""Figures and tables of a run as files for papers."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from headcount.errors import InputError, nearest
from headcount.heads import HeadGeometry, LayerHeads
from headcount.report import plot
from headcount.report.plot.paper import TEMPLATES, paper_style
from headcount.report.result_tables import result_tables
from headcount.report.results import RunResults, at
from headcount.scores import is_registered
from headcount.store import write_atomically

# What would make two runs of the same command differ is left out.
_METADATA: dict[str, dict[str, Any]] = {
    "pdf": {"Creator": "headcount", "Producer": None, "CreationDate": None},
    "svg": {"Creator": "headcount", "Date": None},
    "png": {"Software": "headcount"},
}
_SHARE = 0.10  # of the heads that maps show as inactive


@dataclass(frozen=True, kw_only=True)
class _Drawing:
    """One figure: its file name, which of a template's widths it has, its height over its width, and how to draw it."""

    name: str
    width: str
    aspect: float
    draw: Callable[[Figure], Any]


def write_figures(run: RunResults, folder: Path, *, template: str = "iclr") -> list[Path]:
    """Every figure of a run as PDF, SVG and PNG, and every table as LaTeX and CSV; the same run gives the same bytes.

    Args:
        run: what is drawn; figures of what it lacks are left out.
        folder: made if it does not exist; files of the same names are replaced.
        template: the paper's, which decides the widths: iclr, neurips, icml, acl or ieee.

    Returns:
        The files.

    Raises:
        InputError: an unknown template, outcomes without a baseline.
        RunError: the folder cannot be written.
    """
    if template not in TEMPLATES:
        raise InputError(f"Unknown template {template!r}. {nearest(template, TEMPLATES)}")
    files = []
    for drawing in _drawings(run):
        width = getattr(TEMPLATES[template], drawing.width)
        with paper_style():
            figure = Figure(figsize=(width, width * drawing.aspect))
            drawing.draw(figure)
            for kind, metadata in _METADATA.items():
                content = BytesIO()
                figure.savefig(content, format=kind, metadata=metadata)
                files.append(_write(folder / f"{drawing.name}.{kind}", content.getvalue()))
    for table in result_tables(run):
        files.append(_write(folder / f"{table.id}.tex", table.latex().encode()))
        files.append(_write(folder / f"{table.id}.csv", table.csv().encode()))
    return files


def _write(file: Path, content: bytes) -> Path:
    write_atomically(file, content)
    return file


def _drawings(run: RunResults) -> Iterator[_Drawing]:
    if run.evaluated and not run.removable.empty:
        assert run.outcomes is not None
        given = {"outcomes": run.outcomes, "metric": run.metric}
        yield _Drawing(name="accuracy", width="text", aspect=0.6, draw=_on_axes(partial(plot.accuracy, **given)))
        height = 0.18 + 0.04 * len(run.removable)
        yield _Drawing(name="removable", width="column", aspect=height, draw=_on_axes(partial(plot.removable, **given)))
    if run.measured:
        assert run.scores is not None
        names = [str(name) for name in run.scores.data_vars if bool(run.scores[name].notnull().any())]
        rows = -(-len(names) // 4)
        draw = partial(_distributions, run)
        yield _Drawing(name="distributions", width="text", aspect=0.06 + 0.19 * rows, draw=draw)
        aspect = 0.12 + 0.85 * run.scores.sizes["head"] / run.scores.sizes["layer"]
        for name in filter(is_registered, names):
            shown = partial(plot.head_map, run.scores, name, share=_SHARE, geometry=_geometry(run))
            yield _Drawing(
                name="head-map-" + re.sub(r"[^A-Za-z0-9_-]", "-", name),
                width="text",
                aspect=aspect,
                draw=_on_axes(shown),
            )


def _on_axes(draw: Callable[..., Any]) -> Callable[[Figure], Any]:
    return lambda figure: draw(ax=figure.subplots())


def _distributions(run: RunResults, figure: Figure) -> None:
    assert run.scores is not None
    plot.distributions(run.scores, figure=figure)


def _geometry(run: RunResults) -> HeadGeometry | None:
    layers = at(run.manifest, "model", "layers")
    try:
        return HeadGeometry(layers=tuple(LayerHeads(**layer) for layer in layers))
    except TypeError:  # a manifest that does not say
        return None
