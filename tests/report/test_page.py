import base64
import gzip
import hashlib
import html
import json
import re

import numpy as np
import pandas as pd
import pytest

from headcount.errors import InputError
from headcount.report import RunResults, render_page
from headcount.scores import select_scores
from tests.report.conftest import HOSTILE, IDS, make_outcomes, make_results, make_scores, manifest, results_of


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.S)[1])


def packed(page, name):
    return gzip.decompress(base64.b64decode(re.search(rf'data-packed="{name}">(.*?)</script>', page)[1]))


def text_of(page):
    body = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def without_packed(page):
    return re.sub(r'<script type="text/plain".*?</script>', "", page, flags=re.S)


def test_same_results_same_bytes(page_html):
    assert page_html == render_page([make_results()])


def test_one_file_that_loads_nothing(page_html):
    rest = without_packed(page_html)
    assert not re.search(r"""(src|href|action|data)\s*=\s*["']?\s*(https?:)?//""", rest)
    assert not re.search(r"@import|url\(", rest)
    assert not re.search(r"<[^>]+\son\w+\s*=", rest)
    assert len(page_html) < 8_000_000
    assert packed(page_html, "plotly").decode().count("plotly.js v") == 1


def test_the_policy_names_both_scripts_by_their_hashes(page_html):
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]+)"', page_html)[1])
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    scripts = [*re.findall(r"<script>(.*?)</script>", page_html, flags=re.S), packed(page_html, "plotly").decode()]
    assert len(scripts) == 2
    for script in scripts:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert "unsafe" not in policy.split("style-src")[0]


def hostile_results() -> RunResults:
    facts = manifest(HOSTILE, HOSTILE)
    facts["data"]["texts"] = [HOSTILE]
    facts["data"][HOSTILE[:50]] = "\udcff"  # a file name that is not UTF-8, as Python reads it
    return results_of(
        manifest=facts,
        scores=make_scores([HOSTILE]),
        outcomes=make_outcomes(task=HOSTILE, loss={HOSTILE: 0.3, "random": 1.5}),
    )


def test_what_comes_from_strangers_is_text():
    page = render_page([hostile_results()])
    assert "<script>alert" not in page
    assert page.count("<script") == page.count("</script>") == 2 + page.count('<script type="text/plain"')
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", page)
    assert "x" * 1000 not in without_packed(page)
    page.encode()  # no lone surrogates
    data = data_of(page)
    assert data["heads"]["scores"][0]["score"].startswith("</script><script>al…xxx")
    assert html.escape("</script><script>alert(1)</script>") in page


def test_csv_of_hostile_results_is_whole():
    tables = json.loads(packed(render_page([hostile_results()]), "tables"))
    assert HOSTILE[:30] in tables["accuracy"]


def test_the_answer_stands_first_with_its_uncertainty_and_limits(page_html):
    text = text_of(page_html)
    assert re.search(
        r"[\d.]+% of heads can be off within 1 point of arc_easy accuracy by \w+ "
        r"\(95% interval [\d.]+(–|% to at least )[\d.]+%\); random heads: [\d.]+%\.",
        text,
    )
    assert "Few questions: from 200 the untouched model's own accuracy is known only to lie between" in text
    assert "best of 3 scores" in text
    assert "Near chance" not in text


def test_sections_stand_in_order(page_html):
    headings = [html.unescape(found) for found in re.findall(r"<h2[^>]*>([^<]+)</h2>", page_html)]
    assert headings == [
        "The answer", "Accuracy as heads are switched off", "How far answers move", "Head map", "Distributions and thresholds",
        "Agreement of scores", "Stability across benchmarks", "Ranks of scores", "Layer by layer", "Runs compared",
        "Beside the paper's models",
        "Methods",
    ]  # fmt: skip
    for id in re.findall(r'<a href="#([^"]+)"', page_html):
        assert f'<h2 id="{id}"' in page_html


def test_a_curve_that_never_falls_is_a_lower_bound():
    text = text_of(render_page([make_results(scores=None, outcomes=make_outcomes(loss={"ahon_ln": 0.0}))]))
    # the largest realised share is 0.2 · 1.1
    assert "At least 22% of heads can be off within 1 point of arc_easy accuracy by ahon_ln" in text
    assert "≥ 22.0%" in text


def test_five_questions_are_no_headline():
    results = make_results(scores=None, outcomes=make_outcomes(questions=5, loss={"ahon_ln": 0.0, "random": 9.0}))
    page = render_page([results])
    claim = html.unescape(re.search(r'<p class="claim">(.*?)</p>', page)[1])
    assert claim.startswith(
        "5 questions are too few to say how many heads can be off within 1 point of arc_easy accuracy"
    )
    bounds = [bound for line in data_of(page)["accuracy"]["lines"] for bound in line["low"] + line["high"]]
    assert min(bounds) >= 0
    assert max(bounds) <= 100


def test_near_chance_is_said():
    outcomes = make_outcomes()
    outcomes["acc"] = (outcomes["doc_id"] % 4 == 0).astype(float)
    assert "Near chance: guessing would give 25.0%" in text_of(render_page([make_results(outcomes=outcomes)]))


def test_empty_states_say_what_to_run():
    text = text_of(render_page([results_of(manifest={})]))
    assert "not known yet" in text
    assert text.count("Run headcount evaluate MODEL --task TASK") == 5
    assert "Run headcount measure MODEL --task TASK -o RUN" in text


def test_a_page_without_charts_carries_no_plotting_library():
    assert len(render_page([results_of(manifest={})])) < 200_000


def test_baseline_alone_is_not_an_answer():
    text = text_of(render_page([make_results(outcomes=make_outcomes().query("policy == 'baseline'"))]))
    assert "No score has been tried against it yet" in text


def test_definitions_are_those_of_the_scores_shown(page_html):
    text = text_of(page_html)
    for score in select_scores("all"):
        assert f"{score.name}." in text
    few = text_of(render_page([make_results(scores=None, outcomes=make_outcomes(loss={"awft": 0.5}))]))
    assert "Avg Weight of First Token." in few
    assert "Avg Head Output Norm." not in few


def test_methods_name_seed_versions_and_command(page_html):
    text = text_of(page_html)
    for fact in ("settings.seed 0", "environment.torch 2.13.0", "headcount evaluate model --task arc_easy --limit 200"):
        assert fact in text


def test_model_data_settings_and_date_stand_at_the_top():
    facts = manifest()
    facts["data"] |= {"num_fewshot": 5, "chat_template": False}
    top = text_of(render_page([results_of(manifest=facts)]))
    assert (
        "30 layers · 270 query heads · bfloat16 · arc_easy · 200 questions · 5-shot · without chat template · seed 0 · "
        "2 January 2026"
    ) in top


def test_the_metric_comes_from_the_settings():
    outcomes = make_outcomes().assign(acc_norm=lambda o: o["acc"])
    wanted = manifest() | {"settings": {"metric": "acc_norm"}}
    assert "length-normalised accuracy" in render_page([results_of(manifest=wanted, outcomes=outcomes)])
    with pytest.raises(InputError, match="Unknown metric 'f1'"):
        render_page([results_of(manifest={"settings": {"metric": "f1"}}, outcomes=outcomes)])


def test_no_run_is_refused():
    with pytest.raises(InputError, match="at least one run"):
        render_page([])


def test_every_score_travels_packed(page_html):
    for index in range(len(IDS)):
        assert packed(page_html, f"score-{index}")


def test_texts_have_a_table_of_their_log_likelihoods_and_no_accuracy():
    of_texts = make_outcomes().drop(columns="acc").assign(loglikelihoods=None, kl_from_baseline=np.nan)
    text = text_of(render_page([make_results(scores=None, outcomes=of_texts)]))
    assert "These questions have no right and wrong" in text
    assert "How far answers move under each policy" in text
    assert re.search(r"random arc_easy 20% 22\.0% – −0\.\d{3} \[−0\.\d{3}, −0\.\d{3}\] 200", text)
    assert "accuracy under each policy" not in text.lower()


def test_what_is_not_there_is_not_promised():
    in_words = make_outcomes().drop(columns="acc").assign(
        loglikelihoods=None, kl_from_baseline=np.nan, gold_loglikelihood=np.nan
    )  # fmt: skip
    text = text_of(render_page([make_results(scores=None, outcomes=in_words)]))
    assert "These questions have no right and wrong." in text
    assert "These questions are answered in words" in text
    assert "shown below" not in text


def test_answers_and_texts_have_no_common_mean():
    texts = make_outcomes("prose").drop(columns="acc").assign(loglikelihoods=None, kl_from_baseline=np.nan)
    divergence = make_results(outcomes=pd.concat([make_outcomes(), texts])).divergence
    assert divergence["task"].unique().tolist() == ["arc_easy", "prose"]
    assert divergence.groupby("task")["per_token"].unique().explode().tolist() == [False, True]
    both = make_results(outcomes=pd.concat([make_outcomes(), make_outcomes("piqa")])).divergence
    assert both["task"].unique().tolist() == ["all questions", "arc_easy", "piqa"]


def test_a_pruned_checkpoint_is_no_score():
    outcomes = make_outcomes(loss={"ahon_ln": 0.9, "random": 9.0})
    gone = outcomes[outcomes["policy"] == "ahon_ln:0.20"].assign(
        policy="pruned:smaller", curve="pruned", score="pruned", share_asked=0.3, share_off=0.3,
        acc=outcomes.loc[outcomes["policy"] == "baseline", "acc"].to_numpy(),
    )  # fmt: skip
    text = text_of(render_page([make_results(scores=None, outcomes=pd.concat([outcomes, gone]))]))
    assert re.search(r"of heads can be off within 1 point of arc_easy accuracy by ahon_ln", text)
    assert "best of" not in text
    assert "pruned is no score: its points are checkpoints from which heads were removed for good" in text
    alone = pd.concat([outcomes[outcomes["policy"] == "baseline"], gone])
    text = text_of(render_page([make_results(scores=None, outcomes=alone)]))
    assert "No score has been tried against it yet." in text
