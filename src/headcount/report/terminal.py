"""A run's tables and the published ones in a terminal, readable at 80 columns."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.console import Console

from headcount.analysis import Statistics, decided_shares
from headcount.metrics import Metric
from headcount.report.sections.accuracy import accuracy_table
from headcount.report.sections.answer import decided_table, removable_table
from headcount.report.sections.divergence import divergence_table
from headcount.report.tables import table
from headcount.report.wording import (
    ACCURACY,
    NOT_MEASURED,
    fall_name,
    judged_in,
    left_out,
    metric_name,
    percent,
    points,
    rows,
    shown,
    titled,
)

#: What the numbers of ``print_divergence`` are.
DIVERGENCE_NOTE = (
    "KL: divergence of the answers' probabilities from the untouched model's. Log-likelihood: change of the\n"
    "right answer's, or of a text's a token. Both see more than right and wrong with few questions, and near chance."
)


def print_note(console: Console, text: str) -> None:
    """Print a sentence about what stands above it."""
    console.print(text, style="dim", highlight=False, soft_wrap=True, markup=False)


def print_tables(console: Console, accuracy: pd.DataFrame, removable: pd.DataFrame, metric: Metric = ACCURACY) -> None:
    """Print the accuracy of each policy, then the removable share of each curve.

    Args:
        console: where to.
        accuracy: as from ``headcount.analysis.accuracy_table``.
        removable: as from ``headcount.analysis.removable_table``; nothing is printed for an empty one.
        metric: that accuracy is measured by.
    """
    name = titled(shown(metric_name(metric.name), 40))
    change = "Change, points [95%]" if metric.is_share else "Change [95%]"
    headings = {
        "Policy": "Score",
        "Share asked": "Share asked",
        "Realised": "Realised",
        name: name,
        "Change [95%]": change,
    }
    console.print(accuracy_table(accuracy, metric).terminal(headings, title=f"{name} with heads zeroed"))
    lower = f"{name} is better when lower: what counts is by how much it rises." if metric.sign < 0 else ""
    for said in filter(None, [lower, metric.doubt, *left_out(accuracy, metric)]):
        print_note(console, said)
    if not removable.empty:
        console.print()
        title = f"Heads that can be zeroed within {fall_name(Statistics.margin, metric)}"
        headings = {name: name for name in ("Score", "Removable share [95%]", "Measured up to")}
        console.print(removable_table(removable, metric).terminal(headings, title=title))


def print_divergence(console: Console, divergence: pd.DataFrame, *, title: str) -> None:
    """Print how far each policy moves the answers.

    Args:
        console: where to.
        divergence: as from ``headcount.analysis.divergence_table``; nothing is printed for an empty one.
        title: above it.
    """
    if divergence.empty:
        return
    headings = {"Policy": "Score", "Share asked": "Share asked", "Realised": "Realised"}
    headings |= {name: name.replace(" [95%]", ", nat [95%]") for name in ("KL [95%]", "Log-likelihood [95%]")}
    if divergence["share_asked"].nunique() < 2:
        del headings["Share asked"]
    if divergence["kl"].isna().all():
        del headings["KL [95%]"]
    console.print(divergence_table(divergence.assign(task="")).terminal(headings, title=title))


def print_decided(console: Console, decided: pd.DataFrame) -> None:
    """Print each policy's verdict, and between which shares each curve's removable share lies.

    Args:
        console: where to.
        decided: as from ``headcount.analysis.RunTables.decided``; nothing is printed for an empty one.
    """
    if decided.empty:
        return
    made = decided_table(decided.sort_values(["curve", "share_asked"], kind="stable"), unit="")
    rule = rows(decided.head(1))[0]
    headings = {column.heading: column.heading.replace("Policy", "Score") for column in made.columns}
    title = f"{made.title} Asked until known at {percent(rule.confidence, 0)}"
    console.print(made.terminal(headings, title=title))
    between = decided_shares(decided)
    if between.empty:
        return
    shares = table(
        "searched",
        f"Heads that can be zeroed within {fall_name(rule.margin, judged_in(decided))}",
        "",
        between,
        [
            ("Score", lambda row: row.curve, False),
            ("Share asked", lambda row: _between(row.within, row.beyond), True),
            ("Realised", lambda row: _between(row.within_realised, row.beyond_realised), True),
            ("Questions", lambda row: f"{row.num_questions:,} at {row.looks} share{'s' * (row.looks > 1)}", True),
        ],
    )
    console.print()
    console.print(shares.terminal())


def _between(low: float, high: float) -> str:
    return f"≥ {percent(low)}" if math.isnan(high) else f"{percent(low)} to {percent(high)}"


def print_removable_by_curve(
    console: Console,
    removable: pd.DataFrame,
    columns: Sequence[str],
    *,
    title: str = "Heads that can be zeroed within 1 point, percent",
) -> None:
    """Print removable shares side by side.

    Args:
        console: where to.
        removable: as from ``headcount.analysis.removable_by_curve``.
        columns: curves of it to show, and ``best`` for the best one with its name.
        title: above it.
    """
    several = len(set(removable["task"])) > 1

    def share(row: Any, column: str) -> str:
        best = row.best_curve if column == "best" and isinstance(row.best_curve, str) else ""
        bound = "≥ " * ((best or column) in row.lower_bounds.split("; "))
        cell = f"{100 * getattr(row, column):.1f}".replace("nan", NOT_MEASURED)
        return f"{bound}{cell} {best}".rstrip()

    made = table(
        "removable-by-curve",
        title,
        "",
        removable,
        [
            ("Model", lambda row: f"{row.model}, {row.task}" if several else row.model, False),
            *((column, lambda row, column=column: share(row, column), True) for column in columns),
        ],
    )
    console.print(made.terminal(bold="mean"))


def print_curves(console: Console, curves: pd.DataFrame) -> None:
    """Print what each curve says, as from ``headcount.analysis.curve_table``.

    A table for each model and task, the best rank first; one table over all models if there is but one curve.
    """
    several_models = len(set(curves["curve"])) == 1
    groups = [curves] if several_models else [group for _, group in curves.groupby(["model", "task"], sort=False)]
    for group in groups:
        first = rows(group)[0]
        of_one = f"{first.model}, {first.task}: {percent(first.baseline)} untouched"
        made = table(
            "curves",
            f"{first.curve}, {first.task}" if several_models else of_one,
            "",
            group if several_models else group.sort_values("rank", kind="stable"),
            [
                ("Model", lambda row: row.model, False) if several_models else ("Score", lambda row: row.curve, False),
                ("Within 1 point", lambda row: f"{'≥ ' * row.is_lower_bound}{percent(row.removable_share)}", True),
                ("Within 1 percent", relative_share, True),
                ("Area", lambda row: percent(row.normalised_area), True),
                ("Rank", lambda row: f"{row.rank:g}", True),
            ],
        )
        console.print(made.terminal())


def relative_share(row: Any) -> str:
    """A removable share within a margin that is relative to the untouched model's."""
    return f"{'≥ ' * row.is_lower_bound_relative}{percent(row.removable_share_relative)}"


def print_points(console: Console, curve: pd.DataFrame) -> None:
    """Print one curve's points, as from ``headcount.analysis.against_random``."""
    first = rows(curve)[0]
    made = table(
        "points",
        f"{first.model}, {first.task}: {first.curve}, {percent(first.baseline)} untouched",
        "",
        curve,
        [
            ("Share asked", lambda row: percent(row.share_asked, 0), True),
            ("Threshold", lambda row: f"{row.threshold:.4g}", True),
            ("Realised", lambda row: percent(row.share_realised), True),
            ("Accuracy", lambda row: percent(row.accuracy), True),
            ("Change", lambda row: points(row.accuracy - row.baseline), True),
            ("Random at this share", lambda row: percent(row.random_accuracy), True),
        ],
    )
    console.print(made.terminal())
