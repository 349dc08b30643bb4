import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from headcount.errors import InputError, ModelError, RunError
from headcount.evaluation.benchmark import Benchmark
from headcount.evaluation.evaluate import evaluate
from headcount.measure import measure_heads
from headcount.models.loading import load
from headcount.policies import Random, Threshold
from headcount.study.folder import find_faults, is_study, open_study
from headcount.study.progress import study_progress
from headcount.study.running import check_study, run_study
from headcount.study.spec import Study
from headcount.thresholding import thresholds
from tests.runs import contents
from tests.store.parts import forge


@pytest.fixture(autouse=True)
def one_thread(tiny):
    """``tiny`` keeps tiny models from waiting for threads."""


def test_a_study_gives_what_its_steps_give_one_by_one(fields, subjects, tmp_path):
    done = run_study(Study(**fields, name="small", seeds=[3, 5]), tmp_path / "study")
    assert is_study(done.path)
    ((labels, run),) = done.runs().items()
    assert labels == (fields["models"][0], "sums")

    model, tokenizer = load(fields["models"][0])
    benchmark = Benchmark(
        model, ["sums"], tokenizer=tokenizer, offline=True, include_path=fields["include_path"], seed=3
    )
    table = measure_heads(model, benchmark.inputs(), scores=fields["scores"], seed=3)
    scores = run.scores()
    assert list(scores.data_vars) == fields["scores"]
    for name in fields["scores"]:
        np.testing.assert_allclose(scores[name], table[name], rtol=1e-5, atol=1e-6)
    cuts = thresholds(scores, fields["shares"])
    assert run.thresholds().equals(cuts.drop_attrs())

    policies = [
        *(Threshold(name, cuts[name].sel(share=s).item(), share=s) for name in ("ahon_ln", "awft") for s in (0.1, 0.3)),
        *(Random(share, seed) for share in (0.1, 0.3) for seed in (3, 5)),
    ]
    expected = evaluate(
        model, ["sums"], policies, tokenizer=tokenizer, offline=True, include_path=fields["include_path"], seed=3
    )
    assert run.policies() == ["baseline", *(policy.label for policy in policies)]  # share 0 is the baseline
    found = run.outcomes()
    assert len(found) == len(expected.outcomes) == 9 * 10
    pd.testing.assert_frame_equal(found[["policy", "doc_id"]], expected.outcomes[["policy", "doc_id"]])
    # A threshold may coincide with a score, whose last digit depends on the batch: then one head more or less is zeroed.
    same = np.isclose(found["share_off"], expected.outcomes["share_off"])
    assert same.mean() > 0.95
    for column in ("acc", "kl_from_baseline", "gold_loglikelihood"):
        np.testing.assert_allclose(
            found.loc[same, column], expected.outcomes.loc[same, column], rtol=1e-4, atol=1e-5, err_msg=column
        )
    assert (found.loc[found["policy"] != "baseline", "kl_from_baseline"] > 0).any()
    metrics = run.metrics()
    accuracy = found.groupby("policy")["acc"].mean()
    assert metrics[metrics["metric"] == "acc"].set_index("policy")["value"].to_dict() == pytest.approx(
        accuracy.to_dict()
    )
    whole = done.outcomes()
    assert whole.columns[:3].tolist() == ["model", "data", "policy"]
    assert set(whole["data"]) == {"sums"}


def test_a_policy_that_zeroes_nothing_gives_the_untouched_models_answers_to_the_last_bit(fields, tmp_path):
    run = run_study(Study(**fields | {"scores": ["random"], "shares": [0.005]}), tmp_path / "study").runs().popitem()[1]
    outcomes = run.outcomes()
    untouched, policy = (outcomes[outcomes["policy"] == label].reset_index() for label in run.policies())
    same = policy["share_off"] == 0
    assert 0 < same.sum() < len(same)
    assert (policy["kl_from_baseline"] == 0).tolist() == same.tolist()
    for i in same[same].index:
        assert list(policy["loglikelihoods"][i]) == list(untouched["loglikelihoods"][i])


def test_the_same_study_again_does_nothing(fields, done, tmp_path, monkeypatch):
    before = contents(tmp_path / "study")
    monkeypatch.setattr(
        "headcount.study.running.load_model", lambda *_, **__: pytest.fail("the model was loaded again")
    )
    told = []
    run_study(Study(**fields), tmp_path / "study", announce=lambda step: lambda *of: told.append((step, of)))
    assert [(step.split()[-2:], of) for step, of in told] == [
        (["(done", "before)"], (1, 1)),
        (["making", "tables"], (1, 1)),
    ]
    assert contents(tmp_path / "study") == before


def test_a_damaged_shard_alone_is_made_anew(fields, done, tmp_path):
    before = contents(tmp_path / "study")
    files = sorted((tmp_path / "study").rglob("outcomes/*")) + sorted((tmp_path / "study").rglob("scores/*"))
    for file in (files[4], files[-1]):
        file.write_bytes(file.read_bytes()[:-7])
    next((tmp_path / "study").rglob("metrics.parquet")).unlink()
    with pytest.warns(UserWarning, match="cut off or altered") as warned:
        run_study(Study(**fields), tmp_path / "study")
    assert sorted(str(w.message).split("'")[1] for w in warned) == sorted(map(str, (files[4], files[-1])))
    assert contents(tmp_path / "study") == before


@pytest.mark.parametrize("study", [{}, {"until_decided": {"margin": 0.1, "questions_a_look": 4}, "summaries": True}])
def test_damaged_manifests_and_lost_files_are_made_anew_from_what_is_there(fields, tmp_path, monkeypatch, study):
    asked = Study(**fields | study)
    run_study(asked, tmp_path / "study")
    before, asking = contents(tmp_path / "study"), []
    ask = Benchmark.ask
    monkeypatch.setattr(Benchmark, "ask", lambda self, *given, **more: asking.append(0) or ask(self, *given, **more))
    run, answers = next((tmp_path / "study").rglob("run.json")), next((tmp_path / "study").rglob("outcomes/*"))
    for file in (run, tmp_path / "study/study.json"):
        for damage in (lambda file: file.write_bytes(file.read_bytes()[:-9]), Path.unlink):
            damage(file)
            with pytest.warns(UserWarning, match="was damaged; it is made anew"):
                run_study(asked, tmp_path / "study")
            assert contents(tmp_path / "study") == before
    assert not asking
    answers.unlink()
    assert find_faults(tmp_path / "study") == ([], [answers])
    with pytest.warns(UserWarning, match="is gone; it is made anew"):
        run_study(asked, tmp_path / "study")
    assert contents(tmp_path / "study") == before
    assert find_faults(tmp_path / "study") == ([], [])


def test_models_data_and_shares_can_be_added(fields, done, subjects, tmp_path, monkeypatch):
    before = {name: held for name, held in contents(tmp_path / "study").items() if not name.startswith("tables")}
    loaded = []
    monkeypatch.setattr("headcount.study.subject.load", lambda name, **_: loaded.append(name) or load(name))
    more = fields | {
        "models": [*fields["models"], {"model": str(subjects / "other"), "name": "another"}],
        "data": ["sums", {"texts": str(subjects / "text.jsonl"), "limit": 5}],
    }
    done = run_study(Study(**more), tmp_path / "study")
    assert loaded == [str(subjects / "model"), str(subjects / "other")]  # each once
    assert [labels[1] for labels in done.runs()] == ["sums", "text", "sums", "text"]
    assert before.items() <= (contents(done.path) | {"study.json": before["study.json"]}).items()
    progress = study_progress(open_study(done.path))
    assert progress["another", "text"].inputs_done == 5
    assert progress["another", "text"].num_questions == 0
    assert progress["another", "sums"].answers_left == 0

    done = run_study(Study(**more | {"shares": [0, 0.1, 0.2, 0.3]}), tmp_path / "study")
    assert len(done.runs()["another", "sums"].policies()) == 1 + 3 * 3


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"scores": ["ahon_ln"]}, r"scores is \['ahon_ln', 'awft', 'random'\] there and \['ahon_ln'\] here"),
        ({"seeds": [1]}, r"seeds is \[0\] there and \[1\] here"),
        ({"shares": [0.2]}, "shares 0.1 is there and not here"),
        ({"data": [{"tasks": "sums", "limit": 3}]}, "'limit': None.* is there and not here"),
    ],
)
def test_another_study_is_refused(fields, done, tmp_path, changed, named):
    before = contents(tmp_path / "study")
    with pytest.raises(RunError, match=f"is another study: .*{named}"):
        run_study(Study(**fields | changed), tmp_path / "study")
    assert contents(tmp_path / "study") == before


def test_another_model_under_the_same_name_is_refused(fields, subjects, tmp_path):
    named = {"models": [{"model": str(subjects / "model"), "name": "mine"}]}
    run_study(Study(**fields | named), tmp_path / "study")
    for file in (tmp_path / "study").rglob("metrics.parquet"):
        file.unlink()  # so that there is something left to do
    here, there = json.dumps(str(subjects / "model")), json.dumps(str(subjects / "other"))
    forge(tmp_path / "study/study.json", lambda facts: json.loads(json.dumps(facts).replace(here, there)))
    named["models"][0]["model"] = str(subjects / "other")
    with pytest.raises(RunError, match="run of something else: model .*fingerprint is"):
        run_study(Study(**fields | named), tmp_path / "study")


def test_folders_that_hold_other_things_are_refused(fields, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="is not empty"):
        run_study(Study(**fields), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(RunError, match="cannot be written"):
        run_study(Study(**fields), tmp_path / "thesis.txt")
    with pytest.raises(RunError, match="holds no study"):
        open_study(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format": 9}', '{"format": 1, "study": {"models": []}}'])
def test_a_damaged_manifest_is_an_error(tmp_path, content):
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(RunError, match=str(tmp_path)):
        open_study(tmp_path)


def test_summaries_stand_in_for_scores(fields, done, tmp_path):
    exact = done.runs().popitem()[1]
    run = run_study(Study(**fields, summaries=True), tmp_path / "summaries").runs().popitem()[1]
    assert run.scores() is None
    summary = run.summary()
    assert summary.num_inputs == exact.scores().sizes["example"]
    for name in fields["scores"]:
        # Each threshold is off by less than a bin of the grid: 2⁻¹¹ of its value.
        np.testing.assert_allclose(run.thresholds()[name], exact.thresholds()[name], rtol=2**-11)
        np.testing.assert_allclose(
            summary.heads["mean"].sel(score=name), exact.scores()[name].mean("example"), rtol=1e-6
        )
    assert run.policies() == exact.policies()


def test_half_precision_scores_are_half_the_size(fields, tmp_path):
    sizes = {}
    for dtype in ("float32", "float16"):
        run = run_study(Study(**fields, scores_dtype=dtype, ask=False), tmp_path / dtype).runs().popitem()[1]
        assert run.policies() == []
        sizes[dtype] = sum(value.nbytes for value in run.scores().data_vars.values()), run.thresholds()
    np.testing.assert_allclose(sizes["float16"][1]["ahon_ln"], sizes["float32"][1]["ahon_ln"], rtol=2**-10)


def test_layers_can_be_left_alone(fields, tmp_path):
    run = run_study(Study(**fields | {"scores": ["random"], "shares": [1]}, exclude_layers=[1]), tmp_path / "study")
    outcomes = run.outcomes()
    assert outcomes.groupby("policy")["share_off"].mean().to_dict() == {
        "baseline": 0,
        "random:1 except layer 1": 0.5,
    }


def test_generation_tasks_are_measured_and_asked(fields, tmp_path):
    done = run_study(Study(**fields | {"data": ["spell"], "scores": ["ahon_ln"], "shares": [0.2]}), tmp_path / "study")
    outcomes = done.outcomes()
    assert outcomes["policy"].value_counts().to_dict() == {"baseline": 10, "ahon_ln:0.2": 10}
    assert outcomes["exact_match"].notna().all()


def test_a_policy_that_is_given_up_is_named_and_left_out(fields, tmp_path, monkeypatch):
    ask = Benchmark.ask

    def fail(self, policies, questions, **options):
        answers = ask(self, policies, questions, **options)
        if 4 not in questions:
            return answers
        kept = answers.outcomes[answers.outcomes["policy"] != "awft:0.3"]
        failed = {"awft:0.3": "NaN in layer 1"} if len(kept) < len(answers.outcomes) else {}
        return type(answers)(outcomes=kept, scores=None, failures=failed)

    monkeypatch.setattr(Benchmark, "ask", fail)
    run = run_study(Study(**fields), tmp_path / "study").runs().popitem()[1]
    assert run.failures() == {"awft:0.3": "NaN in layer 1"}
    assert "awft:0.3" not in set(run.outcomes()["policy"])
    assert len(run.outcomes()) == 6 * 10
    assert "awft:0.3" not in set(run.metrics()["policy"])
    monkeypatch.setattr(Benchmark, "ask", lambda *_, **__: pytest.fail("asked again"))
    run_study(Study(**fields), tmp_path / "study")


def test_what_cannot_be_had_is_named_before_anything_starts(fields, subjects):
    check_study(Study(**fields))
    wrong = fields | {
        "models": ["./nowhere", {"model": fields["models"][0], "device": "toaster"}],
        "data": ["sumss", {"texts": "missing.txt"}],
    }
    with pytest.raises(InputError) as refused:
        check_study(Study(**wrong))
    for named in ("4 fields", "models[0].model: There is no model folder", "models[1].device: Device 'toaster'",
                  "data[0].tasks: 'sumss' is none of", "data[1].texts: There is no file 'missing.txt'"):  # fmt: skip
        assert named in str(refused.value)


def test_a_calibration_that_is_missing_or_cannot_be_read_is_named_before_anything_starts(fields, tmp_path):
    (model,) = fields["models"]
    (tmp_path / "no.safetensors").write_text("text")
    wrong = [model, {"model": model, "name": "other", "calibration": str(tmp_path / "no.safetensors")}]
    with pytest.raises(InputError) as refused:
        check_study(Study(**fields | {"models": wrong, "scores": ["ahon_ln", "random+mean"]}))
    assert "models[0].calibration: random+mean:0.3 needs a calibration" in str(refused.value)
    assert "models[1].calibration: " in str(refused.value)
    assert "is not a calibration" in str(refused.value)
    with pytest.raises(InputError, match=r"models\[0\].calibration: devg needs a calibration"):
        check_study(Study(**fields | {"scores": ["devg"], "ask": False}))
    check_study(Study(**fields | {"scores": ["ahon_ln", "random+mean"], "ask": False}))


def test_what_stops_one_run_keeps_the_others(fields, subjects, tmp_path):
    broken = subjects / "broken"
    if not broken.exists():
        load(subjects / "model")[0].save_pretrained(broken)
        (broken / "model.safetensors").write_bytes(b"")
    study = Study(**fields | {"models": [*fields["models"], str(broken)]})
    with pytest.raises(ModelError, match="broken"):
        run_study(study, tmp_path / "study")
    progress = study_progress(open_study(tmp_path / "study"))
    assert progress[fields["models"][0], "sums"].answers_left == 0
    assert progress[str(broken), "sums"] is None


def test_the_manifest_says_what_a_study_was_made_with(fields, tmp_path):
    done = run_study(Study(**fields, name="small"), tmp_path / "study", command="headcount study small.yaml")
    made = json.loads((done.path / "study.json").read_text())
    assert made["command"] == "headcount study small.yaml"
    assert made["study"]["shares"] == [0, 0.1, 0.3]
    assert {"headcount", "torch", "system"} <= made["environment"].keys()
    run = done.runs().popitem()[1]
    assert run.settings.facts() == {"seed": 0, "shard": 4, "scores_dtype": "float32", "summaries": False}
    assert run.manifest.model.fingerprint
    assert run.manifest.data.facts()["fingerprint"]
