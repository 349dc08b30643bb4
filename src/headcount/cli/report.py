"""``headcount report``: the page of a run."""

from pathlib import Path
from typing import Annotated

import typer

from headcount.cli import app, options
from headcount.cli.console import output
from headcount.errors import RunError
from headcount.store import Run


@app.command()
def report(
    run: options.RunFolder,
    output_file: Annotated[
        Path | None, typer.Option("--output", "-o", help="HTML file. [default: RUN/report.html]")
    ] = None,
    scores_from: options.ScoresFrom = None,
) -> None:
    """Write one HTML page that shows a run; it needs no network and no server."""
    from headcount.store import open_run

    output.print(f"Page: {write_report(open_run(run), output_file)}", highlight=False, soft_wrap=True, markup=False)


def write_report(run: Run, file: Path | None = None) -> Path:
    """The run's page, written to ``file`` (default: report.html in the run's folder)."""
    from headcount.report import render_page
    from headcount.store import write_atomically
    from headcount.thresholding import thresholds

    scores, outcomes = run.scores(), run.outcomes()
    if scores is None and outcomes is None:
        raise RunError(
            f"{str(run.path)!r} holds neither scores nor outcomes yet. Run `headcount measure` or `evaluate` first."
        )
    cuts = run.thresholds()
    if cuts is None and scores is not None:
        cuts = thresholds(scores)
    page = render_page(manifest=run.manifest, scores=scores, thresholds=cuts, outcomes=outcomes)
    file = file or run.path / "report.html"
    write_atomically(file, page.encode())
    return file
