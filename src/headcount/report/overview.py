"""The tables of an analysis in a terminal, readable at 80 columns: those that matter, at one share."""

from collections.abc import Iterator, Mapping

import pandas as pd
from rich.console import Console

from headcount.analysis import Statistics
from headcount.metrics import Metric
from headcount.policies import RANDOM
from headcount.published import published_table
from headcount.report import wording
from headcount.report.tables import nearest_share, num, table, text
from headcount.report.terminal import (
    DIVERGENCE_NOTE,
    print_decided,
    print_divergence,
    print_note,
    print_removable_by_curve,
    relative_share,
)

#: Columns of Table 2 of the paper.
TABLE_2 = ("awft", "best", "ahon_ln", "lthon_ln", RANDOM)
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
        columns = [column for column in TABLE_2 if column in tables["by_curve"]]
        judged = [metric for metric in metrics.values() if metric.higher_is_better is not None]
        console.print()
        title = f"Heads that can be zeroed within {wording.margins_of(Statistics.margin, judged)}, percent"
        print_removable_by_curve(console, tables["by_curve"], columns, title=title)
        beside_paper = any(metric.is_accuracy for metric in judged)
        if published and beside_paper:
            console.print()
            title = "As published, within 1 point of accuracy, percent"
            print_removable_by_curve(console, published_table(), TABLE_2, title=title)
        if "ranks" in tables:
            _ranks(console, tables["ranks"], set(tables["by_curve"]["model"]))
            if published and not beside_paper:
                print_note(console, f"Published ranks are by accuracy, these by {wording.names_of(judged)}.")
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


def _parts(frame: pd.DataFrame, by: str) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """The rows of each model and task, or data."""
    for key, part in frame.groupby(["model", by], sort=False):
        model, name = (str(label) for label in key)
        yield model, name, part


def _named(model: str, name: str) -> str:
    return f"{wording.shown(model, 40)}, {wording.shown(name, 24)}"


def _not_judged(console: Console, accuracy: pd.DataFrame) -> None:
    """Of which benchmarks no change is judged, and of which questions were left out."""
    for model, task, of_task in _parts(accuracy, "task"):
        metric = wording.judged_in(of_task)
        said = [] if metric.higher_is_better is not None else [
            f"Which way {wording.shown(metric.name, 40)} is better is not known, or not the same in all tasks: its changes "
            "are not judged. Say it with --higher-is-better or --lower-is-better, or analyse the tasks one at a time."
        ]  # fmt: skip
        for sentence in said + wording.left_out(of_task, metric):
            print_note(console, f"{_named(model, task)}: {sentence}")


def _metrics(accuracy: pd.DataFrame) -> dict[tuple[str, str], Metric]:
    """(model, task) → what it was judged by."""
    return {(model, task): wording.judged_in(of_task) for model, task, of_task in _parts(accuracy, "task")}


def _removable(console: Console, removable: pd.DataFrame, metrics: Mapping[tuple[str, str], Metric]) -> None:
    for number, (model, task, group) in enumerate(_parts(removable, "task")):
        metric = metrics[model, task]
        made = table(
            "removable",
            f"{_named(model, task)}: within {wording.fall_name(Statistics.margin, metric)}"
            + f" of {wording.names_of([metric])}" * (metric.name not in ("", "acc")),
            "",
            group.sort_values("removable_share", ascending=False, kind="stable"),
            [
                text("Score", lambda row: wording.shown(row.curve, 40)),
                num("Removable [95%]", wording.removable_with_interval), num("Shown", "share_shown", wording.percent),
                num("Relative", relative_share), num("Rank", "rank", "{:g}".format),
            ],
        )  # fmt: skip
        if number:
            console.print()
        console.print(made.terminal())
    below, above = (any(metric.sign == sign for metric in metrics.values()) for sign in (1, -1))
    moves = " or ".join(["falls below"] * below + ["rises above"] * above)
    change = " or ".join(["fall"] * below + ["rise"] * above)
    print_note(
        console,
        f"Removable: where the curve {moves} the untouched model by more than that for the last time.\n"
        f"Shown: up to where the {change} is shown at 95% to be within it.\n"
        "Relative: within 1 percent of the untouched value. Rank: by the area under the curve.",
    )


def _decided(console: Console, decided: pd.DataFrame) -> None:
    """Verdicts on policies that were asked until it was decided."""
    for number, (model, data, of_run) in enumerate(_parts(decided, "data")):
        if number:
            console.print()
        name = f"{_named(model, data)}, {wording.rows(of_run)[0].metric}"
        console.print(name, style="bold", highlight=False, markup=False)
        print_decided(console, of_run)


def _divergence(console: Console, divergence: pd.DataFrame, share: float) -> None:
    for number, (model, task, of_task) in enumerate(_parts(divergence, "task")):
        if number:
            console.print()
        title = f"{_named(model, task)}: how far answers move at {wording.percent(share, 0)}"
        print_divergence(console, of_task.sort_values("kl", kind="stable"), title=title)
    print_note(console, DIVERGENCE_NOTE)


def _ranks(console: Console, ranks: pd.DataFrame, own: set[str]) -> None:
    """How alike the ranks of one's own models are, and how alike those of the published ones."""
    one, other = (ranks[column].isin(list(own)) for column in ("model", "other_model"))
    kinds = {"among these": one & other, "these and published": one ^ other, "among published": ~(one | other)}
    pairs = {f"{name} ({int(which.sum())})": ranks.loc[which] for name, which in kinds.items() if which.any()}
    made = table(
        "ranks",
        "Do models and benchmarks rank the scores alike?",
        "",
        pd.DataFrame({"pairs": list(pairs)}),
        [
            text("Pairs", "pairs"),
            num("Rank correlation", lambda row: _spread(pairs[row.pairs]["rank_correlation"])),
            num("Top 5 overlap", lambda row: _spread(pairs[row.pairs]["top_5_overlap"])),
        ],
    )
    if pairs:
        console.print()
        console.print(made.terminal())


def _spread(values: pd.Series) -> str:
    if values.isna().all():
        return wording.ratio(float("nan"))
    return f"{values.median():.2f} ({values.min():.2f} to {values.max():.2f})".replace("-", "−")


def _inactive(console: Console, inactive: pd.DataFrame, share: float) -> None:
    grouped = "groups" in inactive and bool((inactive["groups"] < inactive["heads"]).any())
    columns = [
        text("Inactive by", lambda row: wording.shown(row.score, 40)),
        *(num(name.title(), name) for name in ("always", "sometimes", "never")),
    ]
    if grouped:
        columns += [
            num("Groups", lambda row: f"{row.groups_always:g} / {row.groups_sometimes:g} / {row.groups_never:g}"),
            num("On an input", "groups_mean_inactive", "{:.1f}".format),
        ]
    for model, data, of_run in _parts(inactive, "data"):
        first = wording.rows(of_run)[0]
        title = f"{_named(model, data)}: {first.heads} heads at {wording.percent(share, 0)}"
        title += f", in {first.groups:g} groups" if grouped else ""
        console.print(table("inactive", title, "", of_run, columns).terminal())
    if grouped:
        print_note(
            console,
            "Groups: key-value groups of which every query head is always / sometimes / never inactive at once.",
        )


def _agreement(console: Console, agreement: pd.DataFrame, share: float) -> None:
    measures = {"Overlap": "iou", "On an input": "iou_per_input", "Precision": "precision"}
    for model, data, of_run in _parts(agreement, "data"):
        once = of_run.loc[of_run["score"] < of_run["other"]].sort_values("iou", ascending=False, kind="stable")
        most = once.head(_PAIRS).reset_index(drop=True)
        frame = most[list(measures.values())].assign(
            pair=[wording.shown(f"{row.score}, {row.other}", 60) for row in wording.rows(most)]
        )
        frame.loc[len(most)] = {**once[list(measures.values())].median(), "pair": "median of all pairs"}
        made = table(
            "agreement",
            f"{_named(model, data)}: agreement at {wording.percent(share, 0)}",
            "",
            frame,
            [text("Scores", "pair"), *(num(said, name, "{:.2f}".format) for said, name in measures.items())],
        )
        console.print(made.terminal())


def _thresholds(console: Console, thresholds: pd.DataFrame, share: float) -> None:
    for model, of_model in thresholds.groupby("model", sort=False):
        names = list(dict.fromkeys(of_model["data"]))
        lines = []
        for score, of_score in of_model.sort_values("spread", kind="stable").groupby("score", sort=False):
            of_data = of_score.set_index("data")
            lines.append([score, *of_data["threshold"].loc[names], of_data["spread"].iloc[0]])
        made = table(
            "thresholds",
            f"{wording.shown(model, 40)}: thresholds at {wording.percent(share, 0)}",
            "",
            pd.DataFrame(lines),
            [
                text("Score", lambda row: wording.shown(row[0], 40)),
                *(num(wording.shown(name, 16), at, "{:.4g}".format) for at, name in enumerate(names, 1)),
                num("Spread", len(names) + 1, lambda spread: wording.percent(spread, 0)),
            ],
        )
        console.print(made.terminal())
