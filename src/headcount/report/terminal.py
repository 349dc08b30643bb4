"""The two tables in a terminal, readable at 80 columns."""

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from headcount.report.wording import change_with_interval, percent, policy_name, removable_with_interval, rows


def print_tables(console: Console, accuracy: pd.DataFrame, removable: pd.DataFrame) -> None:
    """Print the accuracy of each policy, then the removable share of each score.

    Args:
        console: where to.
        accuracy: as from ``headcount.analysis.accuracy_table``.
        removable: as from ``headcount.analysis.removable_table``; nothing is printed for an empty one.
    """
    policies = _table(
        "Accuracy with heads zeroed", "Score", "Share asked", "Realised", "Accuracy", "Change, points [95%]"
    )
    for row in rows(accuracy):
        policies.add_row(
            Text(policy_name(row)), percent(row.share_asked, 0), percent(row.share_realised), percent(row.accuracy),
            change_with_interval(row),
        )  # fmt: skip
    console.print(policies)
    if removable.empty:
        return
    shares = _table("Heads that can be zeroed within 1 point", "Score", "Removable share [95%]", "Measured up to")
    for row in rows(removable):
        shares.add_row(Text(row.score), removable_with_interval(row), percent(row.largest_share_measured))
    console.print()
    console.print(shares)


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in others:
        # `[95%]` is text, not markup.
        table.add_column(Text(name), justify="right", no_wrap=len(name) > 12)
    return table
