"""``headcount analyse``: every table of the paper from saved runs."""

from pathlib import Path
from typing import Annotated

import typer

from headcount.cli import options
from headcount.cli.app import app, grouped
from headcount.cli.console import output
from headcount.errors import RunError


@app.command()
@grouped()
def analyse(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN…", help="Folders of runs, of studies, or that hold runs.", show_default=False),
    ],
    output_folder: Annotated[
        Path | None, options.path_option("--output", "-o", help="Write every table, in full, as CSV into this folder.")
    ] = None,
    *,
    judging: options.Judging,
    share: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of heads at which to print agreement, frequencies and thresholds."),
    ] = 0.10,
    published: Annotated[
        bool, typer.Option("--published/--no-published", help="Put the paper's 14 models beside these.")
    ] = True,
    scores_from: options.ScoresFrom = None,
) -> None:
    """Make every table of the paper from runs: how many heads can go, by which score, and whether one can rely on it.

    Prints removable shares with intervals, ranks, heads always and never inactive, agreement between scores and, for
    several runs, how thresholds carry over. Nothing is run: what a run does not hold is left out.
    """
    from headcount.cli.runs import open_runs, say_whats_left
    from headcount.report.overview import print_overview
    from headcount.store.whole import check_writable, files_together
    from headcount.study.analysing import analyse_runs, named_units, write_tables

    if output_folder is not None:
        check_writable(output_folder)
    opened = open_runs(runs)
    tables = analyse_runs(opened, **vars(judging), published=published)
    if not tables:
        raise RunError(
            f"{', '.join(map(str, runs))} hold neither scores nor outcomes. Run `headcount measure` or `evaluate` first."
        )
    say_whats_left(opened)
    units = named_units(opened)
    print_overview(output, tables, share=share, published=published and units == "heads", units=units)
    if output_folder is not None:
        with files_together(output_folder) as folder:
            write_tables(folder, tables)
        output.print()
        output.say(f"Tables: {output_folder} ({', '.join(tables)})")
