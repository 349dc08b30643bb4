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
from headcount.report.sections import SECTIONS, of_each, result_tables, sections_of

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
    data = dict.fromkeys(SECTIONS) | of_each("data", report)
    metric = wording.shown("".join(wording.metric_name(metric.name) for metric in run.metrics), 60)
    script, (plotly, plotly_hash) = _script(), _plotly()
    packed = {f"score-{index}": profile for index, profile in enumerate(report.head_maps[1].values())}
    packed["tables"] = compressed(_json({id: table.csv() for id, table in tables.items()}).encode())
    if any(data.values()):
        packed["plotly"] = plotly
    words = {name: word for of_section in of_each("words", report).values() for name, word in of_section.items()}
    return _environment().get_template("page.html.j2").render(
        run=run,
        subtitle=_subtitle(run),
        left=[
            f"{name}: {other.left}" if len(runs) > 1 else other.left
            for name, other in zip(report.labels, runs, strict=True)
            if other.left
        ],
        contents=[
            (name, SECTIONS[name].HEADING.format(wording.titled(metric or "accuracy"), run.kind.short))
            for name in sections_of(report)
        ],
        tables=tables,
        data=data,
        metric_name=metric,
        unit_option="" if run.manifest.unit == "head" else f" --unit {run.manifest.unit}",
        example="ahon_ln" if run.manifest.unit == "head" else "fhon",
        margin_name=wording.fall_name(MARGIN, run.judged) if run.evaluated else "",
        lower=any(metric.sign < 0 for metric in run.metrics),
        pruned=run.asked and bool((run.answers.outcomes["curve"] == PRUNED).any()),
        **words,
        style=_asset("templates", "page.css"),
        script=script,
        json=_json(data | {"units": run.kind.titled(run.kind.short)}),
        packed=packed,
        policy=f"default-src 'none'; script-src {_hash(script)} {plotly_hash}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'",
    )  # fmt: skip


@functools.cache  # packing it takes longer than all the rest of a small page
def _plotly() -> tuple[str, str]:
    """plotly.js, compressed, and its hash."""
    source = get_plotlyjs()
    return compressed(source.encode()), _hash(source)


@functools.cache  # with the templates that it has compiled
def _environment() -> jinja2.Environment:
    places = [jinja2.PackageLoader("headcount.report", folder) for folder in ("templates", "sections")]
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader(places), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip


def _script() -> str:
    """What all sections use, then theirs in order, then what begins to draw."""
    parts = [("templates", f"{name}.js") for name in ("core", "colours", "profiles", "charts", "grid", "details")]
    beside = files("headcount.report").joinpath("sections")
    parts += [("sections", f"{name}.js") for name in SECTIONS if beside.joinpath(f"{name}.js").is_file()]
    script = "\n".join(_asset(*place) for place in (*parts, ("templates", "main.js")))
    return f"(() => {{\n'use strict';\n{script}}})();"


def _subtitle(run: RunResults) -> str:
    model, data, settings = run.manifest.model, run.manifest.data, run.manifest.settings
    parts = [
        f"{len(model.layers)} layers" if model.layers else "",
        _units_of(run),
        wording.shown(model.dtype or "", 20),
        run.data,
        f"{data.num_questions:,} questions" if data.num_questions else "",
        f"{data.num_fewshot}-shot" if data.num_fewshot is not None else "",
        f"{'with' if data.chat_template else 'without'} chat template" if data.chat_template is not None else "",
        f"seed {settings.seed}" if "seed" in settings.model_fields_set else "",
        _date(run.manifest.created) if run.manifest.created else "",
    ]
    return " · ".join(part for part in parts if part)


def _units_of(run: RunResults) -> str:
    units, heads = run.manifest.units, run.manifest.model.num_heads
    if run.manifest.unit != "head" and units is not None:
        return f"{units.num_units:,} {run.kind.plural}"
    return f"{heads:,} {run.kind.plural}" if heads is not None else ""


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
