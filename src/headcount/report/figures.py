"""Figures and tables of a run as files for papers."""

import warnings
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from headcount.errors import InputError, nearest
from headcount.report.plot.paper import TEMPLATES, paper_style
from headcount.report.results import Report, RunResults
from headcount.report.sections import of_each, result_tables
from headcount.store.whole import files_together

# What would make two runs of the same command differ is left out.
_METADATA: dict[str, dict[str, Any]] = {
    "pdf": {"Creator": "headcount", "Producer": None, "CreationDate": None},
    "svg": {"Creator": "headcount", "Date": None},
    "png": {"Software": "headcount"},
}


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
    report = Report(runs)
    for drawing in (drawing for of_section in of_each("figures", report).values() for drawing in of_section):
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
    for table in result_tables(report):
        yield _write(folder / f"{table.id}.tex", table.latex().encode())
        yield _write(folder / f"{table.id}.csv", table.csv().encode())


def _write(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file
