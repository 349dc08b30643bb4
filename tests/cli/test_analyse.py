import numpy as np
import pandas as pd
import pytest
import xarray as xr
from typer.testing import CliRunner

import headcount.cli.analyse  # noqa: F401  (adds the command)
from headcount.cli.app import app
from headcount.errors import HeadcountError
from headcount.store import begin_run

LAYERS = [{"index": i, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8} for i in range(2)]


def make_run(folder, *, model="lab/model", tasks=("arc_easy",), seed=0):
    rng = np.random.default_rng(seed)
    values = {n: (("example", "layer", "head"), rng.random((30, 2, 4), dtype=np.float32)) for n in ("ahon_ln", "awft")}
    with begin_run(folder, model={"name": model, "layers": LAYERS}, data={"tasks": list(tasks)}, settings={}) as run:
        run.add_scores(0, xr.Dataset(values, coords={"layer": [0, 1], "num_tokens": ("example", np.full(30, 9))}))
        for policy, score, share, right in (
            ("baseline", "", 0.0, 0.9), ("ahon_ln:0.1", "ahon_ln", 0.1, 0.88), ("random:0.1", "random", 0.1, 0.5),
        ):  # fmt: skip
            outcomes = pd.DataFrame({
                "policy": policy, "curve": score, "score": score, "share_asked": share, "threshold": 0.5, "task": tasks[0],
                "doc_id": np.arange(200), "share_off": share, "acc": (rng.random(200) < right).astype(float),
            })  # fmt: skip
            run.add_outcomes([policy], range(200), outcomes)
    return folder


def run(*arguments):
    return CliRunner(env={"COLUMNS": "80"}).invoke(app, ["analyse", *map(str, arguments)])


def test_tables_are_printed_and_written(tmp_path):
    result = run(make_run(tmp_path / "run"), "-o", tmp_path / "tables")
    assert result.exit_code == 0, result.exception
    assert "Not complete" not in result.output  # how many questions there are is not known of this run
    assert "lab/model, arc_easy: within 1 point" in result.output
    assert "lab/model, arc_easy: 8 heads at 10%, in 4 groups" in result.output
    assert "As published, within 1 point of accuracy, percent" in result.output
    written = {file.stem for file in (tmp_path / "tables").iterdir()}
    assert written == {
        "accuracy", "removable", "points", "by_curve", "ranks", "inactive", "heads", "groups", "agreement", "layers",
        "cumulative",
    }  # fmt: skip
    accuracy = pd.read_csv(tmp_path / "tables" / "accuracy.csv")
    assert accuracy[["model", "task", "policy"]].iloc[0].tolist() == ["lab/model", "arc_easy", "baseline"]
    ranks = pd.read_csv(tmp_path / "tables" / "ranks.csv")
    assert ranks["model"].str.endswith("(published)").all()


def test_published_models_can_be_left_out(tmp_path):
    output = run(make_run(tmp_path / "run"), "--no-published").output
    assert "published" not in output


def test_a_folder_of_runs_is_read_as_all_of_them(tmp_path):
    make_run(tmp_path / "study" / "runs" / "a")
    make_run(tmp_path / "study" / "runs" / "b", tasks=("piqa",), seed=1)
    result = run(tmp_path / "study", tmp_path / "study" / "runs" / "a", "--no-published", "--share", "0.2")
    assert result.exit_code == 0, result.exception
    assert "lab/model: thresholds at 20%" in result.output
    assert result.output.count("arc_easy: within 1 point") == 1  # named twice, read once


def test_two_runs_of_the_same_are_told_apart_by_their_folders(tmp_path):
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two", seed=1)
    result = run(one, two, "--no-published", "-o", tmp_path / "tables")
    assert result.exit_code == 0, result.exception
    models = pd.read_csv(tmp_path / "tables" / "accuracy.csv")["model"].unique().tolist()
    assert models == [f"lab/model ({one})", f"lab/model ({two})"]


def test_errors_say_what_to_do(tmp_path):
    made = make_run(tmp_path / "made" / "run")
    (tmp_path / "other").mkdir()
    for arguments, message in (
        ([tmp_path / "other"], "holds no run"),
        ([tmp_path / "nowhere"], "holds no run"),
        ([made, "--metric", "f1"], "Unknown metric 'f1'"),
    ):
        error = run(*arguments).exception
        assert isinstance(error, HeadcountError)
        with pytest.raises(HeadcountError, match=message):
            raise error
    with begin_run(tmp_path / "empty", model={}, data={}, settings={}):
        pass
    assert "hold neither scores nor outcomes" in str(run(tmp_path / "empty").exception)
