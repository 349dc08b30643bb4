"""Tables in a terminal, readable at 80 columns."""

import math
from collections.abc import Sequence

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from headcount.analysis import decided_shares
from headcount.metrics import Metric
from headcount.report.wording import (
    ACCURACY,
    NOT_MEASURED,
    change_of,
    change_with_interval,
    fall_name,
    judged_in,
    left_out,
    mean_of,
    metric_name,
    nats,
    percent,
    policy_name,
    removable_with_interval,
    rows,
    shown,
    titled,
)
from headcount.report.wording import points as points_text


def print_tables(console: Console, accuracy: pd.DataFrame, removable: pd.DataFrame, metric: Metric = ACCURACY) -> None:
    """Print the accuracy of each policy, then the removable share of each score.

    Args:
        console: where to.
        accuracy: as from ``headcount.analysis.accuracy_table``.
        removable: as from ``headcount.analysis.removable_table``; nothing is printed for an empty one.
        metric: that accuracy is measured by.
    """
    name = titled(shown(metric_name(metric.name), 40))
    change = "Change, points [95%]" if metric.is_share else "Change [95%]"
    policies = terminal_table(f"{name} with heads zeroed", "Score", "Share asked", "Realised", name, change)
    for row in rows(accuracy):
        policies.add_row(
            Text(shown(policy_name(row), 60)), percent(row.share_asked, 0), percent(row.share_realised),
            mean_of(metric, row.accuracy), change_with_interval(row, metric),
        )  # fmt: skip
    console.print(policies)
    lower = f"{name} is better when lower: what counts is by how much it rises." if metric.sign < 0 else ""
    for said in filter(None, [lower, metric.doubt, *left_out(accuracy, metric)]):
        console.print(said, style="dim", highlight=False, soft_wrap=True, markup=False)
    if not removable.empty:
        console.print()
        print_removable(console, removable, metric)


#: What the numbers of ``print_divergence`` are.
DIVERGENCE_NOTE = (
    "KL: divergence of the answers' probabilities from the untouched model's. Log-likelihood: change of the\n"
    "right answer's, or of a text's a token. Both see more than right and wrong with few questions, and near chance."
)


def print_divergence(console: Console, divergence: pd.DataFrame, *, title: str) -> None:
    """Print how far each policy moves the answers.

    Args:
        console: where to.
        divergence: as from ``headcount.analysis.divergence_table``; nothing is printed for an empty one.
        title: above it.
    """
    if divergence.empty:
        return
    several = divergence["share_asked"].nunique() > 1
    choices = bool(divergence["kl"].notna().any())
    headings = ["Share asked"] * several + ["Realised"] + ["KL, nat [95%]"] * choices + ["Log-likelihood, nat [95%]"]
    made = terminal_table(title, "Score", *headings)
    for row in rows(divergence):
        cells = [percent(row.share_asked, 0)] * several + [percent(row.share_realised)]
        cells += [nats(row.kl, row.kl_low, row.kl_high)] * choices
        gold = row.gold_loglikelihood, row.gold_loglikelihood_low, row.gold_loglikelihood_high
        made.add_row(Text(shown(policy_name(row), 60)), *cells, nats(*gold, signed=True))
    console.print(made)


def print_decided(console: Console, decided: pd.DataFrame, *, margin: float, confidence: float) -> None:
    """Print each policy's verdict, and between which shares each score's removable share lies.

    Args:
        console: where to.
        decided: as from ``headcount.analysis.sequential_table``.
        margin: that was asked about, in the metric's unit.
        confidence: of each verdict.
    """
    metric = judged_in(decided) if len(decided) else ACCURACY
    fall, sure, lower = fall_name(margin, metric), percent(confidence, 0), metric.sign < 0
    verdicts = terminal_table(
        f"{f'At most {fall} above' if lower else f'Within {fall} of'} the untouched model? Asked until known at {sure}",
        "Score", "Share asked", "Realised", "Change", "Verdict", "Stopped after",
    )  # fmt: skip
    for row in rows(decided.sort_values(["score", "share_asked"], kind="stable")):
        verdicts.add_row(
            Text(shown(policy_name(row), 60)), percent(row.share_asked), percent(row.share_realised),
            change_of(metric, row.change), row.verdict or "not known yet", f"{row.num_questions:,} of {row.total:,}",
        )  # fmt: skip
    console.print(verdicts)
    between = decided_shares(decided)
    if between.empty:
        return
    shares = terminal_table(f"Heads that can be zeroed within {fall}", "Score", "Share asked", "Realised", "Questions")
    for row in rows(between):
        shares.add_row(
            Text(shown(row.score, 60)), _between(row.within, row.beyond), _between(row.within_realised, row.beyond_realised),
            f"{row.num_questions:,} at {row.looks} share{'s' * (row.looks > 1)}",
        )  # fmt: skip
    console.print()
    console.print(shares)


def _between(low: float, high: float) -> str:
    return f"≥ {percent(low)}" if math.isnan(high) else f"{percent(low)} to {percent(high)}"


def print_removable(console: Console, removable: pd.DataFrame, metric: Metric = ACCURACY) -> None:
    """Print the removable share of each score, as from ``headcount.analysis.removable_table``."""
    shares = terminal_table(
        f"Heads that can be zeroed within {fall_name(0.01, metric)}", "Score", "Removable share [95%]", "Measured up to"
    )
    for row in rows(removable):
        shares.add_row(Text(shown(row.score, 60)), removable_with_interval(row), percent(row.largest_share_measured))
    console.print(shares)


def print_removable_by_score(
    console: Console,
    table: pd.DataFrame,
    columns: Sequence[str],
    *,
    title: str = "Heads that can be zeroed within 1 point, percent",
) -> None:
    """Print removable shares side by side.

    Args:
        console: where to.
        table: as from ``headcount.analysis.removable_by_score``.
        columns: scores of it to show, and ``best`` for the best one with its name.
        title: above it.
    """
    several = len(set(table["task"])) > 1
    made = terminal_table(title, "Model", *columns)
    for row in rows(table):
        bounds = row.lower_bounds.split()
        cells = []
        for column in columns:
            best = row.best_score if column == "best" and isinstance(row.best_score, str) else ""
            cell = f"{100 * getattr(row, column):.1f}".replace("nan", NOT_MEASURED)
            cells.append(f"{'≥ ' if (best or column) in bounds else ''}{cell} {best}".rstrip())
        name = f"{row.model}, {row.task}" if several else row.model
        made.add_row(
            Text(shown(name, 60)),
            *(Text(shown(cell, 60)) for cell in cells),
            style="bold" if row.model == "mean" else None,
        )
    console.print(made)


def print_curves(console: Console, curves: pd.DataFrame) -> None:
    """Print what each curve says, as from ``headcount.analysis.curve_table``.

    A table for each model and task, the best rank first; one table over all models if there is but one score.
    """
    headings = "Within 1 point", "Within 1 percent", "Area", "Rank"
    several_models = len(set(curves["score"])) == 1
    groups = [curves] if several_models else [group for _, group in curves.groupby(["model", "task"], sort=False)]
    for group in groups:
        first = rows(group)[0]
        if several_models:
            made = terminal_table(f"{first.score}, {first.task}", "Model", *headings)
        else:
            made = terminal_table(
                f"{first.model}, {first.task}: {percent(first.baseline)} untouched", "Score", *headings
            )
        for row in rows(group if several_models else group.sort_values("rank", kind="stable")):
            made.add_row(
                Text(shown(row.model if several_models else row.score, 60)),
                f"{'≥ ' * row.is_lower_bound}{percent(row.removable_share)}",
                f"{'≥ ' * row.is_lower_bound_relative}{percent(row.removable_share_relative)}",
                percent(row.normalised_area),
                f"{row.rank:g}",
            )
        console.print(made)


def print_points(console: Console, points: pd.DataFrame) -> None:
    """Print one curve's points, as from ``headcount.analysis.against_random``."""
    first = rows(points)[0]
    title = f"{first.model}, {first.task}: {first.score}, {percent(first.baseline)} untouched"
    made = terminal_table(title, "Share asked", "Threshold", "Realised", "Accuracy", "Change", "Random at this share")
    for row in rows(points):
        made.add_row(
            percent(row.share_asked, 0), f"{row.threshold:.4g}", percent(row.share_realised), percent(row.accuracy),
            points_text(row.accuracy - row.baseline), percent(row.random_accuracy),
        )  # fmt: skip
    console.print(made)


def terminal_table(title: str, first: str, *others: str) -> Table:
    """An empty table: the first column folds, the others are numbers."""
    # What strangers named is text, not markup; neither is `[95%]`.
    table = Table(
        title=Text(shown(title)),
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
    )
    table.add_column(Text(shown(first, 60)), overflow="fold")
    for name in others:
        table.add_column(Text(shown(name, 60)), justify="right", no_wrap=len(name) > 12)
    return table
