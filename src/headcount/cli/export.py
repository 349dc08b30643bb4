"""``headcount export``: a run's tables for other tools."""

from pathlib import Path
from typing import Annotated

import typer

from headcount.cli import options
from headcount.cli.app import app
from headcount.cli.console import output


@app.command()
def export(
    run: options.RunFolder,
    form: Annotated[str, typer.Option("--format", "-f", help="parquet, csv or netcdf.")] = "parquet",
    folder: Annotated[
        Path | None, options.path_option("--output", "-o", help="Folder for the files. [default: RUN/export]")
    ] = None,
) -> None:
    """Write scores, thresholds, outcomes and metrics of a run as parquet, CSV or netCDF."""
    from headcount.cli.runs import say_whats_left
    from headcount.store import open_run
    from headcount.store.export import export_run

    opened = open_run(run)
    for file in export_run(opened, folder or opened.path / "export", form):
        output.say(str(file))
    say_whats_left([opened])
