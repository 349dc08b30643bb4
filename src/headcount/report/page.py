"""One self-contained HTML page from saved results."""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any

import jinja2
import pandas as pd
import xarray as xr
from plotly.offline import get_plotlyjs

from headcount.analysis import accuracy_table, removable_table
from headcount.analysis.outcomes import BASELINE, metrics_of
from headcount.report import wording
from headcount.report.head_map import head_maps
from headcount.scores import all_scores

MARGIN = 0.01  # the paper's "within 1 point"
CONFIDENCE = 0.95
_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def render_page(
    *,
    manifest: Mapping[str, Any],
    scores: xr.Dataset | None,
    thresholds: xr.Dataset | None,
    outcomes: pd.DataFrame | None,
) -> str:
    """The report as one HTML file that works from disk, without a network.

    The same input gives the same bytes. Parts whose input is None say which command makes it.

    Args:
        manifest: facts about the run (model, data, settings, versions, created, command); all optional. The metric is
            ``settings.metric`` if given, else ``acc``, else the first there is.
        scores: one variable a score, dims (example, layer, head).
        thresholds: one variable a score, dim (share,).
        outcomes: one row a policy and question.

    Raises:
        InputError: outcomes without a baseline, or without the metric that the manifest names.
    """
    results = _results(manifest, outcomes)
    maps = head_maps(scores, thresholds) if scores is not None and scores.data_vars else None
    script = _asset("page.js")
    plotly = get_plotlyjs()
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("headcount.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": wording.percent, "points": wording.points}
    environment.globals |= {
        "change": wording.change_with_interval,
        "policy_name": wording.policy_name,
        "removable": wording.removable_with_interval,
    }
    shown = _scores_shown(results, maps)
    return environment.get_template("page.html.j2").render(
        model=str(_at(manifest, "model", "name") or "Unnamed model"),
        subtitle=_subtitle(manifest),
        results=results,
        maps=maps,
        definitions=[score for score in all_scores() if not shown or score.id in shown],
        facts=list(_facts({k: v for k, v in manifest.items() if k != "command"})),
        command=manifest.get("command"),
        style=_asset("page.css"),
        plotly=plotly,
        script=script,
        data=_json({"curves": results and results["curves"], "maps": maps}),
        policy=f"default-src 'none'; script-src {_hash(plotly)} {_hash(script)}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'",
    )


def _results(manifest: Mapping[str, Any], outcomes: pd.DataFrame | None) -> dict[str, Any] | None:
    """All that the page says about accuracy; None when nothing was evaluated."""
    if outcomes is None or outcomes.empty:
        return None
    known = metrics_of(outcomes)
    metric = str(_at(manifest, "settings", "metric") or ("acc" if "acc" in known or not known else known[0]))
    accuracy = accuracy_table(outcomes, metric=metric, confidence=CONFIDENCE)
    removable = removable_table(outcomes, metric=metric, margin=MARGIN, confidence=CONFIDENCE)
    tasks = [str(task) for task in outcomes.loc[outcomes[metric].notna(), "task"].unique()]
    named = tasks if len(tasks) <= 3 else [f"{len(tasks)} tasks"]
    said = {"margin": MARGIN, "confidence": CONFIDENCE}
    return {
        "metric": wording.metric_name(metric),
        "tasks": tasks,
        "answer": "" if removable.empty else wording.answer(removable, metric=metric, tasks=named, **said),
        "caveats": wording.caveats(accuracy, removable, chance=_chance(outcomes, metric), **said),
        "policies": wording.rows(accuracy),
        "removable": _ranked(removable),
        "curves": _curves(accuracy, removable, metric),
    }


def _curves(accuracy: pd.DataFrame, removable: pd.DataFrame, metric: str) -> dict[str, Any]:
    """The chart's data: percentages, the scores with the largest removable share first and random last."""
    policies = wording.rows(accuracy)
    baseline = policies[0].accuracy
    lines = []
    for score in sorted((row.score for row in _ranked(removable)), key=lambda score: score == "random"):
        points = sorted((row for row in policies if row.score == score), key=lambda row: row.share_realised)
        lines.append({
            "score": score,
            "label": ["baseline", *(row.policy for row in points)],
            "x": _percentages([0.0, *(row.share_realised for row in points)]),
            "y": _percentages([baseline, *(baseline + row.change for row in points)]),
            "low": _percentages([baseline, *(baseline + row.change_low for row in points)]),
            "high": _percentages([baseline, *(baseline + row.change_high for row in points)]),
        })  # fmt: skip
    best = wording.best_row(removable)
    return {
        "baseline": _percentages([baseline])[0],
        "floor": _percentages([baseline - MARGIN])[0],
        "lines": lines,
        "best": best and best.score,
        "metric": wording.metric_name(metric),
    }


def _ranked(removable: pd.DataFrame) -> list[Any]:
    """Its rows, the largest removable share first."""
    return sorted(wording.rows(removable), key=lambda row: -row.removable_share)


def _percentages(fractions: list[float]) -> list[float]:
    return [round(100 * float(value), 3) for value in fractions]


def _chance(outcomes: pd.DataFrame, metric: str) -> float | None:
    """Accuracy of guessing: mean of 1 / choices over the baseline's questions; None when that is not known."""
    if metric not in ("acc", "acc_norm") or "loglikelihoods" not in outcomes.columns:
        return None
    asked = outcomes[(outcomes["policy"] == BASELINE) & outcomes[metric].notna()]
    choices = [
        0 if values is None or pd.api.types.is_scalar(values) else len(values) for values in asked["loglikelihoods"]
    ]
    return sum(1 / count for count in choices) / len(choices) if choices and min(choices) > 1 else None


def _scores_shown(results: dict[str, Any] | None, maps: dict[str, Any] | None) -> set[str]:
    evaluated = [row.score for row in results["removable"]] if results else []
    return {*evaluated, *(entry["score"] for entry in (maps["scores"] if maps else []))}


def _subtitle(manifest: Mapping[str, Any]) -> str:
    layers, heads = _at(manifest, "model", "layers"), _at(manifest, "model", "num_heads")
    tasks, created = _at(manifest, "data", "tasks"), manifest.get("created")
    parts = [
        f"{len(layers)} layers" if isinstance(layers, list) and layers else "",
        f"{heads} query heads" if isinstance(heads, int) else "",
        str(_at(manifest, "model", "dtype") or ""),
        ", ".join(map(str, tasks)) if isinstance(tasks, list) else str(tasks or ""),
        str(created or ""),
    ]
    return " · ".join(part for part in parts if part)


def _at(tree: Any, *path: str) -> Any:
    for name in path:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


def _facts(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every entry of the manifest as (dotted name, text), nested mappings opened."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _facts(value, f"{prefix}{name}.")
        elif value is not None and value != []:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            yield f"{prefix}{name}", text


def _asset(name: str) -> str:
    return files("headcount.report").joinpath("templates", name).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    """JSON that is safe inside a script element; NaN is refused, not written."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_ESCAPES)


def _hash(script: str) -> str:
    """The script as a source expression of a Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
