"""What policies and inputs share is computed once, and every answer is that of a run of its own."""

import numpy as np
import pytest
import torch

from headcount.evaluation.engine import run_plan
from headcount.evaluation.plan import ScoringPlan
from headcount.measure import measure_heads
from headcount.models.capabilities import can_pack, can_restart, can_share_prefixes
from headcount.models.instrument import instrument
from headcount.models.segments import SegmentReader
from headcount.policies import Fixed, Random, Threshold
from tests.models.families import FAMILIES, build

HEADER = list(range(20, 60))


def requests(seed=0, questions=6):
    """Questions with a common few-shot header of 40 tokens, contexts of their own, and three choices of 1 to 5 tokens."""
    rng = np.random.default_rng(seed)
    made = []
    for question in range(questions):
        header = HEADER if question else []
        context = header + rng.integers(3, 256, rng.integers(9, 20)).tolist()
        made += [(context, rng.integers(3, 256, rng.integers(1, 6)).tolist()) for _ in range(3)]
    return made


def separately(model, plan, policy):
    """Each input alone through the instrumented model: nothing shared, nothing padded."""
    nats, zeroed = [], []
    with instrument(model, policy=policy) as probe, torch.no_grad():
        logits = [model(torch.tensor([row]), use_cache=False).logits[0].log_softmax(-1) for row in plan.inputs]
        zeroed = probe.share_off
    for index, continuation in zip(plan.input_of, plan.continuations, strict=True):
        rows = logits[index][-len(continuation) :]
        nats.append(rows[torch.arange(len(continuation)), torch.tensor(continuation)].sum().item())
    return nats, zeroed


def policies_for(model, plan):
    """Policies of every kind; thresholds halfway between two scores, so that rounding turns no decision."""
    table = measure_heads(model, plan.inputs, scores=["ahon_ln", "awft", "aeqd", "fhon"])
    units = [int(layer) for layer in table["layer"]]

    def at(score, share, **options):
        values = np.unique(table[score].values[~np.isnan(table[score].values)])
        place = int(share * (len(values) - 1))
        return Threshold(score, float((values[place] + values[place + 1]) / 2), share=share, **options)

    return [
        None,
        Threshold("ahon_ln", -1.0, share=0.0),  # zeroes nothing
        *(at("ahon_ln", share) for share in (0.02, 0.1, 0.3)),
        at("awft", 0.7),
        at("aeqd", 0.2, exclude_layers=frozenset({units[0]})),
        at("fhon", 0.1),
        Random(0.2),
        Random(0.2, seed=3),
        Fixed([(units[-1], 1), (units[-1], 0)], name="last layer"),
        Fixed([(units[0], 2)], name="first layer"),
        Fixed([], name="none"),
    ]


FAMILIES_TRIED = (
    "llama", "qwen3", "olmo2", "olmo3", "mistral", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "gpt_oss", "opt", "phi3",
    "cohere2", "deepseek_v3", "llama4_text", "falcon_h1", "qwen3_next", "doge",
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES_TRIED)
def test_answers_are_those_of_separate_runs(family, tiny):
    model = build(family)
    plan = ScoringPlan.from_requests(requests(questions=4), 500)
    policies = policies_for(model, plan)
    shared = run_plan(model, plan, policies, batch_tokens=150).of_policies
    for policy, found in zip(policies, shared, strict=True):
        nats, share_off = separately(model, plan, policy)
        name = policy.label if policy else "untouched"
        np.testing.assert_allclose(found.share_off, share_off, err_msg=name)
        np.testing.assert_allclose([n for n, _ in found.loglikelihoods], nats, atol=2e-3, rtol=1e-4, err_msg=name)
        if not share_off.any():
            assert found.loglikelihoods == shared[0].loglikelihoods, name
    assert len({found.share_off.tobytes() for found in shared}) > 8  # the policies do differ


@pytest.mark.parametrize("asked", [[None], [2], [2, 3], [10], [None, 10, 11], [8, 9], [None, 2]])
def test_any_choice_of_policies_gives_the_same_answers(tiny, asked):
    model = tiny(initializer_range=0.1)
    plan = ScoringPlan.from_requests(requests(1), 500)
    policies = policies_for(model, plan)
    everything = run_plan(model, plan, policies, batch_tokens=300).of_policies
    chosen = [0 if place is None else place for place in asked]
    some = run_plan(model, plan, [policies[place] for place in chosen], batch_tokens=90).of_policies
    for place, found in zip(chosen, some, strict=True):
        expected = everything[place]
        np.testing.assert_allclose(found.share_off, expected.share_off)
        np.testing.assert_allclose(found.loglikelihoods, expected.loglikelihoods, atol=1e-4)


def tokens_read(model, plan, policies, monkeypatch):
    """Token-layers run, padding left out, as a multiple of reading every input once."""
    count = 0
    read = SegmentReader.read

    def counting(self, rows, *args, **options):
        nonlocal count
        count += sum(map(len, rows)) * (len(self.decoder.layers) - options.get("start", 0))
        return read(self, rows, *args, **options)

    can_restart(model), can_share_prefixes(model)  # found out before counting
    monkeypatch.setattr(SegmentReader, "read", counting)
    run_plan(model, plan, policies)
    monkeypatch.undo()
    return count / (len(model.model.layers) * sum(map(len, plan.inputs)))


def test_what_is_shared_is_read_once(tiny, monkeypatch):
    model = tiny()
    plan = ScoringPlan.from_requests(requests(), 500)
    alike = tokens_read(model, plan, [None], monkeypatch)
    assert alike < 0.35  # the header once, each context once
    # A policy that zeroes nothing, and one whose only head is in the last layer.
    assert tokens_read(model, plan, [None, Threshold("ahon", -1.0), Fixed([], name="none")], monkeypatch) == alike
    last = tokens_read(model, plan, [None, Fixed([(2, 0)])], monkeypatch)
    assert last == pytest.approx(alike * 4 / 3)
    # Two policies that never differ read what one does.
    cut = float(measure_heads(model, plan.inputs, scores="ahon")["ahon"].median())
    one = tokens_read(model, plan, [None, Threshold("ahon", cut)], monkeypatch)
    two = tokens_read(model, plan, [None, Threshold("ahon", cut), Threshold("ahon", cut, share=0.5)], monkeypatch)
    assert two == one <= alike + 1
    # One policy alone reads every input once, whole.
    assert tokens_read(model, plan, [Threshold("ahon", cut)], monkeypatch) == 1
    # So do two that never differ, where nobody asks for the untouched model; two that do part where they differ.
    assert tokens_read(model, plan, [Threshold("ahon", cut), Threshold("ahon", cut, share=0.5)], monkeypatch) == 1
    assert tokens_read(model, plan, [Random(0.3), Random(0.3, seed=1, exclude_layers=frozenset({0}))], monkeypatch) <= 2
    first_alike = [Fixed([(0, 1)], name="a"), Random(0.3, exclude_layers=frozenset({0, 1}))]
    assert tokens_read(
        model, plan, [*first_alike, Random(0.3, seed=1, exclude_layers=frozenset({0, 1}))], monkeypatch
    ) < (tokens_read(model, plan, first_alike, monkeypatch) + 0.5)


def test_recorded_scores_do_not_depend_on_what_is_shared(tiny):
    model = tiny("mistral", sliding_window=8)
    plan = ScoringPlan.from_requests(requests(), 500)
    recorded = run_plan(model, plan, [None], scores="all", batch_tokens=200).scores
    with instrument(model, scores="all") as probe, torch.no_grad():
        for row in plan.inputs:
            model(torch.tensor([row]), use_cache=False)
    measured = probe.scores
    for name in measured.data_vars:
        np.testing.assert_allclose(recorded[name], measured[name], rtol=2e-4, atol=2e-5, err_msg=str(name))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_tells_what_can_be_shared(family, tiny):
    """Models whose layers see more than attention must not be cut: a wrong answer would be silent."""
    model = build(family)
    recurrent = {
        "bamba",
        "doge",
        "falcon_h1",
        "granitemoehybrid",
        "jamba",
        "minimax",
        "nemotron_h",
        "qwen3_next",
        "recurrent_gemma",
    }
    assert can_share_prefixes(model) == (family not in recurrent)
    assert can_pack(model) == (family not in {*recurrent, "llama4_text"})  # takes positions from where tokens stand
