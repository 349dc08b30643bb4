"""One self-contained HTML page from saved results."""

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from datetime import datetime
from importlib.resources import files
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from headcount.errors import InputError
from headcount.policies import PRUNED
from headcount.report import wording
from headcount.report.chart_data import (
    accuracy_data,
    agreement_data,
    comparison_data,
    divergence_data,
    layers_data,
    paper_data,
    ranks_data,
    stability_data,
)
from headcount.report.head_map import compressed, head_maps
from headcount.report.head_tables import most_alike
from headcount.report.labels import run_labels
from headcount.report.result_tables import result_tables
from headcount.report.results import CONFIDENCE, MARGIN, RunResults

_SCRIPTS = (
    "core", "colours", "profiles", "details", "map", "charts", "grid", "accuracy", "divergence", "distributions", "agreement",
    "stability", "ranks", "layers", "comparison", "paper", "main",
)  # fmt: skip
_CONTENTS = {
    "answer": "The answer",
    "accuracy": "{} as heads are zeroed",
    "divergence": "How far answers move",
    "heads": "Head map",
    "distributions": "Distributions and thresholds",
    "agreement": "Agreement of scores",
    "stability": "Stability across benchmarks",
    "ranks": "Ranks of scores",
    "layers": "Layer by layer",
    "comparison": "Runs compared",
    "paper": "Beside the paper's models",
    "methods": "Methods",
}
_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def render_page(runs: Sequence[RunResults]) -> str:
    """The report as one HTML file that works from disk, without a network.

    The same input gives the same bytes. Parts whose results are missing say which command makes them.

    Args:
        runs: the first is what the page is about.

    Raises:
        InputError: no run, outcomes without a baseline, or without the metric that the manifest names.
    """
    if not runs:
        raise InputError("A report needs the results of at least one run.")
    run = runs[0]
    tables = {table.id: table for table in result_tables(runs)}
    maps, profiles, units = None, {}, run.manifest.model.units
    if run.scores is not None and run.measured:
        maps, profiles = head_maps(run.scores, units.layers if units else ())
    if maps:
        maps["inputs"] = run.num_inputs
    data = {
        "curves": accuracy_data(run),
        "divergence": divergence_data(run),
        "map": maps,
        "agreement": agreement_data(run),
        "stability": stability_data(runs),
        "ranks": ranks_data(run),
        "layers": layers_data(run),
        "comparison": comparison_data(runs, tables["distances"].frame if "distances" in tables else None),
        "paper": paper_data(run),
    }
    answer = _answer(run)
    script = "(() => {\n'use strict';\n" + "\n".join(_asset(f"scripts/{name}.js") for name in _SCRIPTS) + "})();"
    plotly = get_plotlyjs()
    packed = {f"score-{index}": profile for index, profile in enumerate(profiles.values())}
    packed["tables"] = compressed(_json({id: table.csv() for id, table in tables.items()}).encode())
    if any(data.values()):
        packed["plotly"] = compressed(plotly.encode())
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("headcount.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": wording.percent}
    return environment.get_template("page.html.j2").render(
        run=run,
        title=run.model,
        subtitle=_subtitle(run),
        left=[
            f"{name}: {other.left}" if len(runs) > 1 else other.left
            for name, other in zip(run_labels(runs), runs, strict=True)
            if other.left
        ],
        contents=[
            (id, heading.format(wording.titled(answer["metric_name"] or "accuracy")))
            for id, heading in _CONTENTS.items()
        ],
        tables=tables,
        **answer,
        data=data,
        curves=data["curves"],
        moved=data["divergence"],
        lower=any(metric.sign < 0 for metric in run.metrics),
        pruned=run.outcomes is not None and bool((run.outcomes["curve"] == PRUNED).any()),
        map=maps,
        alike=most_alike(run) if data["agreement"] else "",
        grouped=maps is not None and any(size != 1 for size in maps["groups"]),
        command=_command(run),
        facts=list(run.facts()),
        style=_asset("page.css"),
        script=script,
        json=_json(data),
        packed=packed,
        policy=f"default-src 'none'; script-src {_hash(script)} {_hash(plotly)}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'",
    )


def _answer(run: RunResults) -> dict[str, Any]:
    """What the page says first: the sentence, its limits, and the removable shares on a common scale."""
    if not run.evaluated:
        words = ("answer", "proof", "metric_name", "curves_summary", "untouched", "margin_name")
        name = "".join(wording.shown(wording.metric_name(metric.name), 60) for metric in run.metrics)
        return {"caveats": [], "shares": None} | dict.fromkeys(words, "") | {"metric_name": name}
    said = {"margin": MARGIN, "confidence": CONFIDENCE}
    tasks = [wording.shown(task, 60) for task in run.tasks]
    named = tasks if len(tasks) <= 3 else [f"{len(tasks)} tasks"]
    removable = run.removable
    asked = int(run.accuracy["num_questions"].iloc[0])
    answer = (
        ""
        if removable.empty or bool((removable["score"] == "pruned").all())
        else wording.answer(removable, metric=run.judged, tasks=named, num_questions=asked, **said)
    )
    measured = max((row.largest_share_measured for row in wording.rows(removable)), default=0.1)
    most = 10 * max(1, math.ceil(10 * measured))  # the scale's end, percent
    rows = [
        {
            "score": wording.shown(row.score, 40),
            "at": round(10_000 * row.removable_share / most, 2),
            "low": round(10_000 * row.low / most, 2),
            "high": round(10_000 * row.high / most, 2),
            "open": wording.open_above(row),
            "text": wording.removable_with_interval(row),
        }
        for row in wording.rows(removable)
    ]
    return {
        "answer": answer,
        "proof": wording.proof(removable, num_questions=asked, **said),
        "caveats": wording.caveats(run.accuracy, removable, chance=run.chance, metric=run.judged, **said),
        "shares": {"rows": rows, "most": most} if rows else None,
        "metric_name": wording.shown(wording.metric_name(run.metric), 60),
        "curves_summary": answer,
        "untouched": wording.mean_of(run.judged, float(run.accuracy["accuracy"].iloc[0])),
        "margin_name": wording.fall_name(MARGIN, run.judged),
    }


def _subtitle(run: RunResults) -> str:
    model, data, settings = run.manifest.model, run.manifest.data, run.manifest.settings
    parts = [
        f"{len(model.layers)} layers" if model.layers else "",
        f"{model.num_heads:,} query heads" if model.num_heads is not None else "",
        wording.shown(model.dtype or "", 20),
        run.data,
        f"{data.num_questions:,} questions" if data.num_questions else "",
        f"{data.num_fewshot}-shot" if data.num_fewshot is not None else "",
        f"{'with' if data.chat_template else 'without'} chat template" if data.chat_template is not None else "",
        f"seed {settings.seed}" if "seed" in settings.model_fields_set else "",
        _date(run.manifest.created) if run.manifest.created else "",
    ]
    return " · ".join(part for part in parts if part)


def _date(text: str) -> str:
    """An ISO date as "25 November 2026"; anything else as it is."""
    try:
        day = datetime.fromisoformat(text)
    except ValueError:
        return wording.shown(text, 40)
    return f"{day.day} {day:%B %Y}"


def _command(run: RunResults) -> str:
    """The command that began the run, without marks that could show it as something else."""
    return wording.shown(run.manifest.command, 2000)


def _asset(name: str) -> str:
    return files("headcount.report").joinpath("templates", *name.split("/")).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    """JSON that is safe inside a script element; NaN is refused, not written."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_ESCAPES)


def _hash(script: str) -> str:
    """The script as a source expression of a Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
