"""The engine, ``instrument`` and generation on pretended CUDA devices: the CPU's numbers, and no waiting within a layer."""

import numpy as np
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module

from headcount.attention import ways
from headcount.evaluation.engine import run_plan
from headcount.evaluation.plan import ScoringPlan
from headcount.models.instrument import instrument
from headcount.policies import Fixed, Random, Threshold
from tests.pretended import place, pretended_devices

POLICIES = [None, Threshold("ahon_ln", 0.98), Threshold("awft", 0.2), Random(0.3), Fixed([(1, 2), (2, 0)])]


@pytest.fixture(autouse=True)
def _probed_anew():
    ways._works.cache_clear()
    yield
    ways._works.cache_clear()


@pytest.fixture
def model(tiny):
    return lambda layers=4: tiny(num_hidden_layers=layers, max_position_embeddings=512).requires_grad_(False)


def plan():
    generator = np.random.default_rng(1)
    rows = [generator.integers(3, 256, n).tolist() for n in (20, 33, 7, 48, 48)]
    rows += [rows[0] + rows[2], rows[0] + rows[4][:9]]
    return ScoringPlan.from_requests([(row[:-3], row[-3:]) for row in rows], 512)


def on_one(model):
    return place(model, lambda name: "cuda:0")


def on_two(model):
    """Layers on two devices, with the hooks that accelerate's ``dispatch_model`` gives them."""

    def device_of(name):
        if ".layers." in name:
            return f"cuda:{int(name.split('.layers.')[1][0]) // 2}"
        return "cuda:0" if "embed" in name or "rotary" in name else "cuda:1"

    place(model, device_of)
    whole = AlignDevicesHook(
        execution_device=torch.device("cuda:0"),
        io_same_device=True,
        place_submodules=False,
        skip_keys="past_key_values",
    )
    add_hook_to_module(model, whole)
    names = ["model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"]
    for name in (*names, *(f"model.layers.{i}" for i in range(len(model.model.layers)))):
        hook = AlignDevicesHook(
            execution_device=torch.device(device_of(f"{name}.")), place_submodules=False, skip_keys="past_key_values"
        )
        add_hook_to_module(model.get_submodule(name), hook)
    return model


@pytest.mark.parametrize("on", [on_one, on_two])
def test_the_engine_gives_the_numbers_of_the_cpu_and_waits_for_nothing_within_a_layer(model, on, caplog):
    def run(model):
        return run_plan(model, plan(), POLICIES, scores="all", batch_tokens=96)

    expected = run(model())
    with pretended_devices(2) as devices:
        there = on(model())
        run(there)
        devices.waits.clear()
        found = run(there)  # probes and factors are known by now
    assert devices.attended
    for ours, theirs in zip(found.of_policies, expected.of_policies, strict=True):
        np.testing.assert_allclose(
            [nats for nats, _ in ours.loglikelihoods], [nats for nats, _ in theirs.loglikelihoods], atol=1e-5
        )
        np.testing.assert_array_equal(ours.share_off, theirs.share_off)
    for name in expected.scores.data_vars:
        np.testing.assert_allclose(found.scores[name], expected.scores[name], rtol=1e-4, atol=1e-5)
    assert devices.within_layers() == {}


@pytest.mark.parametrize("decide", ["prompt", "running"])
@pytest.mark.parametrize("policy", POLICIES[1:], ids=lambda policy: policy.label)
@pytest.mark.parametrize("on", [on_one, on_two])
def test_generation_goes_on_as_on_the_cpu_and_waits_for_nothing_within_a_layer(model, on, policy, decide):
    tokens = torch.tensor(np.random.default_rng(3).integers(3, 256, (2, 12)))
    mask = torch.ones_like(tokens)
    mask[1, :4] = 0

    def generate(model, device):
        with instrument(model, policy=policy, scores="all", decide=decide) as probe, torch.no_grad():
            options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
            answer = model.generate(input_ids=tokens.to(device), attention_mask=mask.to(device), **options)
        return answer.cpu(), probe

    expected, seen = generate(model(), "cpu")
    with pretended_devices(2) as devices:
        there = on(model())
        generate(there, "cuda:0")
        devices.waits.clear()
        found, probe = generate(there, "cuda:0")
    assert found.tolist() == expected.tolist()
    np.testing.assert_array_equal(probe.off, seen.off)
    np.testing.assert_allclose(probe.share_off, seen.share_off)
    assert devices.within_layers() == {}


def test_how_often_the_host_waits_does_not_grow_with_the_layers(model):
    def waits(layers):
        with pretended_devices() as devices:
            there = on_one(model(layers))
            tokens = torch.arange(3, 15)[None].to("cuda:0")
            for _ in range(2):  # the second time, probes and factors are known
                devices.waits.clear()
                run_plan(there, plan(), [None], scores="all", batch_tokens=4096)
                with instrument(there, policy=POLICIES[1], scores="all", decide="running"), torch.no_grad():
                    there.generate(input_ids=tokens, max_new_tokens=4, do_sample=False, pad_token_id=0)
            return devices.of_headcount()

    assert 0 < waits(2) == waits(6)
