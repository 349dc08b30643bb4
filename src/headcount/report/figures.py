"""Figures and tables of a run as files for papers."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import xarray as xr
from matplotlib.figure import Figure

from headcount.errors import InputError, nearest
from headcount.report import plot
from headcount.report.labels import run_labels, same_model
from headcount.report.plot.paper import TEMPLATES, paper_style
from headcount.report.result_tables import result_tables
from headcount.report.results import RunResults
from headcount.scores import facts_of
from headcount.store.names import slug
from headcount.store.whole import files_together

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


def write_figures(runs: Sequence[RunResults], folder: Path, *, template: str = "iclr") -> list[Path]:
    """Every figure of a run as PDF, SVG and PNG, and every table as LaTeX and CSV; the same run gives the same bytes.

    Args:
        runs: the first is what is drawn, the others are compared with it; figures of what they lack are left out.
        folder: made if it does not exist; files of the same names are replaced. All appear at once, or none.
        template: the paper's, which decides the widths: iclr, neurips, icml, acl or ieee.

    Returns:
        The files.

    Raises:
        InputError: an unknown template, outcomes without a baseline.
        RunError: the folder cannot be written.
    """
    if template not in TEMPLATES:
        raise InputError(f"Unknown template {template!r}. {nearest(template, TEMPLATES)}")
    with files_together(folder) as work:
        return [folder / file.name for file in _files(runs, work, template)]


def _files(runs: Sequence[RunResults], folder: Path, template: str) -> Iterator[Path]:
    for drawing in _drawings(runs):
        width = getattr(TEMPLATES[template], drawing.width)
        with paper_style(), warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", r"Glyph .* missing from font"
            )  # names in other scripts: boxes in the figure
            figure = Figure(figsize=(width, width * drawing.aspect))
            drawing.draw(figure)
            for kind, metadata in _METADATA.items():
                content = BytesIO()
                figure.savefig(content, format=kind, metadata=metadata)
                yield _write(folder / f"{drawing.name}.{kind}", content.getvalue())
    for table in result_tables(runs):
        yield _write(folder / f"{table.id}.tex", table.latex().encode())
        yield _write(folder / f"{table.id}.csv", table.csv().encode())


def _write(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file


def _drawings(runs: Sequence[RunResults]) -> Iterator[_Drawing]:
    yield from _evaluated(runs[0])
    yield from _measured(runs[0])
    yield from _compared(runs)


def _evaluated(run: RunResults) -> Iterator[_Drawing]:
    if not run.evaluated or run.removable.empty:
        return
    assert run.outcomes is not None
    way = run.judged.higher_is_better
    given = {"outcomes": run.outcomes, "metric": run.metric, "higher_is_better": way}
    scores = len(run.removable)
    yield _Drawing(name="accuracy", width="text", aspect=0.6, draw=_on_axes(partial(plot.accuracy, **given)))
    for name, draw in (("removable", plot.removable), ("ranks", plot.ranks)):
        yield _Drawing(name=name, width="column", aspect=0.2 + 0.045 * scores, draw=_on_axes(partial(draw, **given)))
    if not run.beside_paper:
        return
    paper = partial(plot.paper, name=run.model, **given)
    yield _Drawing(name="paper", width="text", aspect=0.45, draw=_on_axes(paper))


def _measured(run: RunResults) -> Iterator[_Drawing]:
    if run.scores is None or not run.measured:
        return
    names = [str(name) for name in run.scores.data_vars if bool(run.scores[name].notnull().any())]
    for name, draw in (("distributions", plot.distributions), ("layers", plot.layers)):
        yield _panels(name, partial(draw, run.scores), len(names))
    known = [name for name in names if facts_of(name, run.scores)]
    if known and run.summarised is None:
        agreement = partial(plot.agreement, run.scores[known], share=_SHARE)
        yield _Drawing(name="agreement", width="text", aspect=0.85, draw=_on_axes(agreement))
    aspect = 0.12 + 0.85 * run.scores.sizes["head"] / run.scores.sizes["layer"]
    for name in known:
        draw = partial(plot.head_map, run.scores, name, share=_SHARE, units=run.units)
        file = slug(f"head-map-{name}")
        yield _Drawing(name=file, width="text", aspect=aspect, draw=_on_axes(draw))


def _compared(runs: Sequence[RunResults]) -> Iterator[_Drawing]:
    benchmarks = [run for run in same_model(runs) if run.has_cuts]
    if len(benchmarks) > 1:
        tables = {name: _known(run) for name, run in zip(run_labels(benchmarks), benchmarks, strict=True)}
        yield _Drawing(name="stability", width="text", aspect=0.55, draw=_on_axes(partial(plot.stability, tables)))
    tables = {
        name: run.scores
        for name, run in zip(run_labels(runs), runs, strict=True)
        if run.measured and run.scores is not None
    }
    if len(tables) > 1:
        first, *others = tables.values()
        common = [name for name in first.data_vars if all(name in other for other in others)]
        if common:
            yield _panels("comparison", partial(plot.comparison, tables), len(common))


def _known(run: RunResults) -> xr.Dataset:
    """The scores that have thresholds."""
    assert run.scores is not None
    return run.scores[[str(name) for name in run.scores.data_vars if name in run.cuts]]


def _panels(name: str, draw: Callable[..., Any], count: int) -> _Drawing:
    return _Drawing(
        name=name, width="text", aspect=0.08 + 0.19 * -(-count // 4), draw=lambda figure: draw(figure=figure)
    )


def _on_axes(draw: Callable[..., Any]) -> Callable[[Figure], Any]:
    return lambda figure: draw(ax=figure.subplots())
