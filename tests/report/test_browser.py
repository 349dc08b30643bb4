"""The page in a real browser: what a reader sees, does and takes away."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe

from headcount.report import RunResults, render_page
from headcount.report.results import Report
from headcount.report.sections import result_tables
from headcount.report.wording import shown
from headcount.thresholding import thresholds
from tests.report.conftest import (
    GROUP,
    HEADS,
    HOSTILE,
    IDS,
    INPUTS,
    LAYERS,
    Window,
    make_results,
    make_scores,
    manifest,
    results_of,
)
from tests.report.test_page import hostile_results

OPEN = "document.querySelectorAll('details').forEach((part) => { part.open = true; })"
CELLS = LAYERS * HEADS - 1  # the last layer lacks a head


@pytest.fixture(scope="module")
def _hostile(browser, tmp_path_factory) -> Iterator[Window]:
    file = tmp_path_factory.mktemp("hostile") / "a 'b\" <c>.html"
    file.write_text(render_page([hostile_results()]), encoding="utf-8")
    window = Window(browser, file)
    yield window
    window.page.context.close()


@pytest.fixture
def hostile(_hostile) -> Iterator[Window]:
    """The page of a run whose every name is an attack."""
    yield _hostile
    assert _hostile.said == []


def set_share(page, percent):
    page.locator("#map-slider").fill(str(percent))


def choose(page, score):
    page.locator("#map-score").select_option(str(IDS.index(score)))
    page.locator("#map-readout", has_text=f"{score} ").wait_for()


def part_inactive(results: RunResults, score: str, share: float) -> np.ndarray:
    """By a plain comparison: the part of its inputs on which each head is inactive, [layer, head]."""
    values = results.scores[score].to_numpy().astype(float)
    cut = thresholds(results.scores[[score]], [share])[score].item()
    beyond = values > cut if score.startswith("awft") else values < cut
    return np.where(np.isnan(values[0]), np.nan, beyond.mean(axis=0))


def test_the_layout_does_not_jump(hostile):
    page = hostile.page  # opened and never touched
    page.locator("#accuracy-chart").scroll_into_view_if_needed()
    page.locator("#accuracy-chart .scatterlayer").wait_for()
    shift = page.evaluate("""() => new Promise((done) => {
        new PerformanceObserver((list) => done(list.getEntries().reduce((sum, entry) => sum + entry.value, 0)))
            .observe({ type: "layout-shift", buffered: true });
        setTimeout(() => done(0), 500);
    })""")
    assert shift < 0.02


@pytest.mark.parametrize("score", ["ahon_ln", "awft"])
def test_the_slider_counts_what_the_data_says(window, results, score):
    page = window.fresh()
    choose(page, score)
    for percent in (5, 20, 35):
        set_share(page, percent)
        part = part_inactive(results, score, percent / 100)
        for rule, counted in (("half", part >= 0.5), ("all", part == 1), ("any", part > 0)):
            page.locator("#map-rule").select_option(rule)
            whole = 0
            for layer in range(LAYERS):
                for first in range(0, HEADS, GROUP):
                    heads = slice(first, first + GROUP)
                    whole += bool(np.all(counted[layer, heads] | np.isnan(part[layer, heads])))
            number = int(counted.sum())
            said = page.locator("#map-readout").inner_text()
            assert said.startswith(f"{number} of {CELLS} heads ({100 * number / CELLS:.1f}%)"), (percent, rule)
            assert f" {whole} of {LAYERS * HEADS // GROUP} key-value groups" in said
            assert f" {percent}% of the scores of all heads on all {INPUTS} inputs" in said


def test_groups_of_several_sizes_are_counted(browser, tmp_path):
    """As in a checkpoint whose groups lost different numbers of heads: one group of seven, one of two."""
    facts = manifest()
    shared = [0] * 7 + [1] * 2
    for layer in facts["model"]["layers"]:
        layer |= {"num_key_value_heads": 2, "key_value_index": shared}
    results = make_results(manifest=facts)
    (tmp_path / "page.html").write_text(render_page([results]), encoding="utf-8")
    window = Window(browser, tmp_path / "page.html")
    choose(window.page, "ahon_ln")
    set_share(window.page, 35)
    inactive = part_inactive(results, "ahon_ln", 0.35)
    counted = (inactive >= 0.5) | np.isnan(inactive)
    whole = sum(bool(counted[layer, heads].all()) for layer in range(LAYERS) for heads in (slice(0, 7), slice(7, 9)))
    assert whole > 0
    assert f" {whole} of {2 * LAYERS} key-value groups" in window.page.locator("#map-readout").inner_text()
    saved = pd.read_csv(io.StringIO(save(window.page, "head-map")))
    assert saved["key_value_head"].tolist()[:9] == shared
    assert window.said == []
    window.page.context.close()


def cell_box(page, layer, head):
    """Where a head is on the canvas, found by keyboard: Home goes to the first layer, arrows from there."""
    canvas = page.locator("#map-canvas")
    canvas.focus()
    canvas.press("Escape")
    canvas.press("Home")
    for key, times in (("ArrowUp", HEADS), ("ArrowRight", layer), ("ArrowDown", head)):
        for _ in range(times):
            canvas.press(key)


def test_pointing_at_a_head_shows_all_its_scores(window, results):
    page = window.fresh()
    choose(page, "ahon_ln")
    set_share(page, 20)
    canvas = page.locator("#map-canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    seen = set()
    for x, y in ((0.3, 0.2), (0.7, 0.6)):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        title = page.locator("#head-title").inner_text()
        seen.add(title)
        layer, head = (int(word) for word in title.replace("Layer", "").replace("head", "").split(","))
        rows = page.locator("#head-rows tr")
        assert rows.count() == len(IDS)
        for index in (0, IDS.index("ahon_ln"), len(IDS) - 1):
            score = IDS[index]
            name, mean, rank, often = rows.nth(index).locator("th, td").all_inner_texts()
            means = results.scores[score].mean("example").to_numpy()
            sign = -1 if score.startswith("awft") else 1
            assert name == score
            assert float(mean) == pytest.approx(means[layer, head], rel=5e-3)
            assert int(rank.replace(",", "")) == 1 + int((sign * means < sign * means[layer, head]).sum())
            part = part_inactive(results, score, 0.20)[layer, head]
            assert float(often.rstrip("%")) == pytest.approx(100 * part, abs=0.8)
    assert len(seen) == 2


def test_a_click_pins_a_head_and_keys_reach_every_head(window, results):
    page = window.fresh()
    choose(page, "ahon_ln")
    canvas, title, unpin = page.locator("#map-canvas"), page.locator("#head-title"), page.locator("#head-unpin")
    cell_box(page, 4, 2)
    assert title.inner_text() == "Layer 4, head 2"
    assert "Layer 4, head 2: ahon_ln" in page.locator("#map-spoken").inner_text()
    canvas.press("Enter")
    assert unpin.is_visible()
    values = results.scores["ahon_ln"].to_numpy()[:, 4, 2]
    label = page.locator("#head-chart").get_attribute("aria-label")
    assert label.startswith(
        f"Distribution of ahon_ln over inputs: from {values.min():.3g} to {values.max():.3g}, median"
    )
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.5 * box["height"])
    assert title.inner_text() != "Layer 4, head 2"  # pointing elsewhere shows that head
    page.mouse.move(5, 5)
    assert title.inner_text() == "Layer 4, head 2"  # and the pinned one comes back
    unpin.click()
    assert title.inner_text() == "No head chosen"


def test_on_a_narrow_screen_layers_run_downwards(window):
    page = window.fresh(360)
    canvas, title, spoken = page.locator("#map-canvas"), page.locator("#head-title"), page.locator("#map-spoken")
    assert f"{LAYERS} layers from top to bottom, {HEADS} query heads from left to right" in canvas.get_attribute(
        "aria-label"
    )
    canvas.focus()
    for key in ("Escape", "Home", *["ArrowLeft"] * HEADS, "ArrowDown", "ArrowDown", "ArrowRight"):
        canvas.press(key)
    assert title.inner_text() == "Layer 2, head 1"
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box["height"] > 2 * box["width"]
    page.mouse.click(box["x"] + box["width"] - 8, box["y"] + box["height"] / 2)
    assert title.inner_text().endswith(f"head {HEADS - 1}")
    assert spoken.is_visible()
    assert spoken.inner_text().startswith(f"{title.inner_text()}: ")
    page.locator("#head-unpin").click()
    assert "left to right, 9 query heads" in window.fresh().locator("#map-canvas").get_attribute("aria-label")


def test_greyed_heads_change_on_the_canvas(window):
    page = window.fresh()
    pixels = "canvas => canvas.toDataURL()"
    canvas = page.locator("#map-canvas")
    before = canvas.evaluate(pixels)
    set_share(page, 60)
    greyed = canvas.evaluate(pixels)
    page.locator("#map-show").select_option("often")
    assert len({before, greyed, canvas.evaluate(pixels)}) == 3


def save(page, id):
    button = page.locator(f"[data-csv='{id}']")
    button.evaluate("button => { const table = button.closest('details'); if (table) table.open = true; }")
    with page.expect_download() as download:
        button.click()  # a reader's click: Chromium saves ten files without one, and no more
    assert download.value.suggested_filename == f"{id}.csv"
    return Path(download.value.path()).read_bytes().decode()


def test_downloads_hold_the_tables(window, results):
    page = window.fresh()
    for table in result_tables(Report([results])):
        assert save(page, table.id) == table.csv()
    buttons = page.locator("[data-csv]").evaluate_all("all => all.map(button => button.dataset.csv)")
    assert sorted(buttons) == sorted(["head-map", *(table.id for table in result_tables(Report([results])))])


def test_the_head_map_downloads_as_shown(window, results):
    page = window.fresh()
    choose(page, "awft")
    set_share(page, 15)
    frame = pd.read_csv(io.StringIO(save(page, "head-map")))
    assert len(frame) == CELLS
    at = frame["layer"].to_numpy(), frame["head"].to_numpy()
    values = results.scores["awft"].to_numpy().astype(float)
    np.testing.assert_allclose(frame["mean"], values.mean(axis=0)[at], rtol=1e-6)
    np.testing.assert_allclose(frame["median"], np.median(values, axis=0)[at], rtol=1e-6)
    np.testing.assert_array_equal(frame["key_value_head"], frame["head"] // GROUP)
    np.testing.assert_allclose(frame["inactive_share"], part_inactive(results, "awft", 0.15)[at], atol=0.003)


def test_the_chart_follows_its_legend_and_its_scale(window):
    page = window.fresh()
    chart = page.locator("#accuracy-chart")
    chart.locator(".scatterlayer .trace").first.wait_for()
    traces = "chart => chart.data.map(trace => [trace.name, trace.y])"
    drawn = dict(chart.evaluate(traces))
    assert {"ahon_ln", "lthon_ln", "awft", "random"} <= set(drawn)
    page.locator("#accuracy-legend label", has_text="awft").locator("input").uncheck()
    assert "awft" not in dict(chart.evaluate(traces))
    page.locator("#accuracy-scale").select_option("points")
    changes = dict(chart.evaluate(traces))["random"]
    np.testing.assert_allclose(changes, np.array(drawn["random"]) - drawn["random"][0], atol=1e-6)
    page.locator("#accuracy-scale").select_option("relative")
    assert dict(chart.evaluate(traces))["random"][0] == pytest.approx(100)
    labels = chart.evaluate("chart => chart.data.find(trace => trace.mode.includes('text')).text")
    assert labels == ["", "5.5%", "11.0%", "22.0%"]  # shares realised: 1.1 times those asked


def test_the_chart_of_answers_follows_its_measure(window):
    page = window.fresh()
    chart = page.locator("#divergence-chart")
    chart.scroll_into_view_if_needed()
    chart.locator(".scatterlayer .trace").first.wait_for()
    assert page.locator("#divergence-task").is_hidden()  # one benchmark
    lines = "chart => chart.data.filter(trace => trace.name).map(trace => [trace.name, [trace.x, trace.y]])"
    drawn = dict(chart.evaluate(lines))
    assert set(drawn) == {"ahon_ln", "lthon_ln", "awft", "random"}
    np.testing.assert_allclose(drawn["awft"], [[0, 5.5, 11, 22], [0, 0.11, 0.22, 0.44]], atol=1e-9)
    page.locator("#divergence-measure").select_option("gold_loglikelihood")
    (_, changes) = dict(chart.evaluate(lines))["random"]
    assert changes[0] == 0
    assert changes[3] < -0.1  # of questions that random heads turn from right to wrong each loses 1.5 nats
    page.locator("#divergence-legend label", has_text="awft").locator("input").uncheck()
    assert "awft" not in dict(chart.evaluate(lines))


@pytest.mark.parametrize(("width", "colours"), [(360, "light"), (360, "dark"), (1600, "light"), (1600, "dark")])
def test_nothing_overflows(window, hostile, width, colours):
    for opened in (window, hostile):
        page = opened.fresh(width, colours)
        page.evaluate(OPEN)
        page.wait_for_timeout(100)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        beyond = page.evaluate("""() => [...document.querySelectorAll("main *, header *")]
            .filter((part) => !part.closest(".scroll, pre, svg, .js-plotly-plot, .hidden"))
            .filter((part) => part.getBoundingClientRect().right > innerWidth + 1)
            .map((part) => part.outerHTML.slice(0, 100))""")
        assert beyond == []


def test_dark_is_dark_and_the_button_changes_it(window):
    page = window.fresh(colours="dark")

    def brightness() -> int:
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in colour[4:-1].split(","))

    assert brightness() < 120
    page.get_by_role("button", name="Show the page in light colours").click()
    assert brightness() > 700
    page.evaluate("delete document.documentElement.dataset.theme")


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_no_serious_accessibility_fault(window, colours):
    page = window.fresh(colours=colours)
    page.locator("#accuracy-chart .scatterlayer").wait_for()
    page.evaluate(OPEN)
    found = Axe().run(page).response["violations"]
    assert [(fault["id"], fault["nodes"][0]["html"][:200]) for fault in found] == []


def test_several_runs_are_drawn_beside_one_another(browser, tmp_path):
    ids = ["ahon_ln", "awft"]
    runs = [
        make_results(manifest=manifest(task=task), scores=make_scores(ids, seed))
        for seed, task in enumerate(["arc_easy", "piqa"])
    ]
    file = tmp_path / "runs.html"
    file.write_text(render_page(runs), encoding="utf-8")
    window = Window(browser, file)
    page = window.page
    for id, lines in (("stability-chart", 2), ("comparison-accuracy", 2), ("comparison-distributions", 4)):
        chart = page.locator(f"#{id}")
        chart.scroll_into_view_if_needed()
        chart.locator(".scatterlayer .trace").first.wait_for()
        assert chart.evaluate("chart => chart.data.length") == lines
    page.locator("#comparison-score").select_option("awft")
    assert page.locator("#comparison-key li").all_inner_texts() == ["arc_easy", "piqa"]
    page.evaluate(OPEN)
    assert [fault["id"] for fault in Axe().run(page).response["violations"]] == []
    assert window.said == []
    page.context.close()


def test_a_page_with_nothing_on_it_works(browser, tmp_path):
    file = tmp_path / "empty.html"
    file.write_text(render_page([results_of(manifest={})]), encoding="utf-8")
    window = Window(browser, file)
    page = window.fresh(360)
    assert page.locator(".empty").count() == 11
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert [fault["id"] for fault in Axe().run(page).response["violations"]] == []
    assert window.said == []
    page.context.close()


def test_hostile_names_do_nothing(hostile):
    page = hostile.fresh()
    canvas = page.locator("#map-canvas")
    canvas.focus()
    for key in ("ArrowRight", "Enter", "Escape"):
        canvas.press(key)
    page.locator("#accuracy-legend label").first.hover()
    assert page.evaluate("document.querySelectorAll('img, iframe, object, embed, link, form').length") == 0
    rows = list(csv.reader(io.StringIO(save(page, "accuracy"))))
    assert any(HOSTILE[:20] in cell for row in rows for cell in row)
    rows = list(csv.reader(io.StringIO(save(page, "head-map"))))
    assert {len(row) for row in rows} == {10}  # quotes and commas in names do not open columns
    assert {row[3] for row in rows[1:]} == {shown(HOSTILE, 40)}


def test_without_scripts_the_answer_and_the_tables_are_there(browser, page_file, page_html):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(page_file.as_uri())
    assert "of heads can be off within 1 point" in page.locator(".claim").inner_text()
    assert page.locator("noscript").inner_text().startswith("Charts and maps need JavaScript")
    context.close()
