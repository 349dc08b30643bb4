"""Adapted models: held to hooks and matrices on the adapted model itself, one text at a time; or refused by name."""

import numpy as np
import pytest
import torch

from headcount.errors import ModelError
from headcount.measure import measure_heads
from headcount.models.instrument import instrument

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT asks transformers

ROWS = [[5, 6, 7, 8, 9, 10, 11], [3, 4, 5, 6]]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]


def adapted(tiny, config, *, seed=1):
    """A tiny model with an adapter that changes it: PEFT's begin by changing nothing."""
    return at_random(peft.get_peft_model(tiny(initializer_range=0.2, attn_implementation="eager"), config), seed=seed)


def at_random(model, *, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "ia3_" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def by_hand(model):
    """ahon, fhon and awft ``[example, layer, head]`` of the model as it is, from its own eager attention."""
    attentions = [module for module in model.modules() if type(module).__name__ == "LlamaAttention"]
    found = {name: np.zeros((len(ROWS), 3, 8)) for name in ("ahon", "fhon", "awft")}
    for example, row in enumerate(ROWS):
        inputs: dict[int, torch.Tensor] = {}
        handles = [
            module.o_proj.register_forward_pre_hook(
                lambda _, args, layer=layer, inputs=inputs: inputs.update({layer: args[0]})
            )
            for layer, module in enumerate(attentions)
        ]
        with torch.no_grad():
            weights = model(input_ids=torch.tensor([row]), output_attentions=True).attentions
            for handle in handles:
                handle.remove()
            for layer, module in enumerate(attentions):
                outputs = inputs[layer][0].view(len(row), 8, 8)  # [token, head, head_dim]
                found["ahon"][example, layer] = outputs.norm(dim=-1).mean(0)
                found["awft"][example, layer] = weights[layer][0, :, :, 0].mean(-1)
                nothing = module.o_proj(torch.zeros(len(row), 64))
                for head in range(8):
                    alone = torch.zeros_like(outputs)
                    alone[:, head] = outputs[:, head]
                    contribution = module.o_proj(alone.flatten(1)) - nothing
                    found["fhon"][example, layer, head] = contribution.norm(dim=-1).mean()
    return found


def assert_measured_by_hand(model):
    measured = measure_heads(model, ROWS)
    for name, expected in by_hand(model).items():
        np.testing.assert_allclose(measured[name], expected, rtol=1e-4, err_msg=name)
    return measured


def lora(**options):
    return peft.LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=TARGETS, **options)


@pytest.mark.parametrize(
    "config",
    [
        lora(lora_dropout=0.1),
        lora(use_dora=True),
        lora(use_rslora=True, bias="all"),
        lora(modules_to_save=["lm_head"]),
        peft.IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "o_proj"], feedforward_modules=["o_proj"]),
    ],
)
def test_adapted_weights_are_the_ones_that_are_measured(tiny, config):
    measured = assert_measured_by_hand(adapted(tiny, config))
    base = measure_heads(tiny(initializer_range=0.2, attn_implementation="eager"), ROWS)
    assert measured.model_fingerprint != base.model_fingerprint
    assert not np.allclose(measured["ahon"], base["ahon"], rtol=1e-2)


def test_the_adapter_that_is_active_counts_and_the_fingerprint_says_which(tiny):
    model = adapted(tiny, lora())
    model.add_adapter("second", lora())
    at_random(model, seed=2)
    seen = [assert_measured_by_hand(model)]
    model.set_adapter("second")
    seen.append(assert_measured_by_hand(model.eval()))
    with model.disable_adapter():
        seen.append(assert_measured_by_hand(model))
    assert len({measured.model_fingerprint for measured in seen}) == 3
    base = measure_heads(tiny(initializer_range=0.2, attn_implementation="eager"), ROWS, scores=["ahon"])
    np.testing.assert_allclose(seen[2]["ahon"], base["ahon"], rtol=1e-5)
    model.merge_adapter()
    np.testing.assert_allclose(assert_measured_by_hand(model)["fhon"], seen[1]["fhon"], rtol=1e-4)


def test_dropout_of_an_adapter_is_noticed(tiny):
    model = adapted(tiny, lora(lora_dropout=0.5))
    expected = measure_heads(model, ROWS)
    model.get_submodule("base_model.model.model.layers.1.self_attn.q_proj.lora_dropout").train()
    with pytest.raises(ModelError, match=r"lora_dropout.*Call model\.eval\(\)"), instrument(model):
        pass
    assert measure_heads(model, ROWS).equals(expected)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), "PROMPT_TUNING puts virtual tokens"),
        (peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), "PREFIX_TUNING puts virtual tokens"),
        (
            peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=16),
            "P_TUNING puts virtual tokens",
        ),
        (
            peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=4, adapter_layers=2),
            "ADAPTION_PROMPT adds attention of its own",
        ),
        (lora(alora_invocation_tokens=[7, 8]), "LORA changes weights in the middle of a text"),
    ],
)
def test_adapters_that_no_rule_would_count_right_are_refused_by_name(tiny, config, message):
    model = adapted(tiny, config)
    with pytest.raises(ModelError, match=message):
        measure_heads(model, ROWS)
    with pytest.raises(ModelError, match=message), instrument(model):
        pass


def test_an_adapter_for_each_example_is_refused(tiny):
    model = adapted(tiny, lora())
    tokens = torch.tensor([ROWS[0], ROWS[0]])
    with instrument(model, scores=["fhon"]), pytest.raises(ModelError, match="adapter_names"):
        model(input_ids=tokens, adapter_names=["default", "__base__"])
