import pytest
import torch

from headcount.models.loading import load, outline
from headcount.study.cost import ModelSize, calibration_cost, machine_rate, run_cost, study_costs
from headcount.study.spec import Study
from tests.models.families import build


def test_the_cost_of_a_run_worked_by_hand():
    size = ModelSize(parameters=100, projection=50, attention=8, heads=6)
    # Two inputs of 3 and 5 tokens. A pass: 2 · (100 · 8 + 8 · (9 + 25)) = 2,144; a scored position each: 2 · 50 · 2 = 200.
    cost = run_cost(size, [3, 5], questions=1, policies=3, scores=2)
    assert cost.passes == 1 + 1 + 3
    assert cost.forwards == 10
    assert cost.tokens == 8
    assert cost.operations == 2144 + 4 * (2144 + 200)
    assert cost.score_bytes == 2 * 6 * 2 * 4
    assert cost.outcome_bytes == 4 * 130
    assert cost.hours(1000) == pytest.approx(cost.operations / 3.6e6)
    measured = run_cost(size, [3, 5], questions=0, policies=3, scores=0, bytes_a_score=2)
    assert (measured.passes, measured.operations, measured.score_bytes, measured.outcome_bytes) == (1, 2144, 0, 0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_operations_are_those_that_pytorch_counts(tiny, family):
    from torch.utils.flop_counter import FlopCounterMode

    model = tiny(family)
    model.set_attn_implementation("eager")
    length = 24
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.base_model(input_ids=torch.arange(5, 5 + length)[None], use_cache=False)
    size = ModelSize.of(model)
    counted = counter.get_total_flops()
    # PyTorch's eager attention computes the masked half as well, which a causal kernel does not.
    expected = size.operations([length]) + 2 * size.attention * length**2
    assert expected == pytest.approx(counted, rel=0.12)


def test_of_a_mixtures_experts_those_that_are_chosen_count(tiny):
    model = tiny("mixtral", num_local_experts=4, num_experts_per_tok=1)
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    others = sum(p.numel() for name, p in model.model.layers.named_parameters() if ".experts." not in name)
    assert experts > others > 0
    assert ModelSize.of(model).parameters == experts / 4 + others + model.model.norm.weight.numel()


def test_a_models_size_without_its_weights(subjects):
    whole, _ = load(subjects / "model")
    built, tokenizer = outline(subjects / "model")
    assert {parameter.device.type for parameter in built.parameters()} == {"meta"}
    assert ModelSize.of(built) == ModelSize.of(whole)
    assert tokenizer("heads")["input_ids"]


def test_the_cost_of_a_study_is_counted_on_its_inputs(fields, subjects, monkeypatch):
    monkeypatch.setattr("headcount.study.subject.load", lambda *_, **__: pytest.fail("a model was loaded"))
    study = Study(**fields | {"data": ["sums", {"texts": str(subjects / "text.jsonl"), "limit": 3}], "seeds": [0, 1]})
    costs = study_costs(study)
    sums, texts = costs[fields["models"][0], "sums"], costs[fields["models"][0], "text"]
    # Untouched, two scores at two shares, random heads at two shares and two seeds.
    assert sums.passes == 1 + 1 + 4 + 4
    assert (texts.passes, texts.inputs, texts.tokens) == (1, 3, 6 + 12 + 18)
    assert sums.score_bytes == sums.inputs * 16 * 3 * 4
    assert study_costs(Study(**fields, ask=False))[fields["models"][0], "sums"].passes == 1
    assert study_costs(Study(**fields, summaries=True))[fields["models"][0], "sums"].score_bytes == 0


def test_the_speed_of_this_machine_is_measured(fields):
    study = Study(**fields)
    assert 1e8 < machine_rate(study.models[0], study, seconds=0.02) < 1e16


def test_what_a_calibration_takes_by_hand():
    # 3 layers of 8 heads × 8 = 64 outputs and a block input of 64: sums of products of 128² float64 a layer.
    model, lengths = build("llama"), [10, 20]
    options = {"covariances": True, "sensitivity": True, "gradients": True, "memory": 10**9, "batch_tokens": 30}
    of_sums, squares = 3 * 8 * 128**2, 3 * 64**2
    whole = calibration_cost(model, lengths, **options)
    # Means, first means, input mean, and upper halves of the covariance and of the gradients' products, float32.
    assert whole.file_bytes == 4 * 3 * (64 + 64 + 64 + 128 * 129 // 2 + 64 * 65 // 2)
    # All sums, two more of one layer while a batch is added, all covariances in float32, and the gradients' products.
    assert whole.memory_bytes == of_sums + 2 * of_sums // 3 + of_sums // 2 + 4 * squares
    # Queries and outputs 64², keys and values 64 · 16, the MLP's three 64 · 96, two norms; and one norm after the last layer.
    parameters = 3 * (2 * 64 * 64 + 2 * 64 * 16 + 3 * 64 * 96 + 2 * 64) + 64
    read = 2 * (parameters * 30 + 3 * 8 * 8 * (10**2 + 20**2))
    products = 30 * 3 * 2 * 128**2
    backward = 3 * read + 4 * 64 * 256 * 30 + 2 * 30 * squares
    assert whole.operations == read + products + backward
    # A layer at a time, what enters the layer that a group begins with is kept: a float32 hidden state a token.
    narrow = calibration_cost(model, lengths, **options | {"memory": of_sums // 3})
    assert narrow.memory_bytes == 3 * of_sums // 3 + of_sums // 2 + 4 * squares + 30 * 64 * 4
    assert narrow.operations == whole.operations
    # Of means alone, what the way back takes: logits three times, and what enters each layer.
    means = calibration_cost(model, lengths, **options | {"covariances": False, "gradients": False})
    assert means.file_bytes == 4 * 3 * (64 + 64)
    assert means.memory_bytes == 12 * 30 * 256 + 30 * 64 * 3 * 4
    assert means.operations == read + backward - 2 * 30 * squares
    bare = calibration_cost(
        model, lengths, **options | {"covariances": False, "gradients": False, "sensitivity": False}
    )
    assert (bare.memory_bytes, bare.operations) == (0, read)
