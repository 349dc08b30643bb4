"""Models in the states in which they are used: measured as the plain model is, or refused by what they are."""

from functools import partial

import accelerate
import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AttentionInterface,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import headcount as hc
from headcount.errors import InputError, ModelError
from headcount.measure import measure_heads
from headcount.models.instrument import instrument
from headcount.models.loading import fingerprint, outline
from headcount.models.observe import units_of
from headcount.models.state import input_device, own_settings
from tests.models.families import COMMON
from tests.models.measured import POLICY, ROWS, TOKENS, assert_measured_as, layers_compiled, logits

# Training mode


def modes(model):
    return {name: module.training for name, module in model.named_modules()}


@pytest.mark.parametrize("part", ["", "model.layers.1.mlp"])
def test_own_readings_are_made_in_evaluation_mode_and_leave_each_module_in_its_own(tiny, part):
    model = tiny("phi", resid_pdrop=0.3, embd_pdrop=0.1)
    expected = measure_heads(model, ROWS)
    model.get_submodule(part).train()
    before = modes(model)
    assert measure_heads(model, ROWS).equals(expected)
    assert modes(model) == before
    with pytest.raises(InputError):
        measure_heads(model, ROWS, scores="ahom")
    assert modes(model) == before


@pytest.mark.parametrize("part", ["", "model.layers.1.mlp"])
def test_a_block_refuses_a_model_with_a_module_in_training_mode(tiny, part):
    model = tiny("phi", resid_pdrop=0.3)
    model.get_submodule(part).train()
    with pytest.raises(ModelError, match=r"training mode.*Call model\.eval\(\)"), instrument(model):
        pass
    model.eval()
    with instrument(model, scores=["ahon"]) as probe:
        model.get_submodule(part).train()
        with pytest.raises(ModelError, match="training mode"):
            logits(model)
        model.eval()
        logits(model)
    assert probe.scores.sizes["example"] == 1


# Offloaded


def by_hand(model, tmp_path):
    return accelerate.cpu_offload(model, execution_device="cpu")


def to_disk(model, tmp_path):
    return accelerate.disk_offload(model, tmp_path / "weights", execution_device="cpu")


def with_hook(model, tmp_path):
    return accelerate.cpu_offload_with_hook(model, execution_device="cpu")[0]


def blocks_as_a_whole(model, tmp_path):
    return accelerate.cpu_offload(model, execution_device="cpu", preload_module_classes=["LlamaDecoderLayer"])


def dispatched(model, tmp_path):
    places = dict.fromkeys(("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb"), "cpu")
    places |= {"model.layers.1": "disk", "model.layers.2": "disk", "lm_head": "cpu"}
    return accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path / "weights")


@pytest.mark.parametrize(
    ("offload", "tied"),
    [(by_hand, True), (to_disk, False), (with_hook, False), (blocks_as_a_whole, True), (dispatched, False)],
)
@pytest.mark.filterwarnings("ignore:Some parameters are on the meta device")
def test_an_offloaded_model_is_measured_with_its_own_fingerprint(tiny, tmp_path, offload, tied):
    plain = tiny(tie_word_embeddings=tied)
    offloaded = offload(tiny(tie_word_embeddings=tied), tmp_path)
    assert input_device(offloaded) == torch.device("cpu")
    assert_measured_as(offloaded, plain)
    assert fingerprint(offloaded, dtype=torch.bfloat16) == fingerprint(plain, dtype=torch.bfloat16)


def test_a_fingerprint_tells_which_adapters_are_active_and_how_strongly(tiny):
    model = tiny()
    adapted = model.model.layers[0].self_attn.o_proj
    found = [fingerprint(model)]
    adapted.disable_adapters = False
    for active, scaling in (["a"], 1.0), (["b"], 1.0), (["b"], 2.0):
        adapted.active_adapters, adapted.scaling = active, {"a": scaling, "b": scaling}
        found.append(fingerprint(model))
    adapted.disable_adapters = True
    found.append(fingerprint(model))
    assert len({*found}) == 5
    assert found[0] == fingerprint(tiny())


def test_a_model_without_weights_is_refused(tiny, subjects):
    for model in (outline(subjects / "model")[0], tiny().to("meta")):
        with pytest.raises(ModelError, match="have no values.* device meta"):
            measure_heads(model, ROWS)


# What is no causal language model


class Wrapper(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner


def of(kind, **changes):
    return lambda: kind(LlamaConfig(**(COMMON | changes))).eval()


SMALL_T5 = {"vocab_size": 256, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 4}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: "gpt2", "'gpt2' is a name, and a loaded model is needed"),
        (lambda: None, "A transformers model is needed, not None"),
        (lambda: ROWS, "A transformers model is needed, not"),
        (lambda: Wrapper(of(LlamaModel)()), "Wrapper is not a transformers model"),
        (lambda: nn.DataParallel(of(LlamaModel)()), r"DataParallel spreads .* Give the model inside: model\.module"),
        (of(LlamaModel), "LlamaModel does not predict tokens"),
        (of(LlamaForSequenceClassification), "LlamaForSequenceClassification does not predict tokens"),
        (lambda: T5ForConditionalGeneration(T5Config(**SMALL_T5)).eval(), "is an encoder-decoder"),
    ],
)
def test_what_is_no_causal_language_model_is_refused_by_what_it_is(given, message, letters):
    model = given()
    with pytest.raises(ModelError, match=message):
        measure_heads(model, ROWS)
    if isinstance(model, nn.Module):  # a name would be loaded
        with pytest.raises(ModelError, match=message):
            hc.evaluate(model, ["arc_easy"], tokenizer=letters)


def test_a_tokenizer_in_the_models_place_is_refused_and_the_reverse(tiny, letters):
    with pytest.raises(ModelError, match=r"A tokenizer \(.*\) stands in the model's place"):
        measure_heads(letters, ["ab"], tokenizer=tiny())
    for tokenizer in (tiny(), "gpt2", 3):
        with pytest.raises(InputError, match="Give the model's tokenizer"):
            measure_heads(tiny(), ["ab"], tokenizer=tokenizer)


def test_an_encoder_is_refused(letters):
    small = {"vocab_size": 256, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = BertModel(BertConfig(**small, intermediate_size=32)).eval()
    with pytest.raises(ModelError, match="BertSelfAttention is not causal"), instrument(model):
        pass


def test_a_model_without_attention_is_refused(tiny):
    with pytest.raises(ModelError, match="MambaForCausalLM has no attention layers"):
        units_of(tiny("mamba"))


def test_the_heads_of_a_body_are_those_of_its_language_model(tiny):
    model = tiny()
    with instrument(model, scores="all") as expected:
        logits(model)
    with instrument(model.model, scores="all") as found, torch.no_grad():
        model.model(TOKENS)
    assert found.scores.equals(expected.scores)


# Settings around it


def test_autocast_rounds_what_the_model_computes_and_nothing_that_is_measured(tiny):
    model = tiny(initializer_range=0.2)
    seen, handles = {}, []
    for place, layer in enumerate(model.model.layers):
        keep = partial(lambda place, _, args: seen.setdefault(place, []).append(args[0]), place)
        handles.append(layer.self_attn.o_proj.register_forward_pre_hook(keep))
    with torch.autocast("cpu", torch.bfloat16):
        with instrument(model, scores=["ahon", "fhon"]) as probe:
            within = logits(model)
        before = logits(model)
    for handle in handles:
        handle.remove()
    expected = {place: calls[-2].double().unflatten(-1, (8, 8)) for place, calls in seen.items()}
    for layer, output in expected.items():  # [1, token, head, head_dim]
        weight = model.model.layers[layer].self_attn.o_proj.weight.double().unflatten(-1, (8, 8))  # [hidden, head, dim]
        contribution = torch.einsum("bthd,ohd->btho", output, weight).norm(dim=-1).mean(1)[0]
        # What reaches o_proj was rounded to bfloat16, by at most 2⁻⁹ of it; what is measured was not.
        np.testing.assert_allclose(probe.scores["fhon"][0, layer], contribution.detach(), rtol=1e-3)
        np.testing.assert_allclose(probe.scores["ahon"][0, layer], output.norm(dim=-1).mean(1)[0], rtol=1e-3)
    assert within.dtype == before.dtype == torch.bfloat16
    torch.testing.assert_close(within, before, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_products_of_float32_are_not_rounded_within_our_own(precision):
    """TF32 keeps 11 bits and bfloat16 8: relative errors of 5e-4 and 4e-3."""
    torch.manual_seed(0)
    a, b = torch.randn(2, 256, 256)
    torch.set_float32_matmul_precision(precision)
    try:
        with own_settings():
            assert {torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision} <= {
                "ieee",
                "none",
            }
            exact = a.double() @ b.double()
            assert ((a @ b) - exact).norm() < 1e-6 * exact.norm()
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")


LEVELS = [("generic", "all"), ("cuda", "all"), ("mkldnn", "all"), ("cuda", "matmul"), ("mkldnn", "matmul")]
get_precision, set_precision = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter


@pytest.fixture
def _precisions_as_they_come():
    for level in LEVELS:
        set_precision(*level, "none")
    yield
    for level in LEVELS:
        set_precision(*level, "none")


@pytest.mark.usefixtures("_precisions_as_they_come")
@pytest.mark.parametrize(
    "settings",
    [
        {("generic", "all"): "tf32"},
        {("mkldnn", "all"): "tf32"},
        {("cuda", "all"): "tf32", ("mkldnn", "all"): "bf16"},
        {("generic", "all"): "tf32", ("cuda", "matmul"): "tf32", ("mkldnn", "matmul"): "bf16"},
        {("generic", "all"): "tf32", ("mkldnn", "all"): "tf32"},
        {("generic", "all"): "ieee", ("cuda", "matmul"): "tf32"},
    ],
)
def test_precisions_are_inherited_afterwards_as_they_were_before(settings):
    def told():
        """What is in force at each level, as it is and with each level above set to something else."""
        said = [get_precision(*level) for level in LEVELS]
        for above in LEVELS[:3]:
            own = settings.get(above, "none")
            for other in ("ieee", "tf32"):
                set_precision(*above, other)
                said += [get_precision(*level) for level in LEVELS]
            set_precision(*above, own)
        return said

    for level, precision in settings.items():
        set_precision(*level, precision)
    before = told()
    with own_settings():
        assert {get_precision(*level) for level in LEVELS[3:]} <= {"ieee", "none"}
    assert told() == before


def test_defaults_of_pytorch_change_nothing(tiny):
    model = tiny()
    expected = measure_heads(model, ROWS)
    with torch.device("meta"):
        found = measure_heads(model, ROWS)
        with instrument(model, policy=POLICY, scores="all") as probe, torch.no_grad():
            model(torch.tensor(ROWS[:1], device="cpu"))
    assert found.equals(expected)
    assert probe.scores["ahon"].notnull().all()
    for dtype in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            assert measure_heads(model, ROWS).equals(expected)
            assert torch.get_default_dtype() == dtype
        finally:
            torch.set_default_dtype(torch.float32)


@pytest.mark.filterwarnings("ignore")
def test_int8_that_rounds_a_whole_batch_is_refused_and_half_precision_is_measured(tiny):
    quantised = torch.ao.quantization.quantize_dynamic
    with pytest.raises(ModelError, match="depend on what else is in the batch"):
        measure_heads(quantised(tiny(), {nn.Linear}, dtype=torch.qint8), ROWS)
    halved = tiny()
    with torch.no_grad():
        for module in halved.modules():
            if isinstance(module, nn.Linear):
                module.weight.copy_(module.weight.half())
    expected = measure_heads(halved, ROWS)
    found = measure_heads(quantised(tiny(), {nn.Linear}, dtype=torch.float16), ROWS)
    for name in ("ahon", "fhon", "awft"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("offloading", [True, False])
def test_weights_that_cannot_be_replaced_are_refused_before_anything_is_done(tiny, tmp_path, offloading):
    model = by_hand(tiny(), tmp_path) if offloading else layers_compiled(tiny())
    selection = hc.Selection.of(tiny(), [(0, 0)], name="", kind="head", chosen={})
    for change in (
        lambda: hc.select_heads(model, hc.Fitting(rows=ROWS), share=0.2),
        lambda: hc.prune_heads(model, selection, tmp_path / "smaller"),
    ):
        with pytest.raises(ModelError, match="replacing heads"):
            change()
    assert not (tmp_path / "smaller").exists()


def test_an_attention_function_of_somebody_else_is_refused_and_transformers_own_are_not(tiny):
    model = tiny()
    AttentionInterface.register("halved", lambda *args, **options: sdpa_attention_forward(*args, **options))
    try:
        model.set_attn_implementation("halved")
        with pytest.raises(ModelError, match="attends by 'halved'"):
            measure_heads(model, ROWS)
    finally:
        del AttentionInterface._global_mapping["halved"]
    for name in ("eager", "sdpa", "flex_attention"):
        model.set_attn_implementation(name)
        measure_heads(model, ROWS, scores=["ahon"])
        assert model.config._attn_implementation == name


def test_a_forward_put_in_by_somebody_else_stays(tiny):
    model, calls = tiny(), []
    layer = model.model.layers[1]
    own = layer.forward

    def forward(*args, **options):
        calls.append(1)
        return own(*args, **options)

    layer.forward = forward
    measure_heads(model, ROWS)
    assert layer.__dict__["forward"] is forward
    assert calls
