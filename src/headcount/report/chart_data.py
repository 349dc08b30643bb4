"""What the page's script draws: plain lists, rounded to what can be seen, None for what was not measured."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from headcount.analysis import head_stability, threshold_stability
from headcount.report import wording
from headcount.report.labels import run_labels, same_model
from headcount.report.published import paper_ranks, published_models, published_shares
from headcount.report.results import MARGIN, RunResults
from headcount.report.style import score_style
from headcount.report.wording import shown


def accuracy_data(run: RunResults) -> dict[str, Any] | None:
    """Curves in percent, the scores with the largest removable share first and random last."""
    if not run.evaluated or run.removable.empty:
        return None
    policies = wording.rows(run.accuracy)
    baseline, metric = policies[0].accuracy, run.judged
    scaled = _percentages if metric.is_share else _floats
    lines = []
    for score in run.removable["score"]:
        points = sorted((row for row in policies if row.score == score), key=lambda row: row.share_realised)
        lines.append({
            **_line(score),
            "label": ["untouched", *(shown(row.policy) for row in points)],
            "x": _percentages([0.0, *(row.share_realised for row in points)]),
            "y": scaled([baseline, *(baseline + row.change for row in points)]),
            "low": scaled(run.possible([baseline, *(baseline + row.change_low for row in points)])),
            "high": scaled(run.possible([baseline, *(baseline + row.change_high for row in points)])),
        })  # fmt: skip
    best = wording.best_row(run.removable)
    return {
        "baseline": scaled([baseline])[0],
        "floor": scaled([baseline - metric.sign * MARGIN])[0],
        "margin": f"{wording.fall_name(MARGIN, metric)} {'above' if metric.sign < 0 else 'below'}",
        "share": metric.is_share,
        "lines": lines,
        "best": best and shown(best.score, 40),
        "metric": wording.shown(wording.metric_name(run.metric), 60),
    }


def divergence_data(run: RunResults) -> list[dict[str, Any]]:
    """For each benchmark, how far answers move, in nats: by measure the lines, scores in order and random last."""
    panels = []
    if run.divergence.empty:
        return panels
    order = {score: number for number, score in enumerate(run.removable["score"] if run.evaluated else ())}
    for task, of_task in run.divergence.groupby("task", sort=False):
        of_task = of_task.loc[of_task["score"] != ""]
        measures = {}
        for measure in ("kl", "gold_loglikelihood"):
            known = of_task.loc[of_task[measure].notna()]
            scores = sorted(dict.fromkeys(known["score"]), key=lambda score: (score == "random", order.get(score, 0)))
            lines = []
            for score in scores:
                points = sorted(wording.rows(known.loc[known["score"] == score]), key=lambda row: row.share_realised)
                ends = {"y": measure, "low": f"{measure}_low", "high": f"{measure}_high"}
                lines.append({
                    **_line(score),
                    "label": ["untouched", *(shown(row.policy) for row in points)],
                    "x": _percentages([0.0, *(row.share_realised for row in points)]),
                    **{end: _floats([0.0, *(getattr(row, name) for row in points)], 5) for end, name in ends.items()},
                })  # fmt: skip
            if lines:
                measures[measure] = lines
        if measures:
            per_token = bool(of_task["per_token"].any())
            panels.append({"task": shown(task, 60), "per_token": per_token, "measures": measures})
    return panels


def agreement_data(run: RunResults) -> dict[str, Any] | None:
    """Matrices of every kind and share, [kind][share][score][other]."""
    if not run.has_cuts or run.summarised is not None:
        return None
    agreement = run.agreement
    return {
        "scores": [shown(name, 40) for name in agreement["score"].values],
        "shares": _floats(agreement["share"].values),
        "kinds": {str(kind): _floats(values.to_numpy(), 3) for kind, values in agreement.data_vars.items()},
    }


def layers_data(run: RunResults) -> dict[str, Any] | None:
    """Each score layer by layer: mean and quantiles, and how often its heads are inactive at each share."""
    if not run.measured:
        return None
    profile = run.profile
    frequency = run.frequency if run.has_cuts else None
    panels = []
    for score, rows in profile.groupby("score", sort=False):
        often = None
        if frequency is not None and score in frequency:
            often = _floats(frequency[str(score)].mean("head").to_numpy(), 4)
        quantiles = {name: _floats(rows[name].to_numpy()) for name in ("mean", "q10", "q50", "q90")}
        panels.append({**_line(str(score)), **quantiles, "often": often})
    return {
        "layers": profile["layer"].drop_duplicates().tolist(),
        "shares": _floats(frequency["share"].values) if frequency is not None else [],
        "panels": panels,
    }


def stability_data(runs: Sequence[RunResults]) -> dict[str, Any] | None:
    """Each score's threshold on each benchmark, relative to its mean over benchmarks, at each share."""
    if (tables := stability_tables(runs)) is None:
        return None
    thresholds, _, names = tables
    relative = thresholds[names].div(thresholds[names].mean(axis=1).abs(), axis=0)
    lines = []
    for score, rows in thresholds.groupby("score", sort=False):
        lines.append({**_line(str(score)), "y": _floats(relative.loc[rows.index].to_numpy(), 5),
                      "threshold": _floats(rows[names].to_numpy())})  # fmt: skip
    return {"benchmarks": names, "shares": _floats(thresholds["share"].unique()), "lines": lines}


def stability_tables(runs: Sequence[RunResults]) -> tuple[pd.DataFrame, pd.DataFrame, list[str]] | None:
    """``threshold_stability`` and ``head_stability`` of the first run's model on all its benchmarks, and their names.

    None with fewer than two, or without a score and share that all have thresholds of.
    """
    alike = [run for run in same_model(runs) if run.has_cuts]
    names = run_labels(alike)
    if len(alike) < 2:
        return None
    thresholds = threshold_stability({name: run.cuts for name, run in zip(names, alike, strict=True)})
    heads = head_stability({name: run.frequency for name, run in zip(names, alike, strict=True)})
    return None if thresholds.empty else (thresholds, heads, names)


def ranks_data(run: RunResults) -> dict[str, Any] | None:
    """Each score's rank on all questions and on each task, beside its mean rank among them over the paper's 14 models."""
    if not run.evaluated or run.removable.empty:
        return None
    ranks = run.ranks
    return {
        "scores": [_line(str(score)) for score in ranks.index],
        "tasks": [shown(task, 60) for task in ranks.columns],
        "ranks": [_floats(ranks[task].to_numpy(), 4) for task in ranks.columns],
        "paper": _floats(paper_ranks(ranks.index).to_numpy(), 4),
    }


def comparison_data(runs: Sequence[RunResults], distances: pd.DataFrame | None) -> dict[str, Any] | None:
    """Several runs beside one another: distributions of the scores they share, and accuracy relative to each untouched.

    ``distances`` are those between the runs' distributions, as from ``headcount.analysis.distances``.
    """
    if len(runs) < 2:
        return None
    names = run_labels(runs)
    measured = [(number, run) for number, run in enumerate(runs) if run.measured and run.scores is not None]
    level = np.arange(101) / 100
    panels: dict[str, dict[str, Any]] = {}
    for number, run in measured:
        for name in map(str, run.scores.data_vars if run.scores is not None else ()):
            values = run.scores[name].to_numpy() if run.scores is not None else np.array([])
            values = values[np.isfinite(values)]
            if values.size:
                cuts = np.quantile(values.astype(float), level, method="interpolated_inverted_cdf")
                panel = panels.setdefault(name, {**_line(name), "runs": [], "values": []})
                panel["runs"].append(number)
                panel["values"].append(_floats(cuts))
    curves, metrics, unrelated = {}, [], []
    for number, run in enumerate(runs):
        if (data := accuracy_data(run)) is not None:
            metrics.append(run.judged)
            if data["baseline"] <= 0:  # nothing is a percentage of it
                unrelated.append(names[number])
                continue
            for line in data["lines"]:
                relative = [round(100 * y / data["baseline"], 3) for y in line["y"]]
                curves.setdefault(line["score"], []).append({"run": number, "x": line["x"], "y": relative})
    apart: dict[str, float] = {}
    for row in wording.rows(distances) if distances is not None else ():
        apart[row.score] = max(row.distance, apart.get(row.score, 0.0))
    compared = [
        {**panel, "note": wording.number(apart[name]) if name in apart else ""}
        for name, panel in panels.items()
        if len(panel["runs"]) > 1
    ]
    metric = wording.titled(wording.names_of(metrics))
    return {"runs": names, "panels": compared, "curves": curves, "metric": metric, "unrelated": unrelated}


def paper_data(run: RunResults) -> dict[str, Any] | None:
    """Removable shares of the paper's 14 models, score by score, and this run's."""
    if not run.beside_paper:
        return None
    published = published_shares()
    own = {row.score: row for row in wording.rows(run.removable)}
    scores = sorted({**published, **own}, key=lambda score: score == "random")
    return {
        "models": published_models(),
        "scores": [_line(score) for score in scores],
        "shares": [_percentages(published.get(score, ())) for score in scores],
        "own": [_share_of(own[score]) if score in own else None for score in scores],
        "name": run.model,
        "axis": f"Heads zeroed within {wording.fall_name(MARGIN, run.judged)}",
    }


def _share_of(row: Any) -> dict[str, Any]:
    share, low, high = _percentages([row.removable_share, row.low, row.high])
    return {
        "share": share,
        "low": low,
        "high": high,
        "text": wording.removable_with_interval(row),
        "bound": bool(row.is_lower_bound),
    }


def _line(score: str) -> dict[str, Any]:
    return {"score": shown(score, 40), "style": vars(score_style(score))}


def _percentages(fractions: Iterable[float]) -> list[float]:
    return [round(100 * float(value), 3) for value in fractions]


def _floats(values: Any, digits: int = 6) -> Any:
    """Nested lists of numbers with so many significant digits; None for NaN."""
    if isinstance(values, np.ndarray) and values.ndim > 1:
        return [_floats(row, digits) for row in values]
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in map(float, values)]
