"""``headcount scores``: the registry."""

from headcount.cli import options
from headcount.cli.app import app
from headcount.cli.console import output
from headcount.whole_table import WholeTable


@app.command()
def scores(scores_from: options.ScoresFrom = None) -> None:
    """List every score: id, name, when a head is inactive, unit, source, aliases."""
    from headcount.scores import all_scores
    from headcount.units import KINDS

    table = WholeTable(box=None, header_style="bold")
    for heading in ("id", "name", "inactive when", "unit", "of", "source", "aliases"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "id")
    for score in all_scores():
        of = ", ".join(kind for kind in KINDS if score.is_of(kind))
        table.add_row(score.id, score.name, score.inactive_when, score.unit, of, score.source, ", ".join(score.aliases))
    output.print(table)
