import pytest
import torch

from headcount.evaluation.evaluate import evaluate
from headcount.models.loading import load
from headcount.removal.selection import Selection
from headcount.store import open_run


@pytest.fixture(autouse=True)
def modules_cache(tmp_path, monkeypatch):
    """Where transformers copies the modelling files that it loads."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


def write_selection(folder, file, heads):
    model, _ = load(folder)
    Selection.of(model, heads, name=str(folder), kind="head", chosen={"score": "by hand"}).save(file)


def test_plan_prune_and_compare_the_result(headcount, checkpoint, letters, own, tmp_path):
    folder = checkpoint()
    write_selection(folder, "heads.json", [(0, 0), *((1, head) for head in range(8)), (2, 4), (2, 5)])
    code, out, _ = headcount("prune", folder, "--heads", "heads.json")
    assert code == 0
    # 24 heads, 11 go; six groups, the two of layer 1 go.
    assert "-45.8%" in out
    assert "-33.3%" in out
    assert "Layers that lose all heads: 1." in out
    assert "2 layers have groups of different sizes" in out
    assert not (tmp_path / "pruned").exists()

    (tmp_path / "texts.jsonl").write_text('"The cat sat."\n"On the mat, all day long."\n')
    code, out, error = headcount(
        "prune", folder, "--heads", "heads.json", "-o", "pruned", "--texts", "texts.jsonl", "--device", "cpu"
    )
    assert code == 0, error
    assert "trust_remote_code=True" in out
    assert "same most likely token at 100.0%" in out
    card = (tmp_path / "pruned" / "README.md").read_text()
    assert "Calibrated on 2 texts" in card
    assert "headcount prune" in card

    compared = (
        "evaluate",
        folder,
        *own(),
        "-o",
        "run",
        "--pruned",
        "pruned",
        "-p",
        "random:0.3",
        "--trust-remote-code",
    )
    code, out, error = headcount(*compared)
    assert code == 0, error
    outcomes = open_run("run").outcomes()
    assert outcomes["policy"].unique().tolist() == ["baseline", "random:0.3", "pruned:pruned"]
    answers = outcomes[outcomes["policy"] == "pruned:pruned"]
    assert answers["share_off"].unique().tolist() == [11 / 24]
    assert (answers["kl_from_baseline"] > 0).all()
    alone = evaluate(load("pruned", trust_remote_code=True)[0], ["sums"], tokenizer=letters, include_path=own()[3])
    assert list(map(list, answers["loglikelihoods"])) == list(map(list, alone.outcomes["loglikelihoods"]))
    code, out, error = headcount(*compared)  # nothing is asked twice
    assert code == 0, error
    assert len(open_run("run").outcomes()) == len(outcomes)


def test_what_replaces_heads_can_be_trained(headcount, refused, checkpoint, tmp_path):
    folder = checkpoint()
    write_selection(folder, "heads.json", [(0, 0), (0, 3), (1, 1)])
    (tmp_path / "texts.jsonl").write_text('"The cat sat."\n"On the mat, all day long."\n')
    given = ("prune", folder, "--heads", "heads.json", "--texts", "texts.jsonl", "--replace", "zero")
    code, out, error = headcount(*given, "-o", "zeroed", "--device", "cpu")
    assert code == 0, error
    trained = (*given, "--distill", 2, "--learning-rate", "0.01", "--dtype", "float32", "--device", "cpu")
    code, out, error = headcount(*trained, "-o", "trained")
    assert code == 0, error
    assert "same most likely token at 100.0%" in out
    card = (tmp_path / "trained" / "README.md").read_text()
    assert "2 passes, learning rate 0.01, 1024 tokens a step, seed 0." in card
    assert "Calibrated on 2 texts" in card
    plain, learnt = (load(name, trust_remote_code=True)[0].state_dict() for name in ("zeroed", "trained"))
    changed = {name for name in plain if not torch.equal(plain[name].float(), learnt[name].float())}
    assert changed == {f"model.layers.{layer}.self_attn.o_proj.weight" for layer in (0, 1)}
    assert set(learnt) - set(plain) == {f"model.layers.{layer}.self_attn.o_proj.bias" for layer in (0, 1)}
    assert headcount(*trained, "-o", "again")[0] == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("trained", "again")]
    assert weights[0] == weights[1]

    heads = ("prune", folder, "--heads", "heads.json")
    assert "needs texts to learn from" in refused(*heads, "--replace", "zero", "--distill", 1, "-o", "new")
    assert "say how long with --distill" in refused(*heads, "--learning-rate", "0.01", "-o", "new")
    assert not (tmp_path / "new").exists()


def test_mistakes(headcount, refused, checkpoint, own, tmp_path):
    folder = checkpoint()
    write_selection(folder, "heads.json", [(0, 0)])
    assert "There is no selection 'none.json'" in refused("prune", folder, "--heads", "none.json")
    assert "--texts FILE, or --replace zero" in refused("prune", folder, "--heads", "heads.json", "-o", "p")
    other = checkpoint("other", seed=1)
    line = refused("prune", other, "--heads", "heads.json", "-o", "p", "--replace", "zero")
    assert "the weights are not" in line
    assert "exists already" in refused("prune", folder, "--heads", "heads.json", "-o", folder, "--replace", "zero")
    assert not (tmp_path / "p").exists()
    code, _, error = headcount("prune", folder, "--heads", "heads.json", "-o", "p", "--replace", "zero")
    assert code == 0, error
    line = refused("evaluate", "p", *own(), "-o", "run")
    assert "--trust-remote-code" in line
    line = refused("evaluate", other, *own(), "-o", "run", "--pruned", "p", "--trust-remote-code")
    assert "the weights are not" in line
    assert "is a file; expected the folder" in refused("evaluate", other, *own(), "-o", "run", "--pruned", "heads.json")
    assert "no place for an index" in refused(
        "prune", folder, "--heads", "heads.json", "--format", "gguf", "--uneven", "index"
    )
    assert "no checkpoint" in refused("evaluate", other, *own(), "-o", "run", "--pruned", "none")
    assert "--trust-remote-code" in refused("evaluate", folder, *own(), "-o", "run", "--pruned", "p")
    config = tmp_path / "p" / "config.json"
    config.write_text(config.read_text().replace("auto_map", r"\u0061uto_map"))  # the same name, as JSON has it
    assert "--trust-remote-code" in refused("evaluate", folder, *own(), "-o", "run", "--pruned", "p")
    config.write_bytes(b"\xff")
    assert "is no configuration" in refused("evaluate", folder, *own(), "-o", "run", "--pruned", "p")
    assert not (tmp_path / "run").exists()  # all of it is known before a question is asked


def test_stopping_leaves_nothing(headcount, checkpoint, tmp_path, monkeypatch):
    folder = checkpoint()
    write_selection(folder, "heads.json", [(0, 0)])

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("headcount.removal.prune.verify", stop)
    code, _, error = headcount("prune", folder, "--heads", "heads.json", "-o", "p", "--replace", "zero")
    assert code == 130
    assert "Stopped. Nothing was written." in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heads.json", "model"]


def test_neurons_go_as_heads_do(headcount, refused, checkpoint, own, tmp_path):
    folder = checkpoint()
    (tmp_path / "texts.jsonl").write_text('"The cat sat."\n"On the mat, all day long."\n')
    chosen = ("select", folder, "--unit", "neuron", "--texts", "texts.jsonl", "--share", "0.25", "-o", "neurons.json")
    code, out, error = headcount(*chosen)
    assert code == 0, error
    assert "MLP neurons (25.0%)" in out
    code, out, error = headcount("prune", folder, "--heads", "neurons.json", "-o", "smaller", "--device", "cpu")
    assert code == 0, error
    assert "MLP neurons" in out
    assert "-25.0%" in out
    assert "key-value" not in out
    assert "trust_remote_code" not in out
    card = (tmp_path / "smaller" / "README.md").read_text()
    assert "MLP neurons" in card
    assert "MLP's last map is gone" in card
    assert "How the neurons were chosen" in card
    compared = ("evaluate", folder, *own(), "-o", "run", "--pruned", "smaller", "-p", "random:0.3")
    code, out, error = headcount(*compared)
    assert code == 0, error
    outcomes = open_run("run").outcomes()
    assert outcomes.loc[outcomes["policy"] == "pruned:smaller", "share_off"].unique().tolist() == [0.25]
    assert "not for neurons" in refused(*chosen[:-1], "other.json", "--budget", "1 point of arc_easy")
    refitted = (
        "prune",
        folder,
        "--heads",
        "neurons.json",
        "-o",
        "refitted",
        "--replace",
        "refit",
        "--texts",
        "texts.jsonl",
    )
    assert "refit is for heads" in refused(*refitted)
    assert not (tmp_path / "refitted").exists()
