"""A table in a terminal in which no number and no name is cut."""

import copy
from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Column, Table

_ANY_WIDTH = 10_000
_LEAST = 12  # of the first column, where it has to be broken to leave room for another
_PATH = 40  # wider words in the first column are paths, which are broken to let all columns stand side by side


class WholeTable(Table):
    """A table whose words stay whole: lines break between words, and not in cells that are marked ``no_wrap``.

    Columns for which there is no room stand in further tables below, each of which begins with the first column again.
    Only a first column that leaves no room for any other is broken within words, and one of long words, such as paths, to let
    all columns stand in one table.
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        needs = [self._needed(console, options.update(width=_ANY_WIDTH), column) for column in self.columns]
        for number, part in enumerate(_parts([need.minimum for need in needs], options.max_width)):
            if number:
                yield Segment.line()
            yield from self._of(part, needs, options.max_width, titled=not number).render_as_is(console, options)

    def render_as_is(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """With the columns that it has, as wide as they are."""
        yield from super().__rich_console__(console, options)

    def _needed(self, console: Console, options: ConsoleOptions, column: Column) -> Measurement:
        """Its widths with every word whole, and with every cell in one line; padding included."""

        def needed(cell: RenderableType) -> Measurement:
            found = Measurement.get(console, options, cell)
            whole = column.no_wrap or getattr(cell, "no_wrap", None)
            return Measurement(found.maximum, found.maximum) if whole else found

        cells = [needed(cell) for cell in (column.header, *column.cells)]
        padding = self._get_padding_width(column._index)
        return Measurement(padding + max(cell.minimum for cell in cells), padding + max(cell.maximum for cell in cells))

    def _of(self, part: Sequence[int], needs: Sequence[Measurement], width: int, *, titled: bool) -> "WholeTable":
        """A table of some of the columns."""
        made = copy.copy(self)
        widths = _shared([needs[index] for index in part], width)
        made.columns = [copy.copy(self.columns[index]) for index in part]
        for place, (column, wide) in enumerate(zip(made.columns, widths, strict=True)):
            column._index, column.overflow = place, "fold"
            column.width = max(1, wide - made._get_padding_width(place))
        made.title = self.title if titled else None
        return made


def _parts(least: Sequence[int], width: int) -> list[list[int]]:
    """Columns in groups that there is room for, each with the first one in front."""
    first, room = min(least[0], max(_LEAST, width - max(least[1:], default=0))), width - sum(least[1:])
    if first > _PATH and room >= _LEAST:
        first = min(first, room)
    parts: list[list[int]] = [[0]]
    for index in range(1, len(least)):
        if len(parts[-1]) > 1 and first + sum(least[i] for i in parts[-1][1:]) + least[index] > width:
            parts.append([0])
        parts[-1].append(index)
    return parts


def _shared(needs: Sequence[Measurement], width: int) -> list[int]:
    """Widths that are enough for words, and where there is room for lines: the columns that lack least come first."""
    widths = [need.minimum for need in needs]
    if (over := sum(widths) - width) > 0:
        widths[0] = max(_LEAST, widths[0] - over)
    left = width - sum(widths)
    for index in sorted(range(len(needs)), key=lambda index: needs[index].maximum - widths[index]):
        more = max(0, min(needs[index].maximum - widths[index], left))
        widths[index] += more
        left -= more
    return widths
