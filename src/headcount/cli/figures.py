"""``headcount figures``: a run's figures and tables for a paper."""

from pathlib import Path
from typing import Annotated

import typer

from headcount.cli import options
from headcount.cli.app import app, grouped
from headcount.cli.console import output


@app.command()
@grouped()
def figures(
    runs: options.RunFolders,
    output_folder: Annotated[
        Path | None,
        options.path_option("--output", "-o", help="Folder for the files. [default: figures in the first run]"),
    ] = None,
    template: Annotated[str, typer.Option(help="Whose column widths: iclr, neurips, icml, acl or ieee.")] = "iclr",
    *,
    judging: options.Judging,
    scores_from: options.ScoresFrom = None,
) -> None:
    """Write each figure as PDF, SVG and PNG, and each table as LaTeX (booktabs) and CSV."""
    from headcount.cli.runs import say_whats_left
    from headcount.report import read_results
    from headcount.report.figures import write_figures
    from headcount.store import open_run
    from headcount.store.whole import check_writable

    folder = output_folder or runs[0] / "figures"
    if output_folder is not None:
        check_writable(output_folder)
    opened = [open_run(run) for run in runs]
    results = [read_results(run, **vars(judging)) for run in opened]
    files = write_figures(results, folder, template=template)
    output.say(f"{len(files)} files in {folder}")
    say_whats_left(opened)
