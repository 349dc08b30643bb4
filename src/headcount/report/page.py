"""One self-contained HTML page from saved results."""

import base64
import functools
import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from importlib.resources import files
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from headcount.errors import InputError
from headcount.policies import PRUNED
from headcount.report import wording
from headcount.report.head_map import compressed
from headcount.report.results import MARGIN, Report, RunResults
from headcount.report.sections import SECTIONS, result_tables

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
    report = Report(runs)
    run = report.run
    tables = {table.id: table for table in result_tables(report)}
    data = {section.id: section.data(report) for section in SECTIONS}
    metric = wording.shown("".join(wording.metric_name(metric.name) for metric in run.metrics), 60)
    script, (plotly, plotly_hash) = _script(), _plotly()
    packed = {f"score-{index}": profile for index, profile in enumerate(report.head_maps[1].values())}
    packed["tables"] = compressed(_json({id: table.csv() for id, table in tables.items()}).encode())
    if any(data.values()):
        packed["plotly"] = plotly
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            run=run,
            title=run.model,
            subtitle=_subtitle(run),
            left=[
                f"{name}: {other.left}" if len(runs) > 1 else other.left
                for name, other in zip(report.labels, runs, strict=True)
                if other.left
            ],
            contents=[
                (section.id, section.heading.format(wording.titled(metric or "accuracy"))) for section in SECTIONS
            ],
            tables=tables,
            data=data,
            metric_name=metric,
            margin_name=wording.fall_name(MARGIN, run.judged) if run.evaluated else "",
            lower=any(metric.sign < 0 for metric in run.metrics),
            pruned=run.asked and bool((run.answers.outcomes["curve"] == PRUNED).any()),
            **{name: word for section in SECTIONS for name, word in section.words(report).items()},
            style=_asset("templates", "page.css"),
            script=script,
            json=_json(data),
            packed=packed,
            policy=f"default-src 'none'; script-src {_hash(script)} {plotly_hash}; style-src 'unsafe-inline'; "
            "img-src data: blob:; base-uri 'none'; form-action 'none'",
        )
    )


@functools.cache  # packing it takes longer than all the rest of a small page
def _plotly() -> tuple[str, str]:
    """plotly.js, compressed, and its hash."""
    source = get_plotlyjs()
    return compressed(source.encode()), _hash(source)


@functools.cache  # with the templates that it has compiled
def _environment() -> jinja2.Environment:
    places = [jinja2.PackageLoader("headcount.report", folder) for folder in ("templates", "sections")]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(places),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": wording.percent}
    return environment


def _script() -> str:
    """What all sections use, then theirs in order, then what begins to draw."""
    beside = sorted(file.name for file in files("headcount.report").joinpath("sections").iterdir())
    of_sections = [
        ("sections", name)
        for section in SECTIONS
        for name in beside
        if name in (f"{section.id}.js", f"{section.id}_details.js")
    ]
    first = [("templates", f"{name}.js") for name in ("core", "colours", "profiles", "charts", "grid")]
    parts = [_asset(*place) for place in (*first, *of_sections, ("templates", "main.js"))]
    return "(() => {\n'use strict';\n" + "\n".join(parts) + "})();"


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


def _asset(*place: str) -> str:
    return files("headcount.report").joinpath(*place).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    """JSON that is safe inside a script element; NaN is refused, not written."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_ESCAPES)


def _hash(script: str) -> str:
    """The script as a source expression of a Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
