import html
import json
import re

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from headcount.errors import InputError
from headcount.report import render_page
from headcount.scores import all_scores

HOSTILE = "</script><script>alert(1)</script>\"'"
IDS = [score.id for score in all_scores()]


def manifest(name="SmolLM2-135M-Instruct", task="arc_easy"):
    return {
        "format": 1,
        "model": {
            "name": name,
            "fingerprint": "9f" * 32,
            "dtype": "bfloat16",
            "num_heads": 270,
            "layers": list(range(30)),
        },
        "data": {
            "tasks": [task],
            "sources": {task: "embedded"},
            "num_fewshot": 0,
            "limit": 200,
            "chat_template": False,
        },
        "settings": {"seed": 0, "scores": IDS},
        "versions": {"headcount": "0.1.0", "torch": "2.13.0"},
        "created": "2026-01-02T03:04:05Z",
        "command": f"headcount run --tasks {task} --limit 200",
    }


@pytest.fixture(scope="module")
def scores():
    rng = np.random.default_rng(0)
    shape = (200, 30, 9)
    head = rng.gamma(2.0, 1.0, size=(1, 30, 9))
    variables = {
        id: (("example", "layer", "head"), (head * rng.gamma(9.0, 1 / 9, size=shape)).astype("f4")) for id in IDS
    }
    table = xr.Dataset(
        variables,
        coords={"layer": np.arange(30), "head": np.arange(9), "num_tokens": ("example", np.full(200, 40))},
        attrs={"model_fingerprint": "9f" * 32, "seed": 0},
    )
    table[IDS[0]][:, 29, 8] = np.nan  # a layer with a head less
    return table


@pytest.fixture(scope="module")
def thresholds(scores):
    shares = [0.0, 0.1, 0.3]
    high = {score.id for score in all_scores() if score.inactive_when == "high"}
    cuts = {
        id: ("share", np.nanquantile(scores[id].values, [1 - s if id in high else s for s in shares])) for id in IDS
    }
    return xr.Dataset(cuts, coords={"share": shares})


def make_outcomes(task="arc_easy", questions=200, loss=None):
    """baseline, and three scores and random at four shares each less or more harmful; 14 policies with `fixed`."""
    rng = np.random.default_rng(1)
    base = rng.random(questions) < 0.52
    loss = loss or {"ahon_ln": 0.4, "lthon_ln": 0.7, "awft": 1.0, "random": 3.0}
    frames = [frame("baseline", "", np.nan, 0.0, base, task)]
    for score, harm in loss.items():
        luck, guess = rng.random(questions), rng.random(questions) < 0.25
        for share in (0.05, 0.10, 0.20):
            right = np.where(luck < harm * share, guess, base)
            frames.append(frame(f"{score}:{share:.2f}", score, share, share * 1.1, right, task))
    frames.append(frame("fixed", "", np.nan, 0.04, base, task))
    return pd.concat(frames, ignore_index=True)


def frame(policy, score, share_asked, share_zeroed, right, task):
    return pd.DataFrame({
        "policy": policy, "score": score, "share_asked": share_asked, "threshold": np.nan, "task": task,
        "doc_id": np.arange(len(right)), "doc_hash": "x", "acc": np.asarray(right, dtype=float),
        "loglikelihoods": [[-1.0, -2.0, -3.0, -4.0]] * len(right), "share_zeroed": share_zeroed, "num_inputs": 4,
        "num_tokens": 160,
    })  # fmt: skip


@pytest.fixture(scope="module")
def page(scores, thresholds):
    return render_page(manifest=manifest(), scores=scores, thresholds=thresholds, outcomes=make_outcomes())


def without_plotly(page):
    """The page without its largest script."""
    scripts = re.findall(r"<script>.*?</script>", page, flags=re.S)
    return page.replace(max(scripts, key=len), "")


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.S)[1])


def text_of(page):
    body = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_same_input_same_bytes(page, scores, thresholds):
    assert page == render_page(manifest=manifest(), scores=scores, thresholds=thresholds, outcomes=make_outcomes())


def test_one_file_that_loads_nothing(page):
    rest = without_plotly(page)
    assert not re.search(r"""(src|href|action|data)\s*=\s*["']?\s*(https?:)?//""", rest)
    assert not re.search(r"@import|url\(", rest)
    assert not re.search(r"<[^>]+\son\w+\s*=", rest)
    assert "default-src &#39;none&#39;" in page
    assert len(re.findall("plotly.js v", page)) == 1


def test_the_policy_names_the_scripts_by_their_hashes(page):
    import base64
    import hashlib

    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1])
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.S)
    assert len(scripts) == 2
    for script in scripts:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy


def test_what_comes_from_data_is_escaped(scores):
    outcomes = make_outcomes(task=HOSTILE, loss={HOSTILE: 0.3, "random": 1.5})
    table = scores[[IDS[0]]].rename({IDS[0]: HOSTILE + "\u2028"})
    page = render_page(manifest=manifest(HOSTILE, HOSTILE), scores=table, thresholds=None, outcomes=outcomes)
    assert "<script>alert" not in page
    assert "\u2028" not in without_plotly(page).split('id="data"')[1]
    assert page.count("</script>") == 3
    data = data_of(page)
    assert data["curves"]["lines"][0]["score"] == HOSTILE
    assert data["maps"]["scores"][0]["score"] == HOSTILE + "\u2028"
    assert html.escape(HOSTILE, quote=True).replace("&quot;", "&#34;").replace("&#x27;", "&#39;") in page


def test_the_answer_stands_first_with_its_uncertainty(page):
    text = text_of(page)
    said = re.search(
        r"[\d.]+% of heads can be zeroed within 1 point of arc_easy accuracy by \w+ "
        r"\(95% interval [\d.]+(–|% to at least )[\d.]+%\); random heads: [\d.]+%\.",
        text,
    )
    assert said
    assert "Few questions: with 200 the baseline's accuracy is itself known only to within ±" in text
    assert "best of 3 scores" in text
    assert "Near chance" not in text
    order = ["The answer", "Accuracy as heads are zeroed", "Head map", "Policies", "Removable share", "Methods"]
    places = [page.index(f">{heading}</h2>") for heading in order]
    assert places == sorted(places)


def test_a_curve_that_never_falls_is_a_lower_bound():
    outcomes = make_outcomes(loss={"ahon_ln": 0.0})
    text = text_of(render_page(manifest=manifest(), scores=None, thresholds=None, outcomes=outcomes))
    # the largest realised share is 0.2 · 1.1
    assert (
        "At least 22% of heads can be zeroed within 1 point of arc_easy accuracy by ahon_ln (95% interval 22% or more)."
        in text
    )
    assert "≥ 22.0%" in text


def test_near_chance_is_said():
    outcomes = make_outcomes()
    outcomes["acc"] = (np.arange(len(outcomes)) % 4 == 0).astype(float)
    text = text_of(render_page(manifest=manifest(), scores=None, thresholds=None, outcomes=outcomes))
    assert "Near chance: guessing would give 25.0%" in text


def test_empty_states_say_what_to_run():
    text = text_of(render_page(manifest={}, scores=None, thresholds=None, outcomes=None))
    assert "Not evaluated yet" in text
    assert "Run headcount evaluate" in text
    assert "Run headcount measure" in text


def test_baseline_alone_is_not_an_answer():
    outcomes = make_outcomes().query("policy == 'baseline'")
    text = text_of(render_page(manifest=manifest(), scores=None, thresholds=None, outcomes=outcomes))
    assert "No score has been tried against it yet" in text


def test_head_map_by_hand():
    # One layer (index 3 of the model), 3 heads, 4 inputs; awft is inactive when high, ahon when low; τ = 2.5.
    # head 0: 1, 2, 3, 4; head 1: 1, 1, 1, NaN; head 2 does not exist.
    values = np.array([[[1, 1, np.nan]], [[2, 1, np.nan]], [[3, 1, np.nan]], [[4, np.nan, np.nan]]], dtype="f4")
    dims = ("example", "layer", "head")
    table = xr.Dataset({"awft": (dims, values), "ahon": (dims, values)}, coords={"layer": [3], "head": [0, 1, 2]})
    cuts = xr.Dataset({"awft": ("share", [2.5]), "ahon": ("share", [2.5])}, coords={"share": [0.5]})
    page = render_page(manifest={}, scores=table, thresholds=cuts, outcomes=None)
    maps = data_of(page)["maps"]
    assert maps["layers"] == [3]
    awft, ahon = maps["scores"]
    assert awft["mean"] == [[2.5, 1.0, None]]
    assert awft["inactive"] == [[[50.0, 0.0, None]]]
    assert ahon["inactive"] == [[[50.0, 100.0, None]]]


def test_definitions_are_those_of_the_scores_shown(page):
    text = text_of(page)
    for score in all_scores():
        assert f"{score.name}." in text
    few = text_of(render_page(manifest={}, scores=None, thresholds=None, outcomes=make_outcomes(loss={"awft": 0.5})))
    assert "Avg Weight of First Token." in few
    assert "Avg Head Output Norm." not in few


def test_the_metric_comes_from_the_settings():
    outcomes = make_outcomes().assign(acc_norm=lambda o: o["acc"])
    wanted = manifest() | {"settings": {"metric": "acc_norm"}}
    assert "length-normalised accuracy" in render_page(manifest=wanted, scores=None, thresholds=None, outcomes=outcomes)
    with pytest.raises(InputError, match="Unknown metric 'f1'"):
        render_page(manifest={"settings": {"metric": "f1"}}, scores=None, thresholds=None, outcomes=outcomes)
