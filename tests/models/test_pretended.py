"""The engine, ``instrument`` and generation on pretended CUDA devices: the CPU's numbers, and no waiting within a layer."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, attach_align_device_hook

from headcount import devices
from headcount.attention import ways
from headcount.attention.blocks import attend_in_blocks
from headcount.attention.gpu import attend_on_gpu
from headcount.calibrating import calibrate
from headcount.evaluation.engine import run_plan
from headcount.evaluation.plan import ScoringPlan
from headcount.models import sensitivity
from headcount.models.instrument import instrument
from headcount.policies import Fixed, Random, Threshold
from headcount.replacements import Kept, Linear
from tests.attention.reference import OF_WEIGHTS, make
from tests.models.families import FAMILIES
from tests.pretended import OnDevice, place, pretended_devices

POLICIES = [None, Threshold("ahon_ln", 0.98), Threshold("awft", 0.2), Random(0.3), Fixed([(1, 2), (2, 0)])]


@pytest.fixture(autouse=True)
def _probed_anew(monkeypatch):
    """No way probed yet; on the devices PyTorch's operators attend, where a test says nothing else."""
    monkeypatch.setenv(ways.VARIABLE, "fused")
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


def on_one_and_offloaded(model):
    """The later layers in main memory, from where accelerate fetches each of their weights whenever it is used."""
    first = len(model.model.layers) // 2
    place(model, lambda name: "cpu" if ".layers." in name and int(name.split(".")[2]) >= first else "cuda:0")
    for layer in model.model.layers[first:]:
        attach_align_device_hook(layer, execution_device=torch.device("cuda:0"), offload=True)
    assert model.model.layers[first].self_attn.o_proj.weight.is_meta
    return model


DEVICES = [on_one, on_two, on_one_and_offloaded]


@pytest.mark.parametrize("on", DEVICES)
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
@pytest.mark.parametrize("on", DEVICES)
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


def interpreting(monkeypatch):
    """Our own kernel in Triton's interpreter, which reads main memory; the inputs and measurements it was called for."""
    served = []

    def here(of):
        found = {field.name: getattr(of, field.name) for field in fields(of)}
        found |= {name: value.cpu() for name, value in found.items() if isinstance(value, torch.Tensor)}
        return type(of)(**found | ({"rows": here(of.rows)} if found.get("rows") else {}))

    def interpreted(inputs, positions, *, means=False):
        served.append(inputs)
        output, found = attend_on_gpu(here(inputs), here(positions), means=means)
        return output.to("cuda:0"), {name: values.to("cuda:0") for name, values in found.items()}

    monkeypatch.setattr(ways, "attend_on_gpu", interpreted)
    return served


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_our_own_kernel_serves_whole_passes_there(family, tiny, monkeypatch, caplog):
    """In Triton's interpreter, which reads main memory. gemma2 has softcaps and windows, gpt_oss sinks."""
    pytest.importorskip("triton")
    monkeypatch.setenv(ways.VARIABLE, "")
    served = interpreting(monkeypatch)
    tokens, mask = torch.arange(3, 15).view(2, 6), torch.ones(2, 6, dtype=torch.int64)
    mask[1, 4:] = 0

    def measured(model, device):
        with instrument(model, policy=Threshold("ahon_ln", 0.98), scores="all") as probe, torch.no_grad():
            logits = model(tokens.to(device), attention_mask=mask.to(device)).logits
        return logits.cpu(), probe

    def build():
        return tiny(family, **{**FAMILIES[family], "num_hidden_layers": 2}).requires_grad_(False)

    expected, seen = measured(build(), "cpu")
    with pretended_devices():
        there = on_one(build())
        found, probe = measured(there, "cuda:0")
    of_model = [inputs for inputs in served if inputs.query.shape[2] == 6]
    assert len(of_model) == 2
    assert all(inputs.mask is None for inputs in of_model)
    assert [inputs.rows and inputs.rows.window for inputs in of_model] == [
        sliding_window_of(there, i) for i in range(2)
    ]
    assert not [record for record in caplog.records if record.name.startswith("headcount")]
    torch.testing.assert_close(found[mask > 0], expected[mask > 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(probe.off, seen.off)
    for name in seen.scores.data_vars:
        np.testing.assert_allclose(probe.scores[name], seen.scores[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_our_own_kernel_reads_packed_rows_and_what_they_continue_where_they_stand(family, tiny, monkeypatch, caplog):
    """Plain attention stands for the kernel, which takes too long in the interpreter: what it is given and gives is the same."""
    pytest.importorskip("triton")
    monkeypatch.setenv(ways.VARIABLE, "")
    served = []

    def instead(inputs, positions, *, means=False):
        served.append(inputs)
        output, found = attend_in_blocks(inputs.laid_out(), positions, wanted=OF_WEIGHTS)
        found["output_norm"] = torch.linalg.vector_norm(output.float(), dim=-1)
        if not means or inputs.mask is not None or output.shape[2] == 1:
            return output, found
        at_last = positions.at(found["output_norm"], positions.last)
        return output, {name: positions.mean(of) for name, of in found.items()} | {"last_output_norm": at_last}

    monkeypatch.setattr(ways, "attend_on_gpu", instead)
    generator = np.random.default_rng(1)
    beginning, *ends = (generator.integers(3, 256, n).tolist() for n in (13, 6, 3, 9))
    asked = ScoringPlan.from_requests([(beginning + end[:-2], end[-2:]) for end in ends], 512)

    def run(model):
        return run_plan(model, asked, [None, POLICIES[1], Fixed([(1, 2)])], scores="all", batch_tokens=96)

    def build():
        return tiny(family, **{**FAMILIES[family], "num_hidden_layers": 2}).requires_grad_(False)

    expected = run(build())
    with pretended_devices():
        found = run(on_one(build()))
    assert not [record for record in caplog.records if record.name.startswith("headcount")]
    packed = [inputs.rows for inputs in served if inputs.rows is not None and inputs.rows.packed]
    assert {rows.keys.shape[1] for rows in packed} == {1, 2}
    for ours, theirs in zip(found.of_policies, expected.of_policies, strict=True):
        nats = [[nats for nats, _ in of.loglikelihoods] for of in (ours, theirs)]
        np.testing.assert_allclose(*nats, atol=1e-5)
        np.testing.assert_array_equal(ours.share_off, theirs.share_off)
    for name in expected.scores.data_vars:
        np.testing.assert_allclose(found.scores[name], expected.scores[name], rtol=1e-4, atol=1e-5)


def sliding_window_of(model, layer):
    kinds = getattr(model.config, "layer_types", None)
    return model.config.sliding_window if kinds and kinds[layer] == "sliding_attention" else None


def test_on_other_devices_the_plain_way_measures_and_says_so_once(caplog):
    """MPS has neither our kernels nor PyTorch's operators with log-sum-exp; ``meta`` stands for it here."""
    ways._say_that_it_is_slow.cache_clear()
    inputs, positions = make()
    there = replace(inputs, query=inputs.query.to("meta"), key=inputs.key.to("meta"), value=inputs.value.to("meta"))
    for _ in range(2):
        _, found = ways.attend_by_the_fastest_way(there, positions.to(torch.device("meta")), wanted=OF_WEIGHTS)
    assert found.keys() == OF_WEIGHTS
    assert [record.message for record in caplog.records] == [
        "On meta attention is measured the plain way, in PyTorch's own operations: numbers stay the same, measuring is slower."
    ]


def test_sums_of_a_device_without_float64_are_those_of_the_processor(model, monkeypatch):
    made = OnDevice.__new__

    def without_float64(cls, numbers, device):
        assert numbers.dtype != torch.float64
        return made(cls, numbers, device)

    monkeypatch.setattr(devices, "_WITHOUT_FLOAT64", {"cuda"})
    monkeypatch.setattr(OnDevice, "__new__", without_float64)
    rows = plan().inputs[:4]
    expected = calibrate(model(), rows)
    logits = torch.randn(2, 7, 256, generator=torch.Generator().manual_seed(0))
    labels = sensitivity._drawn(logits, [row[:7] for row in rows[:2]], 0)
    policies = [Fixed([(1, 2), (2, 0), (2, 5)], instead=how, calibration=expected) for how in (Linear(), Kept())]
    answers = [scored.loglikelihoods for scored in run_plan(model(), plan(), policies, scores=["keptg"]).of_policies]
    with pretended_devices():
        there = on_one(model())
        found = calibrate(there, rows, sensitivity=False)  # no gradients flow on pretended devices
        drawn = sensitivity._drawn(OnDevice(logits, torch.device("cuda:0")), [row[:7] for row in rows[:2]], 0).cpu()
        again = [scored.loglikelihoods for scored in run_plan(there, plan(), policies, scores=["keptg"]).of_policies]
    for index, layer in expected.layers.items():
        torch.testing.assert_close(found.layers[index].mean, layer.mean)
        torch.testing.assert_close(found.layers[index].covariance, layer.covariance)
    torch.testing.assert_close(drawn, labels)
    np.testing.assert_allclose(again, answers, rtol=1e-4, atol=1e-4)
