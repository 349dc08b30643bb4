"""What commands print with: standard output for results, standard error for progress, notes and errors."""

import logging
import os
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

from headcount.cli.lines import Lines

if TYPE_CHECKING:
    from headcount.models.batching import Progress as ProgressCallback

_STEERING = ("Cc", "Cf", "Cs", "Zl", "Zp")  # by Unicode category: control, format, surrogate, line and paragraph ends
_JOINERS = "\u200c\u200d"  # belong to the spelling of Persian, of Indic scripts and of emoji


def visible(text: str, keep: str = "") -> str:
    r"""Text whose characters that steer a terminal, break a line or turn the direction of writing are shown as escapes.

    >>> visible("\x1b[31mred\u202e, שלום\nError: forged")
    '\\x1b[31mred\\u202e, שלום\\nError: forged'
    """
    if text.isascii() and text.isprintable():
        return text
    kept = keep + _JOINERS
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in _STEERING and c not in kept else c
        for c in text
    )


def said_bytes(count: int) -> str:
    """A size as people read it.

    >>> said_bytes(79_800_000)
    '79.8 MB'
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


class PlainConsole(Console):
    """A console on which text is text. Names come from strangers: nothing in them is markup or steers the terminal."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, highlight=False, emoji=False)

    def say(self, text: str, heading: Text | None = None) -> None:
        """Print one line, however long, that stays one whatever is in it."""
        self.print(Text.assemble(heading or "", visible(text)), soft_wrap=True)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text, keep="\n\t"), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        cell = visible(renderable) if isinstance(renderable, str) else renderable
        for segment in super().render(cell, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text, keep="\n\t"))


class PlainRecord(logging.LogRecord):
    """What libraries log, as one line of plain text: they quote the files that they read."""

    def getMessage(self) -> str:
        return visible(super().getMessage())


if os.environ.get("COLUMNS") == "0":  # not known; rich would take it at its word
    del os.environ["COLUMNS"]
output = PlainConsole()
errors = PlainConsole(stderr=True)


def show_warning(message: Warning | str, category: type[Warning], *_where: Any, **_more: Any) -> None:
    """Python warnings as one readable line; other libraries' housekeeping is not the user's business."""
    if issubclass(category, UserWarning):
        errors.say(" ".join(str(message).split()), heading=Text("Note: ", style="yellow"))


class Steps:
    """What a command does, step by step: what runs, how far, how long still."""

    def __init__(self, progress: Progress, lines: Lines | None) -> None:
        self._progress, self._lines = progress, lines
        self.kept = "Nothing was written."
        """What is left of the command if it is stopped now."""

    def start(self, what: str, total: int | None = None) -> "ProgressCallback":
        """A new step; call what it returns with (done, total)."""
        task = self._progress.add_task(visible(what), total=total)
        said = self._lines.start(what) if self._lines else None

        def update(done: int, total: int) -> None:
            self._progress.update(task, completed=done, total=total)
            if said:
                said(done, total)

        return update

    def keep_in(self, folder: Path, asked: Path | None) -> None:
        """From here on what is finished is kept in ``folder``; ``asked``: if it was given with ``-o``."""
        again = "the same command" if asked else f"the same command with -o {folder}"
        self.kept = f"What was finished is kept in {str(folder)!r}; {again} goes on from there."


@contextmanager
def steps() -> Iterator[Steps]:
    """Progress on standard error: bars on a terminal, elsewhere plain lines.

    Ctrl-C inside is one sentence, which says what is kept, and exit code 130.
    """
    columns = (
        TextColumn("{task.description:<34}", markup=False),
        BarColumn(bar_width=18),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]left"),
        TimeRemainingColumn(),
    )
    lines = None if errors.is_interactive else Lines(errors.say)
    with Progress(*columns, console=errors) as progress:
        shown = Steps(progress, lines)
        try:
            if lines is None:
                yield shown
            else:
                with lines.ticking():
                    yield shown
            return
        except KeyboardInterrupt:
            code = 130
        except SystemExit as ended:
            if ended.code != 143:
                raise
            code = 143
    errors.say(f"Stopped. {shown.kept}")
    raise typer.Exit(code)
