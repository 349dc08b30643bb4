"""The recipes for neighbouring tools work as they stand, here with a tiny model and a task of our own."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import headcount as hc
from tests.runs import write_tasks

PAGE = Path(__file__).parents[2] / "docs" / "neighbours.md"
TEXTS = ["How many heads work?", "Some do, and some of them do not."]


@pytest.fixture
def names_of(tiny, letters, tmp_path, monkeypatch):
    """What the recipe under a heading leaves behind, given the names that it takes for granted."""

    def run(heading, **given):
        code = re.search(rf"## {heading}\n.*?```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
        assert code is not None
        monkeypatch.chdir(tmp_path)
        tiny().save_pretrained("model")
        letters.save_pretrained("model")
        write_tasks(tmp_path / "tasks", 6)
        ours = code[1].replace('"demo"', '"model"').replace('"arc_easy"', '"sums"')
        names = {"__name__": "example", "texts": TEXTS} | given
        recipe = tmp_path / "recipe.py"  # nnsight reads the source again
        recipe.write_text(ours.replace("offline=True", 'offline=True, include_path="tasks"'))
        exec(compile(recipe.read_text(), recipe, "exec"), names)
        return names

    return run


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT asks transformers
def test_a_peft_adapter(names_of, tiny, tmp_path):
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(tiny(), peft.LoraConfig(target_modules=["v_proj"], layers_to_transform=[1]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    adapted.save_pretrained(tmp_path / "adapter")
    moved = names_of("A PEFT adapter")["moved"]
    assert (moved[0] == 0).all()  # before the adapted layer
    assert (moved[1] > 0).all()


def test_heads_from_a_circuit_tool(names_of):
    names = names_of("Heads from a circuit tool", nodes=["input", "a0.h1", "a2.h7", "m1", "logits"])
    outcomes = names["run"].outcomes()
    share = 1 - 2 / 24
    assert outcomes.groupby("policy")["share_off"].unique().map(list).to_dict() == {
        "baseline": [0.0], "outside the circuit": [pytest.approx(share)]
    }  # fmt: skip


def test_a_pruned_checkpoint_where_only_stock_classes_load(names_of):
    names = names_of("A pruned checkpoint where only stock classes load")
    served, model = names["served"], names["model"]
    assert type(served).__module__.startswith("transformers.models.")
    assert served.config.num_key_value_heads < model.config.num_key_value_heads
    assert served.num_parameters() < model.num_parameters()


def test_nnsight(names_of):
    pytest.importorskip("nnsight", reason="nnsight is not installed")
    names = names_of("nnsight")
    model, inputs = names["model"], names["inputs"]
    assert names["traced"]._module is model
    with hc.instrument(model, policy=hc.Fixed([(0, 1), (2, 3)])), torch.no_grad():
        expected = model(input_ids=inputs).logits
    torch.testing.assert_close(names["logits"], expected)
    assert not torch.allclose(model(input_ids=inputs).logits, expected)
    same = hc.measure_heads(model, TEXTS, tokenizer=names["tokenizer"])
    np.testing.assert_array_equal(names["table"]["fhon"], same["fhon"])


def test_transformer_lens(names_of):
    pytest.importorskip("transformer_lens", reason="TransformerLens is not installed")
    names = names_of("TransformerLens")
    np.testing.assert_allclose(names["norms"].numpy(), names["table"]["ahon"][:, 1], rtol=1e-4)
    with pytest.raises(hc.HeadcountError, match="is wrapped by TransformerLens"):
        hc.measure_heads(names["model"], TEXTS, tokenizer=names["tokenizer"])
