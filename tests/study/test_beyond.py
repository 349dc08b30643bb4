"""Runs and studies whose heads are off per token, replaced by a calibration, ranked, or at a share that comes about."""

import pytest

import headcount as hc
from headcount.errors import InputError, ModelError, RunError
from headcount.policies import read_curve
from headcount.study.running import run_study
from headcount.study.spec import Study
from tests.calibrated import calibrated_on
from tests.models.families import build
from tests.runs import contents, write_tasks

ROWS = [list(range(3 + i, 60, 2 + i % 3)) for i in range(12)]
POLICIES = [
    "ahon_ln/token+kept+keep-first:0.3",
    "devg:0.2",
    "random/token+mean:0.3",
    "ahon_ln:rank:0.25",
    "ahon_ln:realised:0.3",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory, letters):
    """A folder with a checkpoint, its calibration and ten questions."""
    folder = tmp_path_factory.mktemp("beyond")
    build("llama").save_pretrained(folder / "model")
    letters.save_pretrained(folder / "model")
    write_tasks(folder / "tasks", questions=10)
    model, _ = hc.load(str(folder / "model"))
    calibrated_on(model, ROWS).save(folder / "calibration.safetensors")
    return folder


def evaluated(place, run, policies=POLICIES, **options):
    return hc.evaluate_run(
        run, str(place / "model"), ["sums"], policies, include_path=place / "tasks", offline=True,
        calibration=place / "calibration.safetensors", **options,
    )  # fmt: skip


def test_what_is_asked_is_kept_and_the_same_command_changes_nothing(place, tmp_path):
    run = evaluated(place, tmp_path / "run")
    outcomes, before = run.outcomes(), contents(tmp_path / "run")
    shares = outcomes.groupby("policy", sort=False)["share_off"].mean()
    assert list(shares.index) == ["baseline", *POLICIES]
    assert run.summary() is not None
    assert list(run.summary().scores) == ["ahon_ln/token", "devg", "ahon_ln"]
    assert shares["ahon_ln:realised:0.3"] == pytest.approx(0.3, abs=0.03)
    assert shares["ahon_ln:rank:0.25"] == pytest.approx(0.25, abs=1e-9)
    assert shares["ahon_ln/token+kept+keep-first:0.3"] == pytest.approx(0.3, abs=0.1)
    curves = dict(zip(outcomes["policy"], outcomes["curve"], strict=True))
    assert curves["ahon_ln/token+kept+keep-first:0.3"] == "ahon_ln/token+kept+keep-first"
    assert curves["ahon_ln:rank:0.25"] == "ahon_ln:rank"
    evaluated(place, tmp_path / "run")
    assert contents(tmp_path / "run") == before


def test_the_share_that_comes_about_is_nearer_than_that_of_untouched_scores(place, tmp_path):
    policies = [f"ahon_ln:{kind}{share}" for kind in ("", "realised:") for share in (0.2, 0.5)]
    shares = evaluated(place, tmp_path / "run", policies).outcomes().groupby("policy")["share_off"].mean()
    for share in (0.2, 0.5):
        assert abs(shares[f"ahon_ln:realised:{share}"] - share) < 0.03
    off = [abs(shares[f"ahon_ln:{kind}{share}"] - share) for kind in ("", "realised:") for share in (0.2, 0.5)]
    assert sum(off[2:]) < sum(off[:2])


def test_a_share_of_random_scores_comes_about_by_the_numbers_of_the_runs_own_seed(place, tmp_path):
    for seed in (0, 7):
        run = evaluated(place, tmp_path / f"run {seed}", ["random:realised:0.3"], seed=seed)
        assert run.outcomes().groupby("policy")["share_off"].mean()["random:realised:0.3"] == pytest.approx(
            0.3, abs=0.006
        )


def test_another_calibration_is_another_policy(place, tmp_path):
    evaluated(place, tmp_path / "run", ["random+mean:0.3"])
    model, _ = hc.load(str(place / "model"))
    with pytest.raises(RunError, match="decisions by calibration"):
        hc.evaluate_run(
            tmp_path / "run", str(place / "model"), ["sums"], ["random+mean:0.3"], include_path=place / "tasks",
            offline=True, calibration=calibrated_on(model, ROWS[:6]),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("devg:0.1", "devg:0.1 needs a calibration"),
        ("ahon_ln+kept:0.1", r"ahon_ln\+kept:0.1 needs a calibration"),
        ("ahon_ln+mode:0.1", "is called 'mode'"),
        ("ahon_ln+mean+kept:0.1", "says twice"),
        ("ahon_ln/token/token:0.1", "twice"),
        ("ahon_ln:rank:1.5", "between 0 and 1"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_a_model_is_loaded(tmp_path, policy, said):
    with pytest.raises(InputError, match=said):
        hc.evaluate_run(tmp_path / "run", "no-such-model", ["sums"], [policy], offline=True)
    assert not (tmp_path / "run").exists()


def test_a_calibration_of_another_model_is_refused_before_anything_is_measured(place, tmp_path):
    build("llama", seed=1).save_pretrained(tmp_path / "other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "other" / name).write_bytes((place / "model" / name).read_bytes())
    with pytest.raises(ModelError, match="calibration is of tiny"):
        hc.evaluate_run(
            tmp_path / "run", str(tmp_path / "other"), ["sums"], ["random+mean:0.3"], include_path=place / "tasks",
            offline=True, calibration=place / "calibration.safetensors",
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_a_calibration_of_another_model_stops_a_study_before_anything_is_measured(place, tmp_path):
    build("llama", seed=1).save_pretrained(tmp_path / "other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "other" / name).write_bytes((place / "model" / name).read_bytes())
    study = Study(
        models=[{"model": str(tmp_path / "other"), "calibration": str(place / "calibration.safetensors")}],
        data=[{"tasks": ["sums"]}], scores=["ahon_ln"], shares=[0.2], include_path=str(place / "tasks"), offline=True,
    )  # fmt: skip
    with pytest.raises(ModelError, match="calibration is of tiny"):
        run_study(study, tmp_path / "study")
    assert not [*(tmp_path / "study").rglob("scores*")]


def test_a_study_asks_under_curves(place, tmp_path):
    study = Study(
        models=[{"model": str(place / "model"), "name": "m", "calibration": str(place / "calibration.safetensors")}],
        data=[{"tasks": ["sums"]}], scores=["honor/token+kept", "random+mean", "ahon_ln:rank", "ahon_ln"], shares=[0.2, 0.4],
        include_path=str(place / "tasks"), offline=True,
    )  # fmt: skip
    assert study.scores == ("ahon_ln/token+kept", "random+mean", "ahon_ln:rank", "ahon_ln")
    assert study.score_ids() == ["ahon_ln/token", "random", "ahon_ln"]
    tables = run_study(study, tmp_path / "study").tables()
    assert set(tables["accuracy"]["curve"]) >= set(study.scores)
    before = contents(tmp_path / "study")
    run_study(study, tmp_path / "study")
    assert contents(tmp_path / "study") == before


def test_curves_are_called_as_they_are_written():
    for text in ("ahon_ln", "ahon_ln/token", "ahon_ln/token+kept+keep-first", "random/token+mean", "ahon_ln+mean:rank"):
        assert read_curve(text) == text
    assert read_curve("HONOR/token + keep-first + mean") == "ahon_ln/token+mean+keep-first"
