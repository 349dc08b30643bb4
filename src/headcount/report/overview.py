"""The tables of an analysis in a terminal, readable at 80 columns: those that matter, at one share."""

from collections.abc import Mapping, Sequence
from typing import cast

import pandas as pd
from rich.console import Console
from rich.text import Text

from headcount.metrics import Metric
from headcount.published import published_table
from headcount.report.head_tables import nearest_share
from headcount.report.terminal import (
    DIVERGENCE_NOTE,
    print_decided,
    print_divergence,
    print_removable_by_score,
    terminal_table,
)
from headcount.report.wording import (
    NOT_MEASURED,
    fall_name,
    judged_in,
    left_out,
    margins_of,
    names_of,
    percent,
    removable_with_interval,
    rows,
    shown,
)

#: Columns of Table 2 of the paper.
TABLE_2 = ("awft", "best", "ahon_ln", "lthon_ln", "random")
_PAIRS = 5  # of scores whose agreement is printed


def print_overview(
    console: Console, tables: Mapping[str, pd.DataFrame], *, share: float, published: bool = False
) -> None:
    """Print what an analysis found.

    Args:
        console: where to.
        tables: as from ``headcount.analysis.all_tables``.
        share: of heads, at which inactive heads, agreement and thresholds are printed; of what is there the nearest.
        published: print the paper's Table 2 below one's own.
    """
    if "decided" in tables:
        _decided(console, tables["decided"])
    if "accuracy" in tables:
        _not_judged(console, tables["accuracy"])
    if "removable" in tables:
        metrics = _metrics(tables.get("accuracy", tables["removable"]))
        _removable(console, tables["removable"], metrics)
        columns = [column for column in TABLE_2 if column in tables["by_score"]]
        judged = [metric for metric in metrics.values() if metric.higher_is_better is not None]
        console.print()
        title = f"Heads that can be zeroed within {margins_of(0.01, judged)}, percent"
        print_removable_by_score(console, tables["by_score"], columns, title=title)
        beside_paper = any(metric.is_accuracy for metric in judged)
        if published and beside_paper:
            console.print()
            title = "As published, within 1 point of accuracy, percent"
            print_removable_by_score(console, published_table(), TABLE_2, title=title)
        if "ranks" in tables:
            _ranks(console, tables["ranks"], set(tables["by_score"]["model"]))
            if published and not beside_paper:
                _note(console, f"Published ranks are by accuracy, these by {names_of(judged)}.")
    for name, show in (
        ("divergence", _divergence),
        ("inactive", _inactive),
        ("agreement", _agreement),
        ("thresholds", _thresholds),
    ):
        if name in tables:
            frame = tables[name]
            column = "share_asked" if name == "divergence" else "share"
            known = frame[column].dropna().unique().tolist()
            if not known:
                continue
            nearest = nearest_share(known, share)
            console.print()
            show(console, frame.loc[frame[column] == nearest], nearest)


def _not_judged(console: Console, accuracy: pd.DataFrame) -> None:
    """Of which benchmarks no change is judged, and of which questions were left out."""
    for key, of_task in accuracy.groupby(["model", "task"], sort=False):
        model, task = cast(tuple[str, str], key)
        metric = judged_in(of_task)
        said = [] if metric.higher_is_better is not None else [
            f"Which way {shown(metric.name, 40)} is better is not known, or not the same in all tasks: its changes are not "
            "judged. Say it with --higher-is-better or --lower-is-better, or analyse the tasks one at a time."
        ]  # fmt: skip
        for sentence in said + left_out(of_task, metric):
            _note(console, f"{shown(model, 40)}, {shown(task, 24)}: {sentence}")


def _metrics(accuracy: pd.DataFrame) -> dict[tuple[str, str], Metric]:
    """(model, task) → what it was judged by."""
    groups = accuracy.groupby(["model", "task"], sort=False)
    return {cast(tuple[str, str], key): judged_in(of_task) for key, of_task in groups}


def _removable(console: Console, removable: pd.DataFrame, metrics: Mapping[tuple[str, str], Metric]) -> None:
    for number, (key, group) in enumerate(removable.groupby(["model", "task"], sort=False)):
        model, task = cast(tuple[str, str], key)
        metric = metrics[model, task]
        table = terminal_table(
            f"{shown(model, 40)}, {shown(task, 24)}: within {fall_name(0.01, metric)}"
            + f" of {names_of([metric])}" * (metric.name not in ("", "acc")),
            "Score",
            "Removable [95%]",
            "Shown",
            "Relative",
            "Rank",
        )
        for row in rows(group.sort_values("removable_share", ascending=False, kind="stable")):
            relative = f"{'≥ ' if row.is_lower_bound_relative else ''}{percent(row.removable_share_relative)}"
            table.add_row(
                Text(shown(row.score, 40)),
                removable_with_interval(row),
                percent(row.share_shown),
                relative,
                f"{row.rank:g}",
            )
        if number:
            console.print()
        console.print(table)
    below, above = (any(metric.sign == sign for metric in metrics.values()) for sign in (1, -1))
    moves = " or ".join(["falls below"] * below + ["rises above"] * above)
    change = " or ".join(["fall"] * below + ["rise"] * above)
    _note(
        console,
        f"Removable: where the curve {moves} the untouched model by more than that for the last time.\n"
        f"Shown: up to where the {change} is shown at 95% to be within it.\n"
        "Relative: within 1 percent of the untouched value. Rank: by the area under the curve.",
    )


def _decided(console: Console, decided: pd.DataFrame) -> None:
    """Verdicts on policies that were asked until it was decided."""
    for number, (key, of_run) in enumerate(decided.groupby(["model", "data"], sort=False)):
        model, data = cast(tuple[str, str], key)
        if number:
            console.print()
        first = rows(of_run)[0]
        _heading(console, f"{shown(model, 40)}, {shown(data, 24)}, {first.metric}")
        print_decided(console, of_run, margin=first.margin, confidence=first.confidence)


def _divergence(console: Console, divergence: pd.DataFrame, share: float) -> None:
    for number, (key, of_task) in enumerate(divergence.groupby(["model", "task"], sort=False)):
        model, task = cast(tuple[str, str], key)
        if number:
            console.print()
        title = f"{shown(model, 40)}, {shown(task, 24)}: how far answers move at {percent(share, 0)}"
        print_divergence(console, of_task.sort_values("kl", kind="stable"), title=title)
    _note(console, DIVERGENCE_NOTE)


def _heading(console: Console, text: str) -> None:
    console.print(text, style="bold", highlight=False, markup=False)


def _note(console: Console, text: str) -> None:
    console.print(text, style="dim", highlight=False, soft_wrap=True)


def _ranks(console: Console, ranks: pd.DataFrame, own: set[str]) -> None:
    """How alike the ranks of one's own models are, and how alike those of the published ones."""
    one, other = (ranks[column].isin(list(own)) for column in ("model", "other_model"))
    ours, theirs, among_published = ranks.loc[one & other], ranks.loc[one ^ other], ranks.loc[~(one | other)]
    table = terminal_table(
        "Do models and benchmarks rank the scores alike?", "Pairs", "Rank correlation", "Top 5 overlap"
    )
    for name, pairs in (("among these", ours), ("these and published", theirs), ("among published", among_published)):
        if len(pairs):
            table.add_row(f"{name} ({len(pairs)})", *(_spread(pairs[c]) for c in ("rank_correlation", "top_5_overlap")))
    if table.row_count:
        console.print()
        console.print(table)


def _spread(values: pd.Series) -> str:
    if values.isna().all():
        return NOT_MEASURED
    return f"{values.median():.2f} ({values.min():.2f} to {values.max():.2f})".replace("-", "−")


def _inactive(console: Console, inactive: pd.DataFrame, share: float) -> None:
    grouped = "groups" in inactive and bool((inactive["groups"] < inactive["heads"]).any())
    for key, of_run in inactive.groupby(["model", "data"], sort=False):
        model, data = cast(tuple[str, str], key)
        first = rows(of_run)[0]
        title = f"{shown(model, 40)}, {shown(data, 24)}: {first.heads} heads at {percent(share, 0)}"
        headings = ["Always", "Sometimes", "Never"]
        if grouped:
            title += f", in {first.groups:g} groups"
            headings += ["Groups", "On an input"]
        table = terminal_table(title, "Inactive by", *headings)
        for row in rows(of_run):
            cells = [f"{row.always}", f"{row.sometimes}", f"{row.never}"]
            if grouped:
                cells += [f"{row.groups_always:g} / {row.groups_sometimes:g} / {row.groups_never:g}"]
                cells += [f"{row.groups_mean_inactive:.1f}"]
            table.add_row(Text(shown(row.score, 40)), *cells)
        console.print(table)
    if grouped:
        _note(
            console,
            "Groups: key-value groups of which every query head is always / sometimes / never inactive at once.",
        )


def _agreement(console: Console, agreement: pd.DataFrame, share: float) -> None:
    for key, of_run in agreement.groupby(["model", "data"], sort=False):
        model, data = cast(tuple[str, str], key)
        once = of_run.loc[of_run["score"] < of_run["other"]].sort_values("iou", ascending=False, kind="stable")
        table = terminal_table(
            f"{shown(model, 40)}, {shown(data, 24)}: agreement at {percent(share, 0)}",
            "Scores", "Overlap", "On an input", "Precision",
        )  # fmt: skip
        for row in rows(once.head(_PAIRS)):
            table.add_row(
                Text(shown(f"{row.score}, {row.other}", 60)),
                f"{row.iou:.2f}",
                f"{row.iou_per_input:.2f}",
                f"{row.precision:.2f}",
            )
        table.add_row(
            "median of all pairs", *(f"{once[c].median():.2f}" for c in ("iou", "iou_per_input", "precision"))
        )
        console.print(table)


def _thresholds(console: Console, thresholds: pd.DataFrame, share: float) -> None:
    for model, of_model in thresholds.groupby("model", sort=False):
        names: Sequence[str] = list(dict.fromkeys(of_model["data"]))
        title = f"{shown(model, 40)}: thresholds at {percent(share, 0)}"
        table = terminal_table(title, "Score", *(shown(name, 16) for name in names), "Spread")
        for score, of_score in of_model.sort_values("spread", kind="stable").groupby("score", sort=False):
            found = {row.data: row for row in rows(of_score)}
            cuts = [f"{found[name].threshold:.4g}" for name in names]
            table.add_row(Text(shown(score, 40)), *cuts, percent(found[names[0]].spread, 0))
        console.print(table)
