"""A kind of policy is one class: written as text, checked, obeyed, put into tables, as the built-in ones are."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from headcount import policies
from headcount.analysis import accuracy_table, removable_table
from headcount.errors import InputError
from headcount.evaluation.evaluate import evaluate
from headcount.evaluation.language_model import HeadcountLM
from headcount.models.instrument import instrument
from headcount.policies import Policy, PolicyFacts, Random, parse_policy


@dataclass(frozen=True)
class Lowest(Policy):
    """Off are, in each layer, the given share of its heads: those with the lowest mean output norm on the input."""

    share: float

    @classmethod
    def parse(cls, text, *, exclude_layers, seed):
        name, _, share = text.partition(":")
        return cls(float(share), exclude_layers=frozenset(exclude_layers)) if name == "lowest" else None

    @property
    def needs(self):
        return frozenset({"output_norm"})

    def facts(self):
        return PolicyFacts(
            policy=f"lowest:{self.share:g}{self.suffix}", curve=f"lowest{self.suffix}", share_asked=self.share
        )

    def check(self, units):
        super().check(units)
        if any(self.share * layer.num_attention_heads < 1 for layer in units.layers):
            raise InputError(f"{self.label} is less than one head of a layer.")

    def decide(self, seen):
        order = seen.score("ahon").argsort(dim=1).argsort(dim=1)
        return order < int(self.share * seen.shape[1])


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setattr(policies, "WRITTEN", (Lowest, *policies.WRITTEN))


def test_it_is_read_from_text_and_checked(tiny):
    assert parse_policy("lowest:0.25", exclude_layers=[1]).label == "lowest:0.25 except layer 1"
    assert parse_policy("random:0.25") == Random(0.25)
    with (
        pytest.raises(InputError, match=r"lowest:0.1 is less than one head of a layer"),
        instrument(tiny(), policy=parse_policy("lowest:0.1")),
    ):
        pass


def test_instrument_and_the_engine_carry_it_out_alike(tiny, letters, own_tasks):
    model, asked = tiny(), [parse_policy(f"lowest:{share}") for share in (0.25, 0.5)]
    found = evaluate(model, ["sums"], [*asked, Random(0.5)], tokenizer=letters, offline=True, include_path=own_tasks)
    outcomes = found.outcomes.set_index("policy")
    assert (outcomes.loc["lowest:0.25", "share_off"] == 0.25).all()
    assert (outcomes.loc["lowest:0.5", "share_off"] == 0.5).all()
    assert set(outcomes.loc["lowest:0.5", "curve"]) == {"lowest"}

    lm = HeadcountLM(model, tokenizer=letters)
    tokens = torch.tensor([lm.tok_encode("sums_a 0+0")])
    with instrument(model, policy=asked[0], scores=["ahon"]) as probe, torch.no_grad():
        model(tokens)
    norms, off = probe.scores["ahon"].values[0], probe.off.values[0]
    assert (off.sum(axis=1) == norms.shape[1] // 4).all()
    for layer in range(len(norms)):
        assert norms[layer][off[layer]].max() < norms[layer][~off[layer]].min()


def test_tables_have_its_curve(tiny, letters, own_tasks):
    asked = [parse_policy(f"lowest:{share}") for share in (0.25, 0.5)]
    found = evaluate(tiny(), ["sums"], asked, tokenizer=letters, offline=True, include_path=own_tasks)
    accuracy = accuracy_table(found.outcomes)
    assert accuracy["policy"].tolist() == ["baseline", "lowest:0.25", "lowest:0.5"]
    np.testing.assert_allclose(accuracy["share_realised"], [0, 0.25, 0.5])
    assert len(removable_table(found.outcomes)) == 1  # one curve
