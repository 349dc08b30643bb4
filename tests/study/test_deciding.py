import pandas as pd
import pytest

from headcount.analysis import UntilDecided, asking_order
from headcount.errors import InputError, RunError
from headcount.evaluation.evaluate import evaluate
from headcount.models.loading import load
from headcount.policies import Random
from headcount.store import Run
from headcount.study.analysing import read_tables
from headcount.study.folder import open_study
from headcount.study.progress import study_progress
from headcount.study.running import run_study
from headcount.study.spec import Study
from tests.runs import contents, write_tasks
from tests.store.parts import forge

QUESTIONS = 40


@pytest.fixture(autouse=True)
def one_thread(tiny):
    """``tiny`` keeps tiny models from waiting for threads."""


@pytest.fixture(scope="session")
def many(tmp_path_factory):
    """A folder with the task ``sums`` of 40 questions."""
    folder = tmp_path_factory.mktemp("many") / "tasks"
    write_tasks(folder, questions=QUESTIONS)
    return str(folder)


@pytest.fixture
def early(fields, many):
    """The fields of a study that asks until it is decided."""
    rule = {"margin": 0.15, "confidence": 0.9, "questions_a_look": 8}
    return fields | {
        "include_path": many,
        "scores": ["awft", "random"],
        "shares": [0, 0.01, 0.5],
        "until_decided": rule,
    }


def stop_at(monkeypatch, number):
    """Interrupts whatever writes the ``number``-th file of outcomes."""
    kept, calls = Run.add_outcomes, []

    def keep(self, *given):
        calls.append(given)
        if len(calls) == number:
            raise KeyboardInterrupt
        kept(self, *given)

    monkeypatch.setattr(Run, "add_outcomes", keep)
    return calls


def test_policies_are_asked_until_it_is_decided(early, tmp_path):
    done = run_study(Study(**early, seeds=[3]), tmp_path / "study")
    ((labels, run),) = done.runs().items()
    outcomes = run.outcomes()
    asked = outcomes["policy"].value_counts()
    assert asked["baseline"] == asked.max()
    assert asked["random:0.01#3"] < QUESTIONS  # it changes next to nothing
    order = asking_order(QUESTIONS, seed=3)
    for _, of_policy in outcomes.groupby("policy"):
        assert of_policy["doc_id"].tolist() == order[: len(of_policy)]
    verdicts = read_tables(run).decided.set_index("policy")
    assert verdicts["verdict"].notna().all()
    assert verdicts["num_questions"].to_dict() == asked.drop("baseline").to_dict()
    assert set(run.metrics()["policy"]) == set(asked.index)
    progress = study_progress(open_study(done.path))[labels]
    assert progress.answers_left == 0
    assert progress.stopped == verdicts["num_questions"].to_dict()

    # The same from Python without a study, and the verdicts are those of asking every question.
    model, tokenizer = load(early["models"][0])
    options = {"tokenizer": tokenizer, "offline": True, "include_path": early["include_path"], "seed": 3}
    randoms = [Random(0.01, 3), Random(0.5, 3)]
    again = evaluate(model, ["sums"], randoms, until_decided=UntilDecided(**early["until_decided"]), **options)
    shown = ["policy", "num_questions", "verdict", "change"]
    pd.testing.assert_frame_equal(
        again.verdicts[shown], read_tables(run).decided.query("curve == 'random'")[shown].reset_index(drop=True)
    )
    whole = evaluate(model, ["sums"], randoms, **options).outcomes.groupby("policy")["acc"].mean()
    for policy in randoms:
        fell = whole["baseline"] - whole[policy.label]
        assert verdicts.loc[policy.label, "verdict"] == ("within" if fell <= 0.15 + 1e-9 else "beyond")


def test_what_was_interrupted_goes_on_to_the_same_bytes(early, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        calls = stop_at(patched, 1_000)
        run_study(Study(**early), tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    for number in (2, len(calls)):
        with monkeypatch.context() as patched:
            stop_at(patched, number)
            with pytest.raises(KeyboardInterrupt):
                run_study(Study(**early), tmp_path / f"at-{number}")
        (progress,) = study_progress(open_study(tmp_path / f"at-{number}")).values()
        assert progress.answers_left > 0
        run_study(Study(**early), tmp_path / f"at-{number}")
        assert contents(tmp_path / f"at-{number}") == expected


def test_a_search_closes_in_on_the_removable_share(early, tmp_path, monkeypatch):
    early |= {"until_decided": {"margin": 0, "confidence": 0.999_999}, "search": {"largest": 0.8, "resolution": 0.2}}
    study = Study(**early | {"scores": ["ahon_ln", "awft", "random"]})
    run = run_study(study, tmp_path / "whole").runs().popitem()[1]
    found = run.manifest.facts()["searched"]
    assert (found["largest"], found["resolution"]) == (0.8, 0.2)
    assert list(found["scores"]) == ["ahon_ln", "awft", "random"]
    table = read_tables(run).decided
    for score, ends in found["scores"].items():
        verdicts = table[table["curve"] == score].set_index("share_asked")["verdict"].to_dict()
        assert len(verdicts) == len(table[table["curve"] == score])
        assert next(iter(verdicts)) == 0.8  # the largest first
        if ends["beyond"] is None:
            assert verdicts == {0.8: "within"}
        else:
            assert verdicts[ends["beyond"]] == "beyond"
            assert ends["beyond"] - ends["within"] <= 0.2 + 1e-9
        assert ends["within"] == 0 or verdicts[ends["within"]] == "within"
    assert any(ends["beyond"] is not None for ends in found["scores"].values())

    expected = contents(tmp_path / "whole")
    with monkeypatch.context() as patched:
        stop_at(patched, 6)
        with pytest.raises(KeyboardInterrupt):
            run_study(study, tmp_path / "stopped")
    (progress,) = study_progress(open_study(tmp_path / "stopped")).values()
    assert progress.searching == ["ahon_ln", "awft", "random"]
    run_study(study, tmp_path / "stopped")
    assert contents(tmp_path / "stopped") == expected
    (progress,) = study_progress(open_study(tmp_path / "stopped")).values()
    assert (progress.searching, progress.answers_left) == ([], 0)
    monkeypatch.setattr("headcount.study.running.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    run_study(study, tmp_path / "stopped")


def test_a_run_is_asked_in_one_way(fields, done, tmp_path):
    before = contents(tmp_path / "study")
    with pytest.raises(RunError, match="until_decided is None there and"):
        run_study(Study(**fields, until_decided=True), tmp_path / "study")
    forge(tmp_path / "study/study.json", lambda facts: facts | {"study": facts["study"] | {"until_decided": {}}})
    with pytest.raises(RunError, match="asked in another way: there every question is asked, here until it is decided"):
        run_study(Study(**fields | {"shares": [0, 0.1, 0.2, 0.3]}, until_decided=True), tmp_path / "study")
    assert {n: c for n, c in contents(tmp_path / "study").items() if "outcomes" in n} == {
        n: c for n, c in before.items() if "outcomes" in n
    }


def test_a_metric_that_questions_lack_is_refused(early, tmp_path):
    with pytest.raises(InputError, match="Unknown metric 'f1' to decide by. .*acc"):
        run_study(Study(**early | {"until_decided": {"metric": "f1"}}), tmp_path / "study")
    both = early | {"data": [{"tasks": ["spell", "sums"]}], "until_decided": {"metric": "exact_match"}}
    with pytest.raises(InputError, match="sums does not have it"):
        run_study(Study(**both), tmp_path / "both")


def test_a_policy_that_is_given_up_stops_nothing_else(early, tmp_path, monkeypatch):
    from headcount.evaluation.benchmark import Benchmark

    ask = Benchmark.ask

    def fail(self, policies, questions, **options):
        answers = ask(self, policies, questions, **options)
        lost = [policy.label for policy in policies if policy is not None and policy.label.startswith("awft")]
        kept = answers.outcomes[~answers.outcomes["policy"].isin(lost)]
        return type(answers)(outcomes=kept, scores=None, failures=dict.fromkeys(lost, "NaN in layer 1"))

    monkeypatch.setattr(Benchmark, "ask", fail)
    done = run_study(Study(**early), tmp_path / "study")
    run = done.runs().popitem()[1]
    assert set(run.failures()) == {"awft:0.01", "awft:0.5"}
    assert set(read_tables(run).decided["policy"]) == {"random:0.01", "random:0.5"}
    assert study_progress(done).popitem()[1].answers_left == 0
