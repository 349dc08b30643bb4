"""The tables of an analysis in a terminal, readable at 80 columns: those that matter, at one share."""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import cast

import numpy as np
import pandas as pd
from rich.console import Console

from headcount.analysis import Statistics
from headcount.metrics import Metric
from headcount.policies import RANDOM
from headcount.published import published_table
from headcount.report import terminal, wording
from headcount.report.tables import nearest_share, num, text
from headcount.units import Kind

#: Columns of Table 2 of the paper.
TABLE_2 = ("awft", "best", "ahon_ln", "lthon_ln", RANDOM)
_PAIRS = 5  # of scores whose agreement is printed


def print_overview(
    console: Console, tables: Mapping[str, pd.DataFrame], *, share: float, published: bool = False, units: str = "heads"
) -> None:
    """Print what an analysis found.

    Args:
        console: where to.
        tables: as from ``headcount.analysis.all_tables``.
        share: of heads, at which inactive heads, agreement and thresholds are printed; of what is there the nearest.
        published: print the paper's Table 2 below one's own.
        units: of what the tables are.
    """
    if "decided" in tables:
        _decided(console, tables["decided"], units)
    if "accuracy" in tables:
        _not_judged(console, tables["accuracy"])
    if "removable" in tables:
        judged_by = _parts(tables.get("accuracy", tables["removable"]), "task")
        metrics = {_key(of_task): wording.judged_in(of_task) for _, of_task in judged_by}
        _removable(console, tables["removable"], metrics)
        columns = [column for column in TABLE_2 if column in tables["by_curve"]]
        judged = [metric for metric in metrics.values() if metric.higher_is_better is not None]
        console.print()
        title = f"{Kind.titled(units)} that can be off within {wording.margins_of(Statistics.margin, judged)}, percent"
        terminal.print_removable_by_curve(console, tables["by_curve"], columns, title=title)
        beside_paper = any(metric.is_accuracy for metric in judged)
        if published and beside_paper:
            console.print()
            title = "As published, within 1 point of accuracy, percent"
            print_table_2(console, title)
        if "ranks" in tables:
            _ranks(console, tables["ranks"], set(tables["by_curve"]["model"]))
            if published and not beside_paper:
                terminal.print_note(console, f"Published ranks are by accuracy, these by {wording.names_of(judged)}.")
    at_one_share = {
        "divergence": _divergence,
        "inactive": partial(_inactive, units=units),
        "agreement": _agreement,
        "thresholds": _thresholds,
    }
    for name, show in at_one_share.items():
        column = "share_asked" if name == "divergence" else "share"
        if name in tables and (known := tables[name][column].dropna().unique().tolist()):
            nearest = nearest_share(known, share)
            console.print()
            show(console, tables[name].loc[tables[name][column] == nearest], nearest)


def print_table_2(console: Console, title: str = "Heads that can be zeroed within 1 point, percent") -> None:
    """Print the paper's Table 2, recomputed, to the digits that it has there; organisations are left out of the names."""
    table = published_table()
    named = table.assign(model=[model.rpartition("/")[2] for model in table["model"]])
    terminal.print_removable_by_curve(console, named, TABLE_2, title=title, digits=2)


def _parts(frame: pd.DataFrame, by: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each model and task, or data, with the names of both."""
    for key, part in frame.groupby(["model", by], sort=False):
        model, name = cast(tuple[str, str], key)
        yield f"{wording.shown(model, 40)}, {wording.shown(name, 24)}", part


def _key(part: pd.DataFrame) -> tuple[str, ...]:
    return tuple(part[["model", "task"]].iloc[0])


def _not_judged(console: Console, accuracy: pd.DataFrame) -> None:
    """Of which benchmarks no change is judged, and of which questions were left out."""
    for name, of_task in _parts(accuracy, "task"):
        metric = wording.judged_in(of_task)
        said = [] if metric.higher_is_better is not None else [
            f"Which way {wording.shown(metric.name, 40)} is better is not known, or not the same in all tasks: its changes "
            "are not judged. Say it with --higher-is-better or --lower-is-better, or analyse the tasks one at a time."
        ]  # fmt: skip
        for sentence in said + wording.left_out(of_task, metric):
            terminal.print_note(console, f"{name}: {sentence}")


def _rank(rank: float) -> str:
    return wording.NOT_MEASURED if math.isnan(rank) else f"{rank:g}"


def _removable(console: Console, removable: pd.DataFrame, metrics: Mapping[tuple[str, ...], Metric]) -> None:
    columns = [
        text("Score", lambda row: wording.shown(row.curve, 40)), num("Removable [95%]", wording.removable_with_interval),
        num("Shown", "share_shown", wording.percent), num("Relative", terminal.relative_share), num("Rank", "rank", _rank),
    ]  # fmt: skip
    for number, (name, group) in enumerate(_parts(removable, "task")):
        metric = metrics[_key(group)]
        title = f"{name}: within {wording.fall_name(Statistics.margin, metric)}"
        title += f" of {wording.names_of([metric])}" * (metric.name not in ("", "acc"))
        ordered = group.sort_values("removable_share", ascending=False, kind="stable")
        terminal.print_table(console, title, ordered, columns, space=number > 0)
    below, above = (any(metric.sign == sign for metric in metrics.values()) for sign in (1, -1))
    moves = " or ".join(["falls below"] * below + ["rises above"] * above)
    change = " or ".join(["fall"] * below + ["rise"] * above)
    terminal.print_note(
        console,
        f"Removable: where the curve {moves} the untouched model by more than that for the last time.\n"
        f"Shown: up to where the {change} is shown at 95% to be within it.\n"
        "Relative: within 1 percent of the untouched value. Rank: by the area under the curve.",
    )


def _decided(console: Console, decided: pd.DataFrame, units: str) -> None:
    """Verdicts on policies that were asked until it was decided."""
    for number, (name, of_run) in enumerate(_parts(decided, "data")):
        if number:
            console.print()
        metric = wording.rows(of_run)[0].metric
        console.print(f"{name}, {metric}", style="bold", highlight=False, markup=False)
        terminal.print_decided(console, of_run, units=units)


def _divergence(console: Console, divergence: pd.DataFrame, share: float) -> None:
    for number, (name, of_task) in enumerate(_parts(divergence, "task")):
        if number:
            console.print()
        title = f"{name}: how far answers move at {wording.percent(share, 0)}"
        terminal.print_divergence(console, of_task.sort_values("kl", kind="stable"), title=title)
    terminal.print_note(console, terminal.DIVERGENCE_NOTE)


def _ranks(console: Console, ranks: pd.DataFrame, own: set[str]) -> None:
    """How alike the ranks of one's own models are, and how alike those of the published ones."""
    one, other = (ranks[column].isin(list(own)) for column in ("model", "other_model"))
    kinds = {"among these": one & other, "these and published": one ^ other, "among published": ~(one | other)}
    lines = [
        (
            f"{name} ({np.count_nonzero(pairs)})",
            *(_spread(ranks.loc[pairs, c]) for c in ("rank_correlation", "top_5_overlap")),
        )
        for name, pairs in kinds.items()
        if np.any(pairs)
    ]
    if lines:
        columns = [text("Pairs", 0), num("Rank correlation", 1), num("Top 5 overlap", 2)]
        title = "Do models and benchmarks rank the scores alike?"
        terminal.print_table(console, title, pd.DataFrame(lines), columns, space=True)


def _spread(values: pd.Series) -> str:
    if values.isna().all():
        return wording.NOT_MEASURED
    return f"{values.median():.2f} ({values.min():.2f} to {values.max():.2f})".replace("-", "−")


def _inactive(console: Console, inactive: pd.DataFrame, share: float, units: str) -> None:
    grouped = "groups" in inactive and bool((inactive["groups"] < inactive["heads"]).any())
    columns = [text("Inactive by", lambda row: wording.shown(row.score, 40))]
    columns += [num(name.title(), name) for name in ("always", "sometimes", "never")]
    if grouped:
        columns += [
            num("Groups", lambda row: f"{row.groups_always:g} / {row.groups_sometimes:g} / {row.groups_never:g}"),
            num("On an input", "groups_mean_inactive", "{:.1f}".format),
        ]
    for name, of_run in _parts(inactive, "data"):
        first = wording.rows(of_run)[0]
        title = f"{name}: {first.heads:,} {units} at {wording.percent(share, 0)}"
        title += f", in {first.groups:g} groups" if grouped else ""
        terminal.print_table(console, title, of_run, columns)
    if grouped:
        said = "Groups: key-value groups of which every query head is always / sometimes / never inactive at once."
        terminal.print_note(console, said)


def _agreement(console: Console, agreement: pd.DataFrame, share: float) -> None:
    measures = {"Overlap": "iou", "On an input": "iou_per_input", "Precision": "precision"}
    columns = [text("Scores", 0), *(num(said, at, "{:.2f}".format) for at, said in enumerate(measures, 1))]
    for name, of_run in _parts(agreement, "data"):
        once = of_run.loc[of_run["score"] < of_run["other"]].sort_values("iou", ascending=False, kind="stable")
        lines = [
            (wording.shown(f"{row.score}, {row.other}", 60), *(getattr(row, measure) for measure in measures.values()))
            for row in wording.rows(once.head(_PAIRS))
        ]
        lines.append(("median of all pairs", *once[list(measures.values())].median()))
        title = f"{name}: agreement at {wording.percent(share, 0)}"
        terminal.print_table(console, title, pd.DataFrame(lines), columns)


def _thresholds(console: Console, thresholds: pd.DataFrame, share: float) -> None:
    for model, of_model in thresholds.groupby("model", sort=False):
        names = list(dict.fromkeys(of_model["data"]))
        lines = []
        for score, of_score in of_model.sort_values("spread", kind="stable").groupby("score", sort=False):
            of_data = of_score.set_index("data")
            lines.append([wording.shown(score, 40), *of_data["threshold"].loc[names], of_data["spread"].iloc[0]])
        columns = [text("Score", 0)]
        columns += [num(wording.shown(name, 16), at, "{:.4g}".format) for at, name in enumerate(names, 1)]
        columns.append(num("Spread", len(names) + 1, lambda spread: wording.percent(spread, 0)))
        title = f"{wording.shown(model, 40)}: thresholds at {wording.percent(share, 0)}"
        terminal.print_table(console, title, pd.DataFrame(lines), columns)
