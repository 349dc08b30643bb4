"""What the commands do can be done from Python: the files are the same."""

from pathlib import Path

import pytest

import headcount as hc
from headcount.analysis import ShareSearch, UntilDecided
from headcount.errors import HeadcountError, InputError, RunError
from headcount.evaluation.benchmark import Benchmark
from headcount.removal.selection import Selection
from headcount.study.spec import ModelSpec, Texts
from tests.runs import contents

EARLY = ("-p", "random:0.3", "--until-decided", "--margin", 0.3, "--search", "ahon_ln", "--search", "random",
         "--largest-share", 0.6, "--resolution", 0.2)  # fmt: skip


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        (
            ("-p", "ahon_ln:0.10", "-p", "random:0.1", "-p", "awft@0.8", "--exclude-layer", 1, "--seed", 3),
            {"policies": ["ahon_ln:0.10", "random:0.1", "awft@0.8"], "exclude_layers": [1], "seed": 3},
        ),
        (
            EARLY,
            {
                "policies": ["random:0.3"], "until_decided": UntilDecided(margin=0.3), "search": ["ahon_ln", "random"],
                "search_range": ShareSearch(largest=0.6, resolution=0.2),
            },
        ),
        (
            ("-p", "awft:0.2", "--thresholds-from", "measured", "--limit", 4),
            {"policies": ["awft:0.2"], "thresholds_from": "measured", "limit": 4},
        ),
    ],
)  # fmt: skip
def test_evaluate(headcount, checkpoint, own, options, arguments):
    folder = checkpoint()
    if "--thresholds-from" in options:
        headcount("measure", folder, *own(), "--score", "awft", "-o", "measured")
    code, _, error = headcount("evaluate", folder, *own(), *options, "--batch-tokens", 64, "-o", "command")
    assert code == 0, error
    given = {"include_path": own()[3], "offline": True, "batch_tokens": 64, **arguments}
    run = hc.evaluate_run("python", str(folder), ["sums"], **given)
    assert run.outcomes() is not None
    assert contents(Path("python")) == contents(Path("command"))


def test_evaluate_a_pruned_checkpoint(headcount, checkpoint, own, monkeypatch):
    folder = checkpoint()
    selection = Selection.of(hc.load(folder)[0], [(0, 0), (2, 7)], name=str(folder), kind="head", chosen={})
    selection.save("heads.json")
    headcount("prune", folder, "--heads", "heads.json", "--replace", "zero", "-o", "pruned")
    asked = (*own(), "--pruned", "pruned", "--trust-remote-code")
    code, _, error = headcount("evaluate", folder, *asked, "-o", "command")
    assert code == 0, error
    spec = ModelSpec(model=str(folder), trust_remote_code=True)
    given = {"include_path": own()[3], "offline": True, "pruned": ["pruned"]}
    run = hc.evaluate_run("python", spec, "sums", **given)
    assert run.policies() == ["baseline", "pruned:pruned"]
    assert contents(Path("python")) == contents(Path("command"))
    monkeypatch.setattr(Benchmark, "ask", lambda *_, **__: pytest.fail("a question was asked again"))
    hc.evaluate_run("python", spec, "sums", **given)


def test_evaluate_a_model_that_is_loaded(headcount, checkpoint, own):
    folder = checkpoint()
    model, tokenizer = hc.load(folder)
    headcount("evaluate", folder, *own(), "-p", "random:0.1", "-o", "command")
    given = {"include_path": own()[3], "offline": True}
    hc.evaluate_run("python", model, ["sums"], [hc.Random(0.1)], tokenizer=tokenizer, **given)
    assert contents(Path("python")) == contents(Path("command"))
    with pytest.raises(hc.HeadcountError, match="goes with its tokenizer"):
        hc.evaluate_run("other", model, ["sums"], **given)


@pytest.mark.parametrize("summaries", [False, True])
def test_measure(headcount, checkpoint, own, text, summaries):
    folder, kept = checkpoint(), ("--summaries",) * summaries
    headcount("measure", folder, *own(), "--score", "ahon_ln", "--limit", 4, *kept, "-o", "command")
    given = {"scores": ["ahon_ln"], "summaries": summaries}
    hc.measure_run("python", str(folder), "sums", limit=4, include_path=own()[3], offline=True, **given)
    assert contents(Path("python")) == contents(Path("command"))
    headcount("measure", folder, "--texts", text, "--max-length", 9, "--score", "ahon_ln", *kept, "-o", "of texts")
    hc.measure_run("python's", str(folder), texts=Texts(texts=(str(text),), max_length=9), **given)
    assert contents(Path("python's")) == contents(Path("of texts"))
    with pytest.raises(hc.HeadcountError, match="either tasks or texts"):
        hc.measure_run("neither", str(folder))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"policies": [hc.Fixed([(0, 0)]), hc.Fixed([(1, 1)])]}, "Two policies are called 'fixed'"),
        ({"policies": [hc.Fixed([(0, 0)], name="baseline")]}, "Two policies are called 'baseline'"),
        (
            {"policies": [hc.Threshold("ahon_ln", 0.5, share=0.1), "ahon_ln:0.1"]},
            "Two policies are called 'ahon_ln:0.1'",
        ),
        ({"policies": [["ahon_ln", 0.1]]}, "A policy is a Threshold"),
        ({"policies": 3}, "policies is a list"),
        ({"policies": "random:0.1"}, "policies is a list"),
        ({"policies": hc.Random(0.1)}, "policies is a list"),
        ({"tasks": ""}, "No benchmark was named"),
        ({"tasks": 3}, "A name, a path or a list of them is needed, not 3"),
        ({"exclude_layers": 1}, "exclude_layers is a collection of layer indices"),
        ({"until_decided": True}, "until_decided is an UntilDecided"),
        ({"search": ["all", "nope"]}, "Unknown score 'nope'"),
        ({"pruned": "nowhere"}, "'nowhere' holds no checkpoint"),
    ],
)
def test_arguments_of_another_kind_are_refused(checkpoint, own, given, message):
    arguments = {"tasks": "sums", "include_path": own()[3], "offline": True, **given}
    with pytest.raises(HeadcountError, match=message):
        hc.evaluate_run("python", str(checkpoint()), **arguments)
    assert not Path("python").exists()


def test_one_name_stands_for_a_list_of_one(checkpoint, own):
    given = {"include_path": own()[3], "offline": True, "limit": 2}
    run = hc.evaluate_run("python", str(checkpoint()), "sums", ["random:0.5"], **given)
    assert run.policies() == ["baseline", "random:0.5"]
    hc.evaluate_run("python", str(checkpoint()), "sums", [hc.Fixed([(0, 0)], name="mine")], **given)
    with pytest.raises(RunError, match=r"holds mine with decisions by 1 heads, .*; this command gives 2 heads, "):
        hc.evaluate_run("python", str(checkpoint()), "sums", [hc.Fixed([(0, 0), (1, 1)], name="mine")], **given)


def test_what_is_measured_is_named(checkpoint, text):
    with pytest.raises(InputError, match="Unknown scores_dtype 'int8'. Use float32 or float16"):
        hc.measure_run("python", str(checkpoint()), texts=text, scores_dtype="int8")
    run = hc.measure_run("python", str(checkpoint()), texts=Path(text), scores="awft")
    assert list(run.scores()) == ["awft"]
