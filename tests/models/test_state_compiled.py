"""Compiled models are measured as what was compiled."""

import pytest
import torch
from transformers import (
    CompileConfig,
)

from headcount.errors import ModelError
from headcount.measure import measure_heads
from headcount.models.instrument import instrument
from tests.models.measured import POLICY, ROWS, TOKENS, assert_measured_as, layers_compiled, logits


def whole(model):
    return torch.compile(model, backend="eager")


def in_place(model):
    model.compile(backend="eager")
    return model


def forward(model):
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def projections(model):
    for layer in model.model.layers:
        layer.self_attn.o_proj.compile(backend="eager")
    return model


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("compiled", [whole, in_place, forward, layers_compiled, projections])
def test_a_compiled_model_is_measured_as_what_was_compiled(tiny, compiled):
    model = compiled(tiny())
    assert_measured_as(model, tiny())
    assert_measured_as(model, tiny())  # what it computed between the blocks is compiled now


@pytest.mark.usefixtures("fresh_compiler")
def test_blocks_that_end_in_another_order_leave_the_compiler_as_it_was(tiny):
    calls = []

    def backend(graph, _):
        calls.append(graph)
        return graph.forward

    first, second = instrument(tiny()), instrument(tiny())
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    compiled = torch.compile(lambda x: x + 1, backend=backend)
    compiled(torch.ones(1))
    assert not calls
    second.__exit__(None, None, None)
    compiled(torch.ones(1))
    assert calls


@pytest.mark.usefixtures("fresh_compiler")
def test_generation_that_compiles_its_steps_is_that_of_the_plain_model(tiny):
    compiling = CompileConfig(backend="eager", mode=None)
    compiling._compile_all_devices = True
    options = {"attention_mask": torch.ones_like(TOKENS), "max_new_tokens": 4, "do_sample": False}
    static = options | {"cache_implementation": "static", "compile_config": compiling}
    model, plain = tiny(), tiny()
    before = plain.generate(TOKENS, **options)
    with instrument(plain, policy=POLICY):
        zeroed = plain.generate(TOKENS, **options)
    assert torch.equal(model.generate(TOKENS, **static), before)
    for _ in range(2):
        with instrument(model, policy=POLICY):
            assert torch.equal(model.generate(TOKENS, **static), zeroed)
        assert torch.equal(model.generate(TOKENS, **static), before)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore")
def test_headcount_inside_a_compiled_function_is_refused(tiny):
    model = tiny()
    before = logits(model)
    with pytest.raises(ModelError, match="inside a function that torch.compile compiles"):
        torch.compile(lambda: measure_heads(model, ROWS), backend="eager")()
    assert torch.equal(logits(model), before)
