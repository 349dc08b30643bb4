"""One act in every layer: several policies decide, each row obeys one of them, and its own replacement stands in."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from headcount.errors import InputError
from headcount.models.act import Act, Needs, always_off
from headcount.outputs import Outputs
from headcount.policies import Fixed, Random, Threshold
from headcount.replacements import Replacement, Zero, replaced
from headcount.scores import get_score
from headcount.units import LayerUnits, UnitMap

UNITS = UnitMap(layers=tuple(
    LayerUnits(index=index, num_attention_heads=heads, num_key_value_heads=heads, head_dim=2)
    for index, heads in ((0, 3), (2, 4))
))  # fmt: skip
DRAWS = torch.rand(2, 2, 4, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Sevens(Replacement):
    name = "sevens"

    def values(self, outputs, off):
        return torch.full_like(outputs.values, 7.0)


def outputs(layer, heads, norm=None):
    generator = torch.Generator().manual_seed(layer)
    norms = torch.rand(2, heads, generator=generator) if norm is None else norm
    return Outputs(layer=layer, values=torch.rand(2, heads, 5, 2, generator=generator), measured={"output_norm": norms})


def test_each_row_obeys_its_policy_with_its_own_replacement():
    sevens = Fixed([(2, 0), (2, 3)], name="sevens", instead=Sevens())
    act = Act(UNITS, [sevens, Random(0.5)], rows=2, draws=lambda seed: DRAWS, obeyed=[0, 1])
    given = outputs(2, 4)
    found, drawn = act(given), DRAWS[1, 1] < 0.5
    assert (found[0, [0, 3]] == 7).all()
    assert torch.equal(found[0, 1:3], given.values[0, 1:3])
    assert 0 < drawn.sum() < 4
    assert (found[1, drawn] == 0).all()
    assert torch.equal(found[1, ~drawn], given.values[1, ~drawn])


def test_who_is_not_obeyed_only_decides():
    act = Act(UNITS, [Random(1.0), Random(0.0)], rows=2, draws=lambda seed: DRAWS)
    given = outputs(0, 3)
    assert torch.equal(act(given), given.values)
    decided = act.decided()
    assert decided.shape == (2, 2, 2, 4)
    assert decided[0, :, 0, :3].all()
    assert not decided[0, :, 0, 3].any()
    assert not decided[0, :, 1].any()
    assert not decided[1].any()


def test_an_excluded_layer_goes_on_as_it_is():
    act = Act(UNITS, [Random(1.0, exclude_layers=[2])], rows=2, draws=lambda seed: DRAWS, obeyed=0)
    assert (act(outputs(0, 3)) == 0).all()
    assert torch.equal(act(outputs(2, 4)), outputs(2, 4).values)
    assert act.needs(0) == Needs(of_rows=frozenset({"uniform"}))
    assert act.needs(2) == Needs()


def test_a_score_that_several_policies_read_is_computed_once_a_layer(monkeypatch):
    ahon, calls = get_score("ahon"), []
    compute = type(ahon).values
    monkeypatch.setattr(type(ahon), "values", lambda *args: calls.append(1) or compute(*args))
    act = Act(UNITS, [Threshold("ahon", t) for t in (0.2, 0.5, 0.8)], scores=[ahon], rows=2, draws=lambda seed: DRAWS)
    for layer, heads in ((0, 3), (2, 4)):
        act(outputs(layer, heads))
    values = act.values()
    assert len(calls) == 2
    np.testing.assert_array_equal(values[0, :, 1], outputs(2, 4).measured["output_norm"])
    assert np.isnan(values[0, :, 0, 3]).all()
    for i, threshold in enumerate((0.2, 0.5, 0.8)):
        np.testing.assert_array_equal(act.decided()[i], np.nan_to_num(values[0], nan=9) < threshold)


@pytest.mark.parametrize("excluded", [(), (0,), (0, 2)])
def test_scores_are_the_same_whether_a_policy_read_them_or_not(excluded):
    scores = [get_score(name) for name in ("ahon", "ahon_ln", "random")]
    both = Act(
        UNITS, [Threshold("ahon_ln", 1.0, exclude_layers=excluded)], scores=scores, rows=2, draws=lambda _: DRAWS
    )
    alone = Act(UNITS, scores=scores, rows=2, draws=lambda _: DRAWS)
    for act in (both, alone):
        for layer, heads in ((0, 3), (2, 4)):
            act(outputs(layer, heads))
    np.testing.assert_array_equal(both.values(), alone.values())


def test_what_reads_nothing_decides_the_same_on_every_input():
    off = always_off(Fixed([(0, 2), (2, 1)], exclude_layers=[2]), UNITS)
    assert off is not None
    assert [tuple(place) for place in np.argwhere(off)] == [(0, 2)]
    assert always_off(Random(0.1), UNITS) is None
    assert always_off(Threshold("ahon", 0.1), UNITS) is None


def test_nothing_off_is_the_very_tensor():
    values = torch.rand(1, 2, 3, 4)
    given = Outputs(layer=0, values=values)
    assert replaced(given, None) is values
    off = torch.tensor([[True, False]])
    assert (replaced(given, off, Zero())[0, 0] == 0).all()
    assert torch.equal(replaced(given, off, Zero())[0, 1], values[0, 1])


@pytest.mark.parametrize(
    ("decided", "given"),
    [
        (torch.rand(2, 3), r"float32 \[2, 3\]"),
        (torch.ones(2, 1, dtype=torch.bool), r"bool \[2, 1\]"),
        (torch.ones(3, dtype=torch.bool), r"bool \[3\]"),
        (torch.ones(3, 2, dtype=torch.bool), r"bool \[3, 2\]"),
        (torch.tensor(True), r"bool \[\]"),
        ([[True] * 3] * 2, "list"),
        (None, "NoneType"),
    ],
)
def test_a_decision_of_another_kind_is_refused(monkeypatch, decided, given):
    policy = Random(0.5)
    monkeypatch.setattr(Random, "decide", lambda self, seen: decided)
    act = Act(UNITS, [policy], rows=2, draws=lambda seed: DRAWS, obeyed=0)
    with pytest.raises(InputError, match=rf"random:0.5 decided by {given}\. `decide` returns bool .*, here \[2, 3\]"):
        act(outputs(0, 3))


def test_who_draws_says_so(monkeypatch):
    monkeypatch.setattr(Random, "needs", frozenset())
    with pytest.raises(InputError, match=r"random:0.5 reads random numbers: its `needs` has to name them"):
        always_off(Random(0.5), UNITS)
