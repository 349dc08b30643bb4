"""``headcount thresholds``: thresholds of a measured run at shares of heads."""

from typing import Annotated

import typer

from headcount.cli import options
from headcount.cli.app import app
from headcount.cli.console import output
from headcount.whole_table import WholeTable


@app.command()
def thresholds(
    run: options.RunFolder,
    share: Annotated[
        list[float] | None, typer.Option(help="Share of heads; repeat. [default: 0, 0.05, …, 0.30]")
    ] = None,
    scores_from: options.ScoresFrom = None,
) -> None:
    """Find, for each measured score, the threshold beyond which a share of heads is inactive."""
    from headcount.cli.runs import command_line
    from headcount.scores import inactive_when
    from headcount.store import continue_run
    from headcount.study.cuts import find_thresholds
    from headcount.study.progress import run_progress
    from headcount.thresholding import SHARES, said_not_finite

    with continue_run(run, command=command_line(), repair=False) as opened:
        cuts = find_thresholds(opened, share or SHARES)
        progress = run_progress(opened)
    table = WholeTable(box=None, header_style="bold")
    table.add_column("score")
    table.add_column("inactive")
    for value in cuts["share"].values:
        table.add_column(f"{100 * value:g}%", justify="right", overflow="fold")
    for name, values in cuts.items():
        sign = "<" if inactive_when(str(name), cuts) == "low" else ">"
        table.add_row(str(name), sign, *(f"{value:.4g}" for value in values.values))
    output.print(table)
    for name, values in cuts.items():
        if values.attrs:
            output.print(said_not_finite(str(name), values.attrs), highlight=False, soft_wrap=True, markup=False)
    if progress.inputs_left:
        output.print(f"Of {progress.num_inputs} inputs {progress.inputs_left} are not measured yet.")
