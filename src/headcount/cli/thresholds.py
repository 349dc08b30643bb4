"""``headcount thresholds``: thresholds of a measured run at shares of heads."""

from typing import Annotated

import typer
from rich.table import Table

from headcount.cli import app, options
from headcount.cli.console import output
from headcount.errors import RunError


@app.command()
def thresholds(
    run: options.RunFolder,
    share: Annotated[
        list[float] | None, typer.Option(help="Share of heads; repeat. [default: 0, 0.05, …, 0.30]")
    ] = None,
    scores_from: options.ScoresFrom = None,
) -> None:
    """Find, for each measured score, the threshold beyond which a share of heads is inactive."""
    from headcount.scores import get_score
    from headcount.store import open_run
    from headcount.thresholding import SHARES
    from headcount.thresholding import thresholds as find_thresholds

    opened = open_run(run)
    scores = opened.scores()
    if scores is None:
        raise RunError(f"{str(run)!r} holds no scores. Measure some with `headcount measure … -o FOLDER`.")
    cuts = find_thresholds(scores, share or SHARES)
    opened.set_thresholds(cuts)
    table = Table(box=None, header_style="bold")
    table.add_column("score")
    table.add_column("inactive")
    for value in cuts["share"].values:
        table.add_column(f"{100 * value:g}%", justify="right")
    for name, values in cuts.items():
        sign = "<" if get_score(str(name)).inactive_when == "low" else ">"
        table.add_row(str(name), sign, *(f"{value:.4g}" for value in values.values))
    output.print(table)
