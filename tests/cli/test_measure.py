"""``headcount measure``."""

import re
from pathlib import Path

import pytest
import torch

from headcount.scores import select_scores
from headcount.store import Run, open_run
from tests.runs import contents


def test_texts_are_measured_and_reported(headcount, checkpoint, text, tmp_path):
    lines = tmp_path / "more.jsonl"
    lines.write_text('{"body": "one"}\n{"body": "two and three"}\n')
    code, out, _ = headcount("measure", checkpoint(), "--texts", text, "-o", "run", "--seed", "3")
    assert (code, out) == (0, f"Measured {len(select_scores('all'))} scores of 24 query heads on 1 input.\nRun: run\n")
    run = open_run("run")
    scores = run.scores()
    assert list(scores.data_vars) == [score.id for score in select_scores("all")]
    assert scores["awft"].shape == (1, 3, 8)
    assert scores["num_tokens"].values.tolist() == [55]
    assert run.settings.facts() == {"seed": 3, "shard": 256, "scores_dtype": "float32", "summaries": False}
    assert run.manifest.data.texts == [str(text)]
    assert run.manifest.model.num_heads == 24
    assert run.manifest.command.startswith("headcount measure ")

    code, out, _ = headcount("measure", checkpoint(), "--texts", lines, "--text-column", "body", "--score", "awft",
                             "--score", "HONOR", "--max-length", "5", "-o", "run2")  # fmt: skip
    assert (code, out) == (0, "Measured 2 scores of 24 query heads on 2 inputs.\nRun: run2\n")
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


@pytest.mark.parametrize(
    ("name", "used", "note"),
    [
        (
            "Small-Instruct/checkpoint-5",
            True,
            "'Small-Instruct' says that it expects one. Otherwise with --no-chat-template.",
        ),
        (
            "Small",
            False,
            "not in the model's chat template: the name 'Small' does not say that it expects one. Otherwise",
        ),
    ],
)
def test_a_run_says_whether_prompts_are_in_the_chat_template_and_why(
    headcount, checkpoint, own, letters, monkeypatch, name, used, note
):
    monkeypatch.setattr(letters, "chat_template", "[{{ messages[0]['content'] }}]")
    folder = checkpoint(name)
    code, _, told = headcount("measure", folder, *own(), "--score", "ahon", "-o", "run")
    assert code == 0
    assert note in told
    manifest = open_run("run").manifest.facts()
    assert manifest["data"]["chat_template"] is used
    assert manifest["model"]["expects_chat"]["answer"] is used
    assert manifest["model"]["expects_chat"]["why"] in told
    _, _, told = headcount("measure", folder, *own(), "--score", "ahon", "-o", "plain", "--no-chat-template")
    assert "chat template" not in told
    assert open_run("plain").manifest.data.chat_template is False


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


def test_long_inputs_are_measured_few_at_a_time(headcount, checkpoint, tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "twenty letters long."}\n' * 20)
    command = ("measure", checkpoint(), "--texts", texts, "--score", "awft", "--batch-tokens", 10)
    assert headcount(*command, "-o", "run")[0] == 0
    run = open_run("run")
    assert run.settings.shard == 4  # of 80 tokens at most
    assert run.measured() == {*range(5)}
    # Another number of tokens in a batch goes on with the parts that are there.
    before = contents("run")
    assert headcount(*command[:-1], 1000, "-o", "run")[0] == 0
    assert contents("run") == before


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
    assert "There is no text in" in refused("measure", checkpoint(), "--texts", empty)
    assert "longer than the model's 512 positions" in refused("measure", checkpoint(), "--texts", long, "-o", "run")
    # The refusal names an option; the same command with it works.
    code, _, error = headcount("measure", checkpoint(), "--texts", long, "--too-long", "cut", "-o", "run")
    assert code == 0
    assert "Note: 1 of 1 inputs were longer than the model's 512 positions" in error


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
