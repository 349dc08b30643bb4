"""Tables as readers get them: rounded on the page and in LaTeX, in full as CSV."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from headcount.report.wording import rows, shown
from headcount.store import table_csv

_LATEX = {ord(c): f"\\{c}" for c in "&%$#_{}"} | {
    ord(c): command
    for c, command in {
        "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
        ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}", "–": "--", "−": "$-$", "≥": r"$\geq$",
        "×": r"$\times$", "Σ": r"$\Sigma$", "·": r"$\cdot$", "±": r"$\pm$", "τ": r"$\tau$", "‖": r"$\Vert$", "…": r"\dots{}",
    }.items()
}  # fmt: skip

_SHRINK = r"\resizebox{\ifdim\width>\linewidth \linewidth\else\width\fi}{!}"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column as it is read; ``numeric`` columns are set flush right."""

    heading: str
    cells: list[str]
    numeric: bool = True


@dataclass(frozen=True, kw_only=True)
class Table:
    """A named table: ``columns`` to be read, ``frame`` with every digit to be computed with."""

    id: str
    title: str
    note: str
    columns: list[Column]
    frame: pd.DataFrame

    def rows(self) -> list[tuple[str, ...]]:
        """The cells row by row."""
        return list(zip(*(column.cells for column in self.columns), strict=True))

    def csv(self) -> str:
        """As ``headcount.store.table_csv`` writes it."""
        return table_csv(self.frame)

    def latex(self) -> str:
        """A booktabs table with caption and label, made smaller where it is wider than the text.

        Needs ``\\usepackage{booktabs,graphicx}``; names in other than Latin letters need LuaLaTeX or XeLaTeX.
        """
        readable = pd.DataFrame({latex_text(column.heading): column.cells for column in self.columns})
        style = Styler(readable)
        style.format(latex_text)
        style.hide(axis="index")
        text = style.to_latex(
            hrules=True,
            column_format="".join(_alignment(column) for column in self.columns),
            caption=latex_text(self.title),
            label=f"tab:{self.id}",
            position="t",
            position_float="centering",
        )
        begin, end = r"\begin{tabular}", r"\end{tabular}"
        return text.replace(begin, f"{_SHRINK}{{%\n{begin}", 1).replace(end, f"{end}}}", 1)


def _alignment(column: Column) -> str:
    """Text that would fill a line by itself is broken into several."""
    if column.numeric:
        return "r"
    longest = max((len(cell) for cell in column.cells), default=0)
    return r"p{0.55\linewidth}" if longest > 60 else r"p{0.3\linewidth}" if longest > 44 else "l"


def table(
    id: str,
    title: str,
    note: str,
    frame: pd.DataFrame,
    columns: Iterable[tuple[str, Callable[[Any], str], bool]],
    *,
    read: pd.DataFrame | None = None,
) -> Table:
    """A Table whose cells are written by a function of each row: (heading, function, numeric) for each column.

    ``read`` are the rows to be read, where they are not those of ``frame``.
    """
    lines = rows(frame if read is None else read)
    made = [
        Column(heading=shown(heading, 40), cells=[shown(write(row)) for row in lines], numeric=numeric)
        for heading, write, numeric in columns
    ]
    return Table(id=id, title=title, note=note, columns=made, frame=frame)


def cell(at: int, write: Callable[[Any], str]) -> Callable[[Any], str]:
    """Writes the cell at a place of a row."""
    return lambda row: write(row[at])


def latex_text(text: str) -> str:
    """``text`` as LaTeX that prints it, whatever is in it.

    >>> latex_text("ahon_ln ≥ 5%")
    'ahon\\\\_ln $\\\\geq$ 5\\\\%'
    """
    return text.translate(_LATEX)
