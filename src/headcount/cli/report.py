"""``headcount report``: the page of a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from headcount.cli import options
from headcount.cli.app import app, grouped
from headcount.cli.console import output

if TYPE_CHECKING:
    from headcount.store import Run


@app.command()
@grouped()
def report(
    runs: options.RunFolders,
    output_file: Annotated[
        Path | None,
        options.path_option("--output", "-o", help="HTML file. [default: report.html in the first run or study]"),
    ] = None,
    *,
    judging: options.Judging,
    scores_from: options.ScoresFrom = None,
) -> None:
    """Write one HTML page that shows a run, or compares several, such as a study's; it needs no network and no server."""
    from headcount.cli.runs import open_runs, say_whats_left
    from headcount.study.folder import is_study

    if output_file is None and is_study(runs[0]):
        output_file = runs[0] / "report.html"
    opened = open_runs(runs)
    page = write_report(opened, output_file, **vars(judging))
    output.say(f"Page: {page}")
    say_whats_left(opened)


def write_report(
    runs: "list[Run]", file: Path | None = None, *, metric: str | None = None, higher_is_better: bool | None = None
) -> Path:
    """The page of the runs, written to ``file`` (default: report.html in the first run's folder)."""
    from headcount.report import read_results, render_page
    from headcount.store import write_atomically
    from headcount.store.whole import check_writable

    file = file or runs[0].path / "report.html"
    check_writable(file)
    results = [read_results(run, metric=metric, higher_is_better=higher_is_better) for run in runs]
    write_atomically(file, render_page(results).encode())
    return file
