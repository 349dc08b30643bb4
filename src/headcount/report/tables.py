"""Tables as readers get them: rounded on the page, in a terminal and in LaTeX, in full as CSV."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import rich.table
from pandas.io.formats.style import Styler
from rich.text import Text

from headcount.report.wording import percent, policy_name, rows, shown
from headcount.store import table_csv

_LATEX = {ord(c): f"\\{c}" for c in "&%$#_{}"} | {
    ord(c): command
    for c, command in {
        "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
        ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}", "–": "--", "−": "$-$", "≥": r"$\geq$",
        "×": r"$\times$", "Σ": r"$\Sigma$", "·": r"$\cdot$", "±": r"$\pm$", "τ": r"$\tau$", "‖": r"$\Vert$", "…": r"\dots{}",
    }.items()
}  # fmt: skip

USUAL_SHARE = 0.10  # of heads, shown where there is room for one share
_SHRINK = r"\resizebox{\ifdim\width>\linewidth \linewidth\else\width\fi}{!}"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column as it is read; ``numeric`` columns are set flush right."""

    heading: str
    cells: list[str]
    numeric: bool = True


@dataclass(frozen=True, kw_only=True)
class Table:
    """A named table: ``columns`` to be read, ``frame`` with every digit to be computed with.

    It is written for a terminal, as CSV and as LaTeX here, as HTML by ``table_of`` in ``templates/macros.html.j2``.
    """

    id: str
    title: str
    note: str
    columns: list[Column]
    frame: pd.DataFrame

    def rows(self) -> list[tuple[str, ...]]:
        """The cells row by row."""
        return list(zip(*(column.cells for column in self.columns), strict=True))

    def terminal(
        self, headings: Mapping[str, str] | None = None, *, title: str = "", bold: str = ""
    ) -> rich.table.Table:
        """For a terminal of 80 columns: the first column folds, the others are flush right.

        Args:
            headings: of the columns that there is room for, and how to call them there; None for all as they are.
            title: instead of the table's own.
            bold: the first cell of rows in bold.
        """
        # What strangers named is text, not markup; neither is `[95%]`.
        made = rich.table.Table(
            title=Text(shown(title or self.title)), title_justify="left", title_style="bold", box=None,
            padding=(0, 2, 0, 0), pad_edge=False,
        )  # fmt: skip
        chosen = [(column, (headings or {}).get(column.heading, column.heading)) for column in self.columns]
        chosen = [(column, said) for column, said in chosen if headings is None or column.heading in headings]
        for at, (_, said) in enumerate(chosen):
            wide = {"justify": "right", "no_wrap": len(said) > 12} if at else {"overflow": "fold"}
            made.add_column(Text(shown(said, 60)), **wide)
        for cells in zip(*(column.cells for column, _ in chosen), strict=True):
            made.add_row(*(Text(shown(text, 60)) for text in cells), style="bold" if cells[0] == bold else None)
        return made

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


def policy_columns(digits: int = 0) -> list[tuple[str, Callable[[Any], str], bool]]:
    """Who answered, at which share: of tables with a row a policy; ``digits`` of the share that was asked for."""
    return [
        ("Policy", policy_name, False),
        ("Share asked", lambda row: percent(row.share_asked, digits), True),
        ("Realised", lambda row: percent(row.share_realised), True),
    ]


def nearest_share(shares: Sequence[float], wanted: float) -> float:
    """The one of ``shares`` that is closest; of two as close the larger, which says more than the share of 0."""
    return min(shares, key=lambda share: (round(abs(share - wanted), 9), -share))


def cell(at: int, write: Callable[[Any], str]) -> Callable[[Any], str]:
    """Writes the cell at a place of a row."""
    return lambda row: write(row[at])


def latex_text(text: str) -> str:
    """``text`` as LaTeX that prints it, whatever is in it.

    >>> latex_text("ahon_ln ≥ 5%")
    'ahon\\\\_ln $\\\\geq$ 5\\\\%'
    """
    return text.translate(_LATEX)
