"""A run's tables and the published ones in a terminal, readable at 80 columns."""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import pandas as pd
from rich.console import Console

from headcount.analysis import Statistics, decided_shares
from headcount.metrics import Metric
from headcount.report import wording
from headcount.report.sections.accuracy import accuracy_table
from headcount.report.sections.answer import decided_table, removable_table
from headcount.report.sections.divergence import divergence_table
from headcount.report.tables import Spec, num, table, text
from headcount.report.wording import percent
from headcount.units import Kind

#: What the numbers of ``print_divergence`` are.
DIVERGENCE_NOTE = (
    "KL: divergence of the answers' probabilities from the untouched model's. Log-likelihood: change of the\n"
    "right answer's, or of a text's a token. Both see more than right and wrong with few questions, and near chance."
)


def print_note(console: Console, said: str) -> None:
    """Print a sentence about what stands above it."""
    console.print(said, style="dim", highlight=False, soft_wrap=True, markup=False)


def print_table(
    console: Console, title: str, frame: pd.DataFrame, columns: Iterable[Spec], bold: str = "", *, space: bool = False
) -> None:
    """Print a table that is for a terminal alone, with a free line above it if ``space``."""
    if space:
        console.print()
    console.print(table("", title, "", frame, columns).terminal(bold=bold))


def print_tables(
    console: Console, accuracy: pd.DataFrame, removable: pd.DataFrame, metric: Metric = wording.ACCURACY, *,
    units: str = "heads",
) -> None:  # fmt: skip
    """Print the accuracy of each policy, by ``metric``, then the removable share of each curve, if there is one.

    The tables are as from ``accuracy_table`` and ``removable_table`` of ``headcount.analysis``; ``units`` says of what.
    """
    name = wording.titled(wording.shown(wording.metric_name(metric.name), 40))
    only = "Policy", "Share asked", "Realised", name, "Change [95%]"
    called = {"Policy": "Score"} | ({"Change [95%]": "Change, points [95%]"} if metric.is_share else {})
    console.print(accuracy_table(accuracy, metric).terminal(only, called, title=f"{name} with {units} off"))
    lower = f"{name} is better when lower: what counts is by how much it rises." if metric.sign < 0 else ""
    for said in filter(None, [lower, metric.doubt, *wording.left_out(accuracy, metric)]):
        print_note(console, said)
    if not removable.empty:
        console.print()
        title = f"{Kind.titled(units)} that can be off within {wording.fall_name(Statistics.margin, metric)}"
        only = "Score", "Removable share [95%]", "Measured up to"
        console.print(removable_table(removable, metric).terminal(only, title=title))


def print_divergence(console: Console, divergence: pd.DataFrame, *, title: str) -> None:
    """Print how far each policy moves the answers, as from ``headcount.analysis.divergence_table``; nothing if that is empty."""
    if divergence.empty:
        return
    several, choices = divergence["share_asked"].nunique() > 1, bool(divergence["kl"].notna().any())
    only = ["Policy", *["Share asked"] * several, "Realised", *["KL [95%]"] * choices, "Log-likelihood [95%]"]
    called = {name: name.replace(" [95%]", ", nat [95%]") for name in only} | {"Policy": "Score"}
    console.print(divergence_table(divergence.assign(task="")).terminal(only, called, title=title))


def print_decided(console: Console, decided: pd.DataFrame, *, units: str = "heads") -> None:
    """Print each policy's verdict, and between which shares each curve's removable share lies; nothing if there is none.

    ``decided`` is as from ``headcount.analysis.RunTables.decided``.
    """
    if decided.empty:
        return
    rule = wording.rows(decided.head(1))[0]
    made = decided_table(decided.sort_values(["curve", "share_asked"], kind="stable"), unit="")
    title = f"{made.title} Asked until known at {percent(rule.confidence, 0)}"
    console.print(made.terminal(called={"Policy": "Score"}, title=title))
    between = decided_shares(decided)
    if between.empty:
        return
    title = f"{Kind.titled(units)} that can be off within {wording.fall_name(rule.margin, wording.judged_in(decided))}"
    columns = [
        text("Score", "curve"), num("Share asked", lambda row: _between(row.within, row.beyond)),
        num("Realised", lambda row: _between(row.within_realised, row.beyond_realised)),
        num("Questions", lambda row: f"{row.num_questions:,} at {row.looks} share{'s' * (row.looks > 1)}"),
    ]  # fmt: skip
    print_table(console, title, between, columns, space=True)


def _between(low: float, high: float) -> str:
    return f"≥ {percent(low)}" if math.isnan(high) else f"{percent(low)} to {percent(high)}"


def print_removable_by_curve(
    console: Console, removable: pd.DataFrame, columns: Sequence[str],
    *, title: str, digits: int = 1,
) -> None:  # fmt: skip
    """Print removable shares side by side, as from ``headcount.analysis.removable_by_curve``.

    ``columns`` are the curves to show, and ``best`` for the best one with its name.
    """
    several = len(set(removable["task"])) > 1

    def share(row: Any, column: str) -> str:
        best = row.best_curve if column == "best" and isinstance(row.best_curve, str) else ""
        bound = "≥ " * ((best or column) in row.lower_bounds.split("; "))
        return (
            f"{bound}{f'{100 * getattr(row, column):.{digits}f}'.replace('nan', wording.NOT_MEASURED)} {best}".rstrip()
        )

    name = text("Model", lambda row: f"{row.model}, {row.task}" if several else row.model)
    shares = [num(column, lambda row, column=column: share(row, column)) for column in columns]
    print_table(console, title, removable, [name, *shares], bold="mean")


def print_curves(console: Console, curves: pd.DataFrame) -> None:
    """Print what each published curve says, as from ``headcount.analysis.curve_table``.

    A table for each model and task, the best rank first; one table over all models if there is but one curve.
    """
    columns = [
        num("Within 1 point", lambda row: f"{'≥ ' * row.is_lower_bound}{percent(row.removable_share, 2)}"),
        num("Within 1 percent", partial(relative_share, digits=2)), num("Area", "normalised_area", percent),
        num("Rank", "rank", "{:g}".format),
    ]  # fmt: skip
    first = wording.rows(curves)[0]
    if len(set(curves["curve"])) == 1:
        return print_table(console, f"{first.curve}, {first.task}", curves, [text("Model", "model"), *columns])
    for _, group in curves.groupby(["model", "task"], sort=False):
        first = wording.rows(group)[0]
        title = f"{first.model}, {first.task}: {percent(first.baseline)} untouched"
        print_table(console, title, group.sort_values("rank", kind="stable"), [text("Score", "curve"), *columns])


def relative_share(row: Any, digits: int = 1) -> str:
    """A removable share within a margin that is relative to the untouched model's."""
    return f"{'≥ ' * row.is_lower_bound_relative}{percent(row.removable_share_relative, digits)}"


def print_points(console: Console, curve: pd.DataFrame) -> None:
    """Print one published curve's points, as from ``headcount.analysis.against_random``."""
    first = wording.rows(curve)[0]
    columns = [
        num("Share asked", "share_asked", lambda share: percent(share, 0)), num("Threshold", "threshold", "{:.4g}".format),
        num("Realised", "share_realised", lambda share: percent(share, 2)), num("Accuracy", "accuracy", percent),
        num("Change", lambda row: wording.points(row.accuracy - row.baseline)),
        num("Random at this share", "random_accuracy", percent),
    ]  # fmt: skip
    title = f"{first.model}, {first.task}: {first.curve}, {percent(first.baseline)} untouched"
    print_table(console, title, curve, columns)
