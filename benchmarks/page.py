"""The page of large runs: how big it is, how long it takes to make, and how soon a browser shows it.

    python benchmarks/page.py --json page.json

Runs are made up: each head has a level of its own for each score and varies about it from input to input, in all 16
scores, and every score has outcomes at six shares. The page is opened from disk in headless Chromium, afresh each time;
times are milliseconds since the navigation began, medians over ``--repeats``: the first text painted (first contentful
paint), the head map drawn, the first chart drawn, and every score unpacked.
"""

import argparse
import json
import resource
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from playwright.sync_api import Browser, sync_playwright

from headcount.report import RunResults, render_page
from headcount.scores import all_scores
from headcount.store import Manifest

#: name → layers, query heads a layer, query heads a key-value head, inputs
SIZES = {"30 × 9": (30, 9, 3, 400), "32 × 32": (32, 32, 4, 2000), "80 × 64": (80, 64, 8, 2000)}
SHORT = {"8 × 4": (8, 4, 2, 30)}


def made_up(layers: int, heads: int, group: int, inputs: int, questions: int = 500) -> RunResults:
    rng = np.random.default_rng(0)
    ids = [score.id for score in all_scores()]
    shape = (inputs, layers, heads)
    values = {}
    for id in ids:
        level = rng.gamma(2.0, 1.0, size=(1, layers, heads)).astype(np.float32)
        values[id] = (("example", "layer", "head"), level * rng.standard_gamma(9.0, size=shape, dtype=np.float32) / 9)
    table = xr.Dataset(values, coords={"layer": np.arange(layers), "head": np.arange(heads)})
    facts = {"num_attention_heads": heads, "num_key_value_heads": heads // group, "head_dim": 128}
    manifest = {
        "created": "2026-01-01T00:00:00+00:00", "command": "headcount evaluate …", "settings": {"seed": 0},
        "model": {"name": f"{layers} layers × {heads} heads", "dtype": "bfloat16", "num_heads": layers * heads,
                  "layers": [{"index": index, **facts} for index in range(layers)]},
        "data": {"tasks": ["made_up"], "num_questions": questions},
    }  # fmt: skip
    return RunResults.of(Manifest.of(manifest), scores=table, outcomes=_outcomes(ids, questions, rng))


def _outcomes(ids: list[str], questions: int, rng: np.random.Generator) -> pd.DataFrame:
    base = rng.random(questions) < 0.6
    frames = []
    for number, id in enumerate(["", *ids]):
        for share in (0.05, 0.10, 0.15, 0.20, 0.25, 0.30) if id else (0.0,):
            right = np.where(rng.random(questions) < 0.1 * number * share, rng.random(questions) < 0.25, base)
            frames.append(pd.DataFrame({
                "policy": f"{id}:{share:g}" if id else "baseline", "curve": id, "score": id,
                "share_asked": share if id else np.nan, "task": "made_up",
                "doc_id": np.arange(questions), "acc": right.astype(float), "share_off": share,
            }))  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def look(browser: Browser, file: Path) -> dict[str, float]:
    """Milliseconds until things are on the screen, in a window without a cache."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(300_000)
    page.goto(file.as_uri())
    page.locator("#accuracy-chart").scroll_into_view_if_needed()
    page.locator("#accuracy-chart .scatterlayer").wait_for(state="attached")
    page.wait_for_selector("html[data-ready]", state="attached")
    found = page.evaluate("""() => ({
        first_paint_ms: performance.getEntriesByName("first-contentful-paint")[0].startTime,
        map_ms: performance.getEntriesByName("map")[0].startTime,
        first_chart_ms: performance.getEntriesByName("accuracy-chart")[0].startTime,
        all_scores_ms: performance.getEntriesByName("ready")[0].startTime,
    })""")
    slider = page.locator("#map-slider")
    found["slider_ms"] = slider.evaluate("""(slider) => {
        const start = performance.now();
        for (const share of [15, 25, 35, 45, 55]) { slider.value = share; slider.dispatchEvent(new Event("input")); }
        return (performance.now() - start) / 5;
    }""")
    context.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", action="append", choices=[*SIZES, *SHORT], help="default: all but the short one")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--short", action="store_true", help="one small run, looked at once: that it works")
    parser.add_argument("--keep", type=Path, help="folder for the pages")
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    sizes = SHORT if options.short else {name: (SIZES | SHORT)[name] for name in options.size or SIZES}
    repeats = 1 if options.short else options.repeats
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if path is None:
        sys.exit("There is no Chromium on this machine: apt-get install chromium")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        browser = playwright.chromium.launch(
            executable_path=path,
            args=["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        for name, size in sizes.items():
            results = made_up(*size)
            start = time.perf_counter()
            page = render_page([results])
            seconds = time.perf_counter() - start
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
                1 << 20 if sys.platform == "darwin" else 1 << 10
            )
            file = folder / f"{name.replace(' × ', 'x')}.html"
            file.write_text(page, encoding="utf-8")
            del results, page
            looks = [look(browser, file) for _ in range(repeats)]
            row = {
                "heads": name,
                "inputs": size[3],
                "size_mb": file.stat().st_size / 1e6,
                "render_s": seconds,
                "peak_mb": peak,
            }
            rows.append(row | {key: statistics.median(one[key] for one in looks) for key in looks[0]})
            said = (
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in rows[-1].items()
            )
            print(", ".join(said))
        browser.close()
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
