"""The checkpoint: loaded by a fresh process without headcount, refused where it cannot be, whole or not there."""

import json
import os
import subprocess
import sys

import pytest
import torch

from headcount.errors import InputError, ModelError, RunError
from headcount.models.observe import units_of
from headcount.removal.checkpoint import load_saved
from headcount.removal.choose import select_heads
from headcount.removal.fitting import Fitting
from headcount.removal.prune import Checkpoint, prune_heads
from headcount.removal.selection import Selection
from headcount.removal.verify import _LIMITS
from tests.removal.test_cut import TOKENS, some_heads

FITTING = Fitting(rows=[row.tolist() for row in TOKENS])

#: What a fresh process does, that has no headcount: load each folder, keep its logits and what it generated.
LOADER = """
import sys, torch
sys.modules["headcount"] = None
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
tokens, *folders = sys.argv[1:]
tokens = torch.load(tokens)
for folder in folders:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        logits = model(tokens).logits
        answer = model.generate(tokens, max_new_tokens=2, do_sample=False, pad_token_id=0, eos_token_id=None)
    torch.save((type(model).__name__, logits, answer), folder + "/seen.pt")
assert not any(name.startswith("headcount.") for name in sys.modules)
"""


def select(model, heads=None):
    heads = some_heads(model) if heads is None else heads
    return Selection.of(model, heads, name="tiny", kind="head", chosen={"score": "by hand"})


def even(model):
    """In every layer every second query head: each has the same counts."""
    return [(layer.index, head) for layer in units_of(model).layers for head in range(0, layer.num_attention_heads, 2)]


def test_reload_in_a_fresh_process_without_headcount(tiny, tmp_path):
    cases = {
        "llama-uneven": (tiny("llama"), None, "mean", "PrunedForCausalLM"),
        "gpt2-uneven": (tiny("gpt2", n_embd=64, n_head=8, n_layer=3), None, "zero", "PrunedForCausalLM"),
        "phi3-uneven": (tiny("phi3"), None, "refit", "PrunedForCausalLM"),
        "mixtral-uneven": (tiny("mixtral", num_local_experts=2), None, "zero", "PrunedForCausalLM"),
        "qwen2-even": (tiny("qwen2"), even, "zero", "Qwen2ForCausalLM"),
        "llama-even": (tiny("llama"), even, "mean", "LlamaForCausalLM"),
        "llama-odd": (tiny("llama"), [(i, h) for i in range(3) for h in (0, 4)], "zero", "MistralForCausalLM"),
        "gemma2-tied": (tiny("gemma2", head_dim=8), even, "mean", "Gemma2ForCausalLM"),
    }
    expected = {}
    for name, (model, heads, how, kind) in cases.items():
        selection = select(model, heads(model) if callable(heads) else heads)
        result = prune_heads(model, selection, tmp_path / name, FITTING, how=how)
        assert result.loaded == ("modelling file" if kind == "PrunedForCausalLM" else "stock"), name
        assert result.verification.max_difference < 1e-5
        with result.replacement.applied(model), torch.no_grad():
            expected[name] = kind, model(TOKENS).logits
    torch.save(TOKENS, tmp_path / "tokens.pt")
    environment = os.environ | {"HF_HOME": str(tmp_path / "hub"), "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    folders = [str(tmp_path / name) for name in cases]
    command = [sys.executable, "-c", LOADER, str(tmp_path / "tokens.pt"), *folders]
    made = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    for name, (kind, logits) in expected.items():
        found, found_logits, answer = torch.load(tmp_path / name / "seen.pt")
        assert found == kind, name
        torch.testing.assert_close(found_logits, logits, rtol=1e-4, atol=1e-5)
        assert answer.shape == (2, 22)


def test_a_pruned_checkpoint_can_be_pruned_again(tiny, tmp_path):
    model = tiny()
    first = [(0, 0), (0, 4), *((1, head) for head in range(8)), (2, 3)]
    prune_heads(model, select(model, first[:-1]), tmp_path / "once", FITTING, how="mean")
    again = load_saved(tmp_path / "once", "modelling file", model)
    assert [layer.num_attention_heads for layer in units_of(again).layers] == [6, 8]
    prune_heads(again, select(again, [(0, 0), (0, 1), (0, 2)]), tmp_path / "twice")
    both = load_saved(tmp_path / "twice", "modelling file", model)
    assert [layer.num_attention_heads for layer in units_of(both).layers] == [3, 8]

    prune_heads(model, select(model, first), tmp_path / "uneven")
    uneven = load_saved(tmp_path / "uneven", "modelling file", model)
    with pytest.raises(ModelError, match="groups of unequal size from an earlier pruning"):
        prune_heads(uneven, select(uneven, [(0, 0)]), tmp_path / "more")
    # It still knows whose keys a head uses, though it hands them to the attention function once for each query head.
    first_layer, *_, last_layer = units_of(uneven).layers
    assert (first_layer.num_key_value_heads, first_layer.key_value_heads) == (2, (0, 0, 0, 1, 1, 1))
    assert (last_layer.num_key_value_heads, last_layer.key_value_heads) == (2, (0, 0, 0, 1, 1, 1, 1))
    assert select(uneven, [(0, 0)]).model.layers == units_of(uneven).layers
    with pytest.raises(InputError, match="cannot be cut again. Select heads of the original"):
        select_heads(uneven, FITTING, share=0.3, score="ahon_ln")


def test_without_trust_a_pruned_checkpoint_is_refused_not_misread(tiny, tmp_path):
    from transformers import AutoModelForCausalLM

    model = tiny()
    prune_heads(model, select(model), tmp_path / "m")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "m", trust_remote_code=False)


def test_files_can_be_read_by_whom_the_umask_lets(tiny, tmp_path):
    model = tiny(num_hidden_layers=1)
    before = os.umask(0o027)
    try:
        prune_heads(model, select(model), tmp_path / "m")
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "m").iterdir()} == {0o640}


def test_zero_filled(tiny, tmp_path):
    model = tiny("olmo2")  # its heads cannot be cut
    with pytest.raises(ModelError, match=r"Olmo2Attention.q_norm normalises all heads.*--format zeros"):
        prune_heads(model, select(model), tmp_path / "cut")
    result = prune_heads(model, select(model), tmp_path / "zeros", checkpoint=Checkpoint(format="zeros"))
    assert result.savings is None
    assert sum(p.numel() for p in load_saved(tmp_path / "zeros", "stock", model).parameters()) == model.num_parameters()
    assert "no faster and no smaller" in (tmp_path / "zeros" / "README.md").read_text()
    qwen = tiny("qwen2")
    with pytest.raises(InputError, match=r"Qwen2ForCausalLM has no bias.*--replace zero"):
        prune_heads(qwen, select(qwen), tmp_path / "biased", FITTING, how="mean", checkpoint=Checkpoint(format="zeros"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["zeros"]


def test_the_card_says_what_was_done(tiny, tmp_path):
    model = tiny()
    selection = Selection.of(
        model, [(0, 5), (1, 0), (1, 1)], name="<b>tiny`</b>", kind="head", chosen={"score": "x\n# not a heading"}
    )
    result = prune_heads(model, selection, tmp_path / "m", FITTING, how="refit", command="headcount prune …")
    card = (tmp_path / "m" / "README.md").read_text()
    assert "# `<b>tiny'</b>` without 3 of 24 attention heads" in card
    assert "| 1 | 0, 1 | 8 → 6 | 2 → 2 |" in card
    assert "`x # not a heading`" in card
    assert "headcount prune …" in card
    assert str(result.verification) in card
    assert f"{result.savings.num_parameters[1]:,}" in card
    assert Selection.load(tmp_path / "m" / "selection.json") == selection
    assert "base_model" not in card
    prune_heads(model, selection, tmp_path / "n", name="someone/tiny-1.0")
    assert "base_model: someone/tiny-1.0\n" in (tmp_path / "n" / "README.md").read_text()


def test_a_selection_for_another_model_is_refused_with_the_difference(tiny, tmp_path):
    selection = select(tiny())
    for other, difference in (
        (tiny(num_hidden_layers=2), "3 attention layers, this one 2"),
        (tiny(num_key_value_heads=4), "2 key-value heads and head_dim 8 there, and layer 0 8 query heads, 4 key-value"),
        (tiny(seed=1), "the weights are not"),
    ):
        with pytest.raises(ModelError, match=f"for tiny, not for other: .*{difference}"):
            prune_heads(other, selection, tmp_path / "m", name="other")
    selection.check(tiny().bfloat16(), "tiny")  # the same checkpoint in another dtype


def test_an_interrupted_prune_leaves_nothing(tiny, tmp_path, monkeypatch):
    model = tiny(num_hidden_layers=1)

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("headcount.removal.prune.verify", stop)  # when the weights are written already
    with pytest.raises(KeyboardInterrupt):
        prune_heads(model, select(model), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_is_not_the_masked_model_is_not_kept(tiny, tmp_path, monkeypatch):
    model = tiny(num_hidden_layers=1)

    def spoiled(folder, loaded, like):
        found = load_saved(folder, loaded, like)
        found.model.layers[0].self_attn.v_proj.weight[0] += 1
        return found

    monkeypatch.setattr("headcount.removal.prune.load_saved", spoiled)
    with pytest.raises(ModelError, match="does not compute what the masked model does"):
        prune_heads(model, select(model), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_what_half_precision_cannot_tell_is_compared_in_float32(tiny, tmp_path, monkeypatch):
    """Rounding of the demo model on random tokens moves a logit by more than any limit that would still see mistakes."""
    model = tiny(num_hidden_layers=2).bfloat16()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    monkeypatch.setitem(_LIMITS, torch.bfloat16, -1.0)
    result = prune_heads(model, select(model), tmp_path / "m", FITTING, how="mean")
    assert result.verification.dtype == "float32"
    assert result.verification.equal
    assert model.dtype == torch.bfloat16
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    saved = load_saved(tmp_path / "m", result.loaded, model)
    assert saved.dtype == torch.bfloat16

    def spoiled(folder, loaded, like):
        found = load_saved(folder, loaded, like)
        found.model.layers[1].self_attn.v_proj.weight[0] += 0.25
        return found

    monkeypatch.setattr("headcount.removal.prune.load_saved", spoiled)
    with pytest.raises(ModelError, match="does not compute what the masked model does.*float32"):
        prune_heads(model, select(model), tmp_path / "spoiled", FITTING, how="mean")


def test_folders_that_cannot_be_used(tiny, tmp_path, monkeypatch):
    model = tiny(num_hidden_layers=1)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("precious")
    with pytest.raises(InputError, match="taken' exists already"):
        prune_heads(model, select(model), tmp_path / "taken")
    (tmp_path / "empty").mkdir()
    prune_heads(model, select(model), tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").is_file()
    with monkeypatch.context() as patch:
        patch.setattr("headcount.removal.prune.replace_heads", lambda *_, **__: pytest.fail("calibrated for nothing"))
        with pytest.raises(RunError, match="cannot be written"):
            prune_heads(model, select(model), tmp_path / "taken" / "file" / "m")
    with pytest.raises(InputError, match="'transformers', 'gguf' or 'zeros', not 'onnx'"):
        prune_heads(model, select(model), tmp_path / "m", checkpoint=Checkpoint(format="onnx"))


def test_selection_files(tiny, tmp_path):
    model = tiny(num_hidden_layers=1)
    file = tmp_path / "selection.json"
    select(model).save(file)
    assert Selection.load(file).heads == tuple(some_heads(model))
    content = json.loads(file.read_text())
    for change, complaint in (
        ({"format": 2}, "format: Input should be 1"),
        ({"heads": [[0, 1], [0, 1]]}, r"heads: .*\(0, 1\) twice"),
        ({"heads": []}, "heads: .*no heads"),
        ({"unit": "expert"}, "unit: Input should be 'head', 'group', 'attention'"),
    ):
        file.write_text(json.dumps(content | change))
        with pytest.raises(InputError, match=complaint):
            Selection.load(file)
    file.write_text("{")
    with pytest.raises(InputError, match="Invalid JSON"):
        Selection.load(file)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a pipe or a device"):
        Selection.load(tmp_path / "pipe")
    with pytest.raises(InputError, match="There is no selection"):
        Selection.load(tmp_path / "none.json")
    with pytest.raises(InputError, match="Query head 9 of layer 0 does not exist"):
        select(model, [(0, 9)])
