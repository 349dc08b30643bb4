"""``headcount published``: the paper's own results."""

from pathlib import Path
from typing import Annotated

import typer

from headcount.cli import options
from headcount.cli.app import app
from headcount.cli.console import output


@app.command()
def published(
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="One of the 14 models: hub id or the part after the slash.")
    ] = None,
    score: Annotated[str | None, typer.Option("--score", "-s", help="Id or alias of a score.")] = None,
    output_file: Annotated[
        Path | None, options.path_option("--output", "-o", help="Also write the table to this CSV file, in full.")
    ] = None,
) -> None:
    """Show the results of arXiv 2504.03889: its Table 2, recomputed, or the curves of a model or a score.

    With a model: what each score's curve says. With a score: the same for each model. With both: the curve, point by
    point, with its thresholds and with random heads beside it.
    """
    from headcount.analysis.curves import against_random
    from headcount.errors import InputError
    from headcount.published import published_curves, published_model, published_points, published_table
    from headcount.report.overview import print_table_2
    from headcount.report.terminal import print_curves, print_points
    from headcount.scores import get_score
    from headcount.store import table_csv, write_atomically

    chosen_model = published_model(model) if model else None
    chosen_score = get_score(score).id if score else None
    if not (model or score):
        table = published_table()
        print_table_2(output)
    else:
        table = against_random(published_points()) if model and score else published_curves()
        if chosen_model:
            table = table.loc[table["model"] == chosen_model]
        if chosen_score:
            table = table.loc[table["curve"] == chosen_score]
        if table.empty:
            raise InputError(
                f"No curve of {chosen_score} was published. `headcount published -m MODEL` shows those there are."
            )
        if model and score:
            print_points(output, table.sort_values("share_asked"))
        else:
            print_curves(output, table)
    if output_file:
        write_atomically(output_file, table_csv(table, digits=None).encode())
        output.print()
        output.say(f"Table: {output_file}")
