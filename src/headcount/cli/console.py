"""What commands print with: standard output for results, standard error for progress, notes and errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from headcount.models.batching import Progress as ProgressCallback

output = Console()
errors = Console(stderr=True)


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Python warnings as one readable line; other libraries' housekeeping is not the user's business."""
    if issubclass(category, UserWarning):
        errors.print(f"[yellow]Note:[/] {escape(str(message))}", highlight=False, soft_wrap=True)


class Steps:
    """A progress bar for each step of a command: what runs, how far, how long still."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def start(self, what: str, total: int | None = None) -> ProgressCallback:
        """A new line; call what it returns with (done, total)."""
        task = self._progress.add_task(escape(what), total=total)

        def update(done: int, total: int) -> None:
            self._progress.update(task, completed=done, total=total)

        return update


@contextmanager
def steps(
    stopped: str = "What was finished is kept in the run's folder; the same command with -o FOLDER goes on from there.",
) -> Iterator[Steps]:
    """Progress bars on standard error; Ctrl-C inside is one sentence, which ends with ``stopped``, and exit code 130."""
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(bar_width=18),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]left"),
        TimeRemainingColumn(),
    )
    try:
        with Progress(*columns, console=errors) as progress:
            yield Steps(progress)
    except KeyboardInterrupt:
        errors.print(f"Stopped. {stopped}", soft_wrap=True)
        raise typer.Exit(130) from None
