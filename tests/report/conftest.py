"""A small run as the report sees it, made by formulas, and a browser to look at its page."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from playwright.sync_api import Browser, Page, Request, sync_playwright

from headcount.report import RunResults, render_page
from headcount.scores import select_scores
from headcount.store import Manifest

IDS = [score.id for score in select_scores("all")]
LAYERS, HEADS, GROUP, INPUTS = 30, 9, 3, 40
HOSTILE = "</script><script>alert(1)</script>\"'`\n=1+1\u202e\u2066 ‮" + "x" * 10_000


def manifest(name: str = "SmolLM2-135M-Instruct", task: str = "arc_easy") -> dict:
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": HEADS // GROUP, "head_dim": 64}
    return {
        "format": 1,
        "created": "2026-01-02T03:04:05+00:00",
        "command": f"headcount evaluate model --task {task} --limit 200",
        "environment": {"headcount": "0.1.0", "torch": "2.13.0"},
        "model": {
            "name": name,
            "fingerprint": "9f" * 8,
            "dtype": "bfloat16",
            "num_heads": LAYERS * HEADS,
            "layers": [{"index": index, **heads} for index in range(LAYERS)],
        },
        "data": {"tasks": [task], "num_fewshot": 0, "limit": 200, "num_questions": 200},
        "settings": {"seed": 0},
    }


def make_scores(ids: list[str] = IDS, seed: int = 0) -> xr.Dataset:
    """Each head has a level of its own and varies about it from input to input; the last layer lacks a head."""
    rng = np.random.default_rng(seed)
    level = rng.gamma(2.0, 1.0, size=(len(ids), 1, LAYERS, HEADS))
    values = (level * rng.gamma(9.0, 1 / 9, size=(len(ids), INPUTS, LAYERS, HEADS))).astype(np.float32)
    values[:, :, -1, -1] = np.nan
    return xr.Dataset(
        {id: (("example", "layer", "head"), of_score) for id, of_score in zip(ids, values, strict=True)},
        coords={"layer": np.arange(LAYERS), "head": np.arange(HEADS), "num_tokens": ("example", np.full(INPUTS, 40))},
    )


def make_outcomes(task: str = "arc_easy", questions: int = 200, loss: dict[str, float] | None = None) -> pd.DataFrame:
    """The baseline, scores at three shares each that harm more or less, and a policy of fixed heads."""
    rng = np.random.default_rng(1)
    base = rng.random(questions) < 0.52
    loss = loss or {"ahon_ln": 0.4, "lthon_ln": 0.7, "awft": 1.0, "random": 3.0}
    frames = [_frame("baseline", "", np.nan, 0.0, base, task)]
    for score, harm in loss.items():
        luck, guess = rng.random(questions), rng.random(questions) < 0.25
        for share in (0.05, 0.10, 0.20):
            right = np.where(luck < harm * share, guess, base)
            frames.append(_frame(f"{score}:{share:.2f}", score, share, share * 1.1, right, task))
    frames.append(_frame("fixed", "", np.nan, 0.04, base, task))
    return pd.concat(frames, ignore_index=True)


def _frame(policy, score, share_asked, share_off, right, task) -> pd.DataFrame:
    return pd.DataFrame({
        "policy": policy, "curve": score, "score": score, "share_asked": share_asked, "threshold": np.nan, "task": task,
        "doc_id": np.arange(len(right)), "doc_hash": "x", "acc": np.asarray(right, dtype=float),
        "loglikelihoods": [[-1.0, -2.0, -3.0, -4.0]] * len(right), "share_off": share_off, "num_inputs": 4,
        "num_tokens": 160, "gold_loglikelihood": np.where(right, -1.0, -2.5), "kl_from_baseline": share_off * 2,
    })  # fmt: skip


def make_results(**changes) -> RunResults:
    given = {"manifest": manifest(), "scores": make_scores(), "outcomes": make_outcomes()}
    return results_of(**(given | changes))


def results_of(manifest: dict, **held) -> RunResults:
    return RunResults.of(Manifest.of(manifest), **held)


@pytest.fixture(scope="session")
def results() -> RunResults:
    return make_results()


@pytest.fixture(scope="session")
def page_html(results: RunResults) -> str:
    return render_page([results])


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One headless Chromium for all tests that look at pages."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if path is None:
        pytest.skip("No Chromium on this machine, so pages are not looked at: apt-get install chromium")
    quiet = ("disable-gpu", "disable-background-networking", "no-first-run", "disable-component-update", "disable-sync")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--headless", "--no-sandbox", *(f"--{option}" for option in quiet)]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def page_file(page_html: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(page_html, encoding="utf-8")
    return file


class Window:
    """A page opened from disk, and what it said on its console or asked of the network since that was last looked at."""

    def __init__(self, browser: Browser, file: Path) -> None:
        self.said: list[str] = []
        self.page = browser.new_context(accept_downloads=True).new_page()
        self.page.set_default_timeout(120_000)  # machines that run tests are busy
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: self.said.append(f"dialog: {dialog.message}"))
        self.page.on("request", self._note)
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("html[data-ready]", state="attached")

    def _note(self, request: Request) -> None:
        if not request.url.startswith(("file:", "blob:", "data:")):
            self.said.append(f"request: {request.url[:80]}")

    def fresh(self, width: int = 1180, colours: Literal["light", "dark"] = "light") -> Page:
        """The page as after opening, in a window of this width."""
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.emulate_media(color_scheme=colours)
        self.page.evaluate("scrollTo({ top: 0, behavior: 'instant' })")
        return self.page


@pytest.fixture(scope="module")
def _window(browser: Browser, page_file: Path) -> Iterator[Window]:
    window = Window(browser, page_file)
    yield window
    window.page.context.close()


@pytest.fixture
def window(_window: Window) -> Iterator[Window]:
    """The page of the small run, opened once for all tests; whatever it says on its console fails the test."""
    yield _window
    said, _window.said = _window.said, []
    assert said == []
