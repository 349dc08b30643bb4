"""Removed neurons: a checkpoint that a stock class loads, or the modelling file, with the logits of the model with them off."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from headcount.errors import InputError, ModelError
from headcount.models.instrument import instrument
from headcount.models.observe import mlps_of, units_of
from headcount.policies import Fixed
from headcount.removal.choose import select_heads
from headcount.removal.fitting import Distillation, Fitting
from headcount.removal.neurons import replace_neurons
from headcount.removal.prune import Checkpoint, prune_heads
from headcount.removal.selection import Selection
from headcount.units import UnitSet
from tests.models.families import build

TOKENS = torch.randint(3, 256, (2, 20), generator=torch.Generator().manual_seed(0))
FITTING = Fitting(rows=[row.tolist() for row in TOKENS])
#: Gated, fused, plain, transposed, in parallel to attention, with biases and without.
FAMILIES = (
    *(
        "apertus",
        "arcee",
        "cohere",
        "ernie4_5",
        "exaone4",
        "gemma2",
        "gemma3_text",
        "glm4",
        "gpt2",
        "gpt_neox",
        "granite",
    ),
    *(
        "llama",
        "mistral",
        "nemotron",
        "olmo2",
        "opt",
        "phi",
        "phi3",
        "qwen2",
        "qwen3",
        "smollm3",
        "stablelm",
        "starcoder2",
    ),
)


def select(model, neurons):
    return Selection.of(model, neurons, name="tiny", kind="neuron", chosen={"score": "by hand"})


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits


def off(model, neurons):
    with instrument(model, policy=Fixed(UnitSet(neurons)), unit="neuron"):
        return logits(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_class_loads_a_uniform_cut(family, tmp_path):
    model = build(family)
    before, layers = logits(model), units_of(model, "neuron").layers
    selection = select_heads(model, FITTING, share=0.25, kind="neuron")
    result = prune_heads(model, selection, tmp_path / "smaller")
    assert result.loaded == "stock"
    smaller = AutoModelForCausalLM.from_pretrained(tmp_path / "smaller").eval()
    assert type(smaller) is type(model)
    widths = [
        (old.num_neurons, new.num_neurons) for old, new in zip(layers, units_of(smaller, "neuron").layers, strict=True)
    ]
    assert all(new == old - old // 4 for old, new in widths)
    torch.testing.assert_close(logits(smaller), off(model, selection.heads), rtol=1e-4, atol=1e-4)
    assert (logits(smaller) - before).abs().max() > 1e-2
    assert torch.equal(logits(model), before)
    assert result.savings is not None
    assert result.savings.num_parameters == (model.num_parameters(), smaller.num_parameters())


@pytest.mark.parametrize("family", ["gpt2", "llama", "phi3", "starcoder2"])
def test_modelling_file_loads_an_uneven_cut(family, tmp_path):
    model = build(family)
    neurons = [(0, 3), (2, 0), (2, 95), (2, 17)]
    result = prune_heads(model, select(model, neurons), tmp_path / "smaller")
    assert result.loaded == "modelling file"
    smaller = AutoModelForCausalLM.from_pretrained(tmp_path / "smaller", trust_remote_code=True).eval()
    width = mlps_of(model)[0].num_neurons
    assert [layer.num_neurons for layer in units_of(smaller, "neuron").layers] == [width - 1, width, width - 3]
    torch.testing.assert_close(logits(smaller), off(model, neurons), rtol=1e-4, atol=1e-4)
    assert smaller.num_parameters() == result.savings.num_parameters[1]


@pytest.mark.parametrize(
    ("family", "loaded"), [("llama", "stock"), ("opt", "stock"), ("gpt2", "stock"), ("qwen2", "modelling file")]
)
def test_mean_is_folded_into_the_bias(family, loaded, tmp_path):
    model = build(family)
    selection = select_heads(model, FITTING, share=0.25, kind="neuron")
    result = prune_heads(model, selection, tmp_path / "smaller", FITTING, how="mean")
    assert result.loaded == loaded
    seen = {}
    for layer, mlp in mlps_of(model).items():
        mlp.down.register_forward_pre_hook(lambda m, args, i=layer: seen.update({i: args[0].reshape(2, 20, -1)}))
    logits(model)
    for layer, mlp in mlps_of(model).items():
        mlp.down._forward_pre_hooks.clear()
        gone = [neuron for of, neuron in selection.heads if of == layer]
        mean = seen[layer][:, 1:].mean((0, 1))  # a text's first token does not count

        def put(m, args, gone=gone, mean=mean):
            values = args[0].clone()
            values[..., gone] = mean[gone]
            return (values,)

        mlp.down.register_forward_pre_hook(put)
    smaller = AutoModelForCausalLM.from_pretrained(tmp_path / "smaller", trust_remote_code=True).eval()
    torch.testing.assert_close(logits(smaller), logits(model), rtol=1e-4, atol=1e-4)


def test_neurons_of_the_lowest_mean_score_go(tmp_path):
    model = build("llama")
    rows = [list(range(5, 25)), list(range(40, 49)), list(range(60, 90))]
    for score in ("rms_res", "ahon"):
        together = select_heads(model, Fitting(rows=rows, batch_tokens=64), share=0.1, score=score, kind="neuron")
        total = 0
        for row in rows:
            with instrument(model, scores=[score], unit="neuron") as probe, torch.no_grad():
                model(torch.tensor([row]))
            total = total + probe.scores[score].values[0]
        for layer in range(3):
            least = total[layer].argsort()[:9]
            assert {neuron for of, neuron in together.heads if of == layer} == {*least.tolist()}
    together.save(tmp_path / "neurons.json")
    assert Selection.load(tmp_path / "neurons.json") == together


def test_zero_filled_weights_compute_the_same(tmp_path):
    model = build("qwen2")
    neurons = [(0, 3), (2, 0), (2, 95)]
    result = prune_heads(model, select(model, neurons), tmp_path / "zeros", checkpoint=Checkpoint(format="zeros"))
    assert result.savings is None
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "zeros")), off(model, neurons))


def test_neurons_and_heads_go_one_after_the_other(tmp_path):
    model = build("llama")
    heads = Selection.of(model, [(0, 1), (1, 5)], name="tiny", kind="head", chosen={})
    prune_heads(model, heads, tmp_path / "heads")
    fewer = AutoModelForCausalLM.from_pretrained(tmp_path / "heads", trust_remote_code=True).eval()
    selection = select_heads(fewer, FITTING, share=0.25, kind="neuron")
    assert prune_heads(fewer, selection, tmp_path / "both").loaded == "modelling file"
    both = AutoModelForCausalLM.from_pretrained(tmp_path / "both", trust_remote_code=True).eval()
    torch.testing.assert_close(logits(both), off(fewer, selection.heads), rtol=1e-4, atol=1e-4)


class Scaled(nn.Linear):
    """What a quantised layer looks like: a Linear of another class."""


def test_refusals(tmp_path):
    model = build("llama")
    with pytest.raises(InputError, match="share of 0.005 is less than one of the 96 neurons of layer 0"):
        select_heads(model, FITTING, share=0.005, kind="neuron")
    with pytest.raises(InputError, match="not taylor"):
        select_heads(model, FITTING, share=0.1, score="taylor", kind="neuron")
    with pytest.raises(InputError, match="in one round"):
        select_heads(model, FITTING, share=0.1, rounds=2, kind="neuron")
    with pytest.raises(InputError, match="none can be excluded"):
        select_heads(model, FITTING, share=0.1, exclude_layers=[1], kind="neuron")
    with pytest.raises(InputError, match="Whole MLPs are not removed"):
        select_heads(model, FITTING, share=0.1, kind="mlp")
    with pytest.raises(InputError, match="Neurons are chosen on texts"):
        select_heads(model, Fitting(), share=0.1, kind="neuron")
    with pytest.raises(InputError, match="All neurons of layer 1 are selected"):
        prune_heads(model, select(model, [(1, i) for i in range(96)]), tmp_path / "none")
    one = select(model, [(1, 0)])
    with pytest.raises(InputError, match="without distilling"):
        prune_heads(model, one, tmp_path / "none", FITTING, distillation=Distillation(epochs=1))
    with pytest.raises(InputError, match="for transformers"):
        prune_heads(model, one, tmp_path / "none", checkpoint=Checkpoint(format="gguf", tokenizer_from="x.gguf"))
    with pytest.raises(InputError, match="refit is for heads"):
        prune_heads(model, one, tmp_path / "none", FITTING, how="refit")
    with pytest.raises(InputError, match="needs calibration texts"):
        replace_neurons(model, UnitSet([(1, 0)]), "mean", Fitting())
    with pytest.raises(ModelError, match="the MLP neurons are alike and the weights are not"):
        prune_heads(build("llama", seed=1), one, tmp_path / "none")
    config = copy.deepcopy(model.config)
    config.update({"intermediate_size": 40})
    narrow = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ModelError, match="layer 0 has 96 neurons there, and layer 0 40 neurons here"):
        prune_heads(narrow, one, tmp_path / "none")
    with pytest.raises(ModelError, match="MixtralForCausalLM .*several maps"):
        select_heads(build("mixtral"), FITTING, share=0.1, kind="neuron")
    mlp = model.model.layers[1].mlp
    mlp.up_proj.__class__ = Scaled
    with pytest.raises(ModelError, match=r"model.layers.1.mlp.up_proj is a Scaled, not a plain projection"):
        prune_heads(model, one, tmp_path / "none")
    assert not (tmp_path / "none").exists()
