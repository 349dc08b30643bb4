"""Tables as readers get them: rounded on the page, in a terminal and in LaTeX, in full as CSV."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler
from rich.text import Text

from headcount.report.wording import percent, policy_name, rows, shown
from headcount.store import table_csv
from headcount.whole_table import WholeTable

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
        self, only: Collection[str] = (), called: Mapping[str, str] | None = None, *, title: str = "", bold: str = ""
    ) -> WholeTable:
        """For a terminal: the first column may take several lines, the others are flush right.

        Args:
            only: headings of the columns that there is room for; all if none is given.
            called: how to call some of them there.
            title: instead of the table's own.
            bold: the first cell of rows in bold.
        """
        # What strangers named is text, not markup; neither is `[95%]`.
        made = WholeTable(
            title=Text(shown(title or self.title)), title_justify="left", title_style="bold", box=None,
            padding=(0, 2, 0, 0), pad_edge=False,
        )  # fmt: skip
        columns = [column for column in self.columns if not only or column.heading in only]
        for at, column in enumerate(columns):
            said = (called or {}).get(column.heading, column.heading)
            made.add_column(Text(shown(said, 60)), justify="right" if at else "left")
        for cells in zip(*(column.cells for column in columns), strict=True):
            style = "bold" if cells[0] == bold else None
            made.add_row(*(Text(shown(said, 60), no_wrap=at > 0) for at, said in enumerate(cells)), style=style)
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
        written = style.to_latex(
            hrules=True,
            column_format="".join(_alignment(column) for column in self.columns),
            caption=latex_text(self.title),
            label=f"tab:{self.id}",
            position="t",
            position_float="centering",
        )
        begin, end = r"\begin{tabular}", r"\end{tabular}"
        return written.replace(begin, f"{_SHRINK}{{%\n{begin}", 1).replace(end, f"{end}}}", 1)


def _alignment(column: Column) -> str:
    """Text that would fill a line by itself is broken into several."""
    if column.numeric:
        return "r"
    longest = max((len(cell) for cell in column.cells), default=0)
    return r"p{0.55\linewidth}" if longest > 60 else r"p{0.3\linewidth}" if longest > 44 else "l"


#: Heading, what of a row is its cell, and whether that is set flush right.
Spec = tuple[str, Callable[[Any], str], bool]


def table(
    id: str, title: str, note: str, frame: pd.DataFrame, columns: Iterable[Spec], *, read: pd.DataFrame | None = None
) -> Table:
    """A Table whose cells are written by a function of each row.

    ``read`` are the rows to be read, where they are not those of ``frame``.
    """
    lines = rows(frame if read is None else read)
    made = [
        Column(heading=shown(heading, 40), cells=[shown(write(row)) for row in lines], numeric=numeric)
        for heading, write, numeric in columns
    ]
    return Table(id=id, title=title, note=note, columns=made, frame=frame)


def text(heading: str, of: str | int | Callable[[Any], str]) -> Spec:
    """A column of text: a column of the frame by its name or place, or a function of the row."""
    return heading, of if callable(of) else _getter(of), False


def num(heading: str, of: str | int | Callable[[Any], Any], say: Callable[[Any], str] = str) -> Spec:
    """A column of numbers, as ``say`` says them."""
    get = of if callable(of) else _getter(of)
    return heading, lambda row: say(get(row)), True


def _getter(of: str | int) -> Callable[[Any], Any]:
    return itemgetter(of) if isinstance(of, int) else attrgetter(of)


def policy_columns(digits: int = 0) -> list[Spec]:
    """Who answered, at which share: of tables with a row a policy; ``digits`` of the share that was asked for."""
    asked = num("Share asked", "share_asked", lambda share: percent(share, digits))
    return [text("Policy", policy_name), asked, num("Realised", "share_realised", percent)]


def nearest_share(shares: Sequence[float], wanted: float) -> float:
    """The one of ``shares`` that is closest; of two as close the larger, which says more than the share of 0."""
    return min(shares, key=lambda share: (round(abs(share - wanted), 9), -share))


def latex_text(text: str) -> str:
    """``text`` as LaTeX that prints it, whatever is in it.

    >>> latex_text("ahon_ln ≥ 5%")
    'ahon\\\\_ln $\\\\geq$ 5\\\\%'
    """
    return text.translate(_LATEX)
