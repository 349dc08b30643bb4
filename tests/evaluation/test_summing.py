"""Sums of scores of units too many to hold, beside the same values in a table."""

import numpy as np
import pytest
import torch

import headcount as hc
from headcount import measure
from headcount.errors import InputError
from headcount.evaluation.summing import Sums
from headcount.scores import get_score
from headcount.summaries import ScoreSummary, Summary
from headcount.units import MlpUnits, UnitMap

UNITS = UnitMap(layers=(MlpUnits(index=0, num_neurons=5), MlpUnits(index=2, num_neurons=3)), kind="neuron")
FHON = get_score("fhon")


def assert_alike(found: ScoreSummary, expected: ScoreSummary) -> None:
    assert found.parts == expected.parts == "layer"
    for counts in ("fine", "by_part"):
        for part in ("codes", "counts"):
            np.testing.assert_array_equal(
                getattr(getattr(found, counts), part), getattr(getattr(expected, counts), part)
            )
    for name in ("count", "smallest", "largest"):
        np.testing.assert_array_equal(getattr(found.moments, name), getattr(expected.moments, name))
    np.testing.assert_allclose(found.moments.mean, expected.moments.mean, rtol=1e-6)
    np.testing.assert_allclose(found.moments.deviations, expected.moments.deviations, rtol=1e-5, atol=1e-12)


def test_sums_are_the_summary_of_all_values():
    rng = np.random.default_rng(0)
    values = np.full((40, 2, 5), np.nan, np.float32)
    values[:, 0], values[:, 1, :3] = rng.lognormal(0, 3, (40, 5)), rng.normal(size=(40, 3))
    values[3, 0, 1], values[4, 0, 2], values[5, 1, 0], values[6, 1, 1] = np.nan, np.inf, -np.inf, -0.0
    values[:, 0, 4] = np.nan  # nowhere measured
    often = np.where(np.arange(40) < 30, 1, 3)
    whole, later = Sums(UNITS), Sums(UNITS)
    for sums, rows, times in ((whole, slice(0, 11), 1), (whole, slice(11, 30), 1), (later, slice(30, 40), 3)):
        for place, units in enumerate(UNITS.counts):
            sums.add(place, FHON, torch.from_numpy(values[rows, place, :units]), times)
    whole.merge(later)
    assert_alike(whole.summaries()["fhon"], ScoreSummary.of(np.repeat(values, often, axis=0), "layer"))


@pytest.mark.parametrize("unit", ["neuron", "mlp", "head"])
def test_a_summary_is_that_of_the_table_however_inputs_share_and_repeat(tiny, unit):
    inputs = [[*range(1, 13), 5, 6], [*range(1, 13), 7], [3, 4], [3, 4], [9, 8, 7, 6]]
    model = tiny()
    summary = hc.summarise_heads(model, inputs, unit=unit, batch_tokens=20)
    table = hc.measure_heads(model, inputs, unit=unit)
    expected = Summary.of(table, "layer" if unit == "neuron" else "unit")
    assert (summary.num_inputs, summary.num_tokens, list(summary.scores)) == (5, 35, list(expected.scores))
    assert summary.attrs.get("unit", "head") == unit
    for name, of_score in summary.scores.items():
        np.testing.assert_array_equal(of_score.moments.count, expected.scores[name].moments.count)
        np.testing.assert_allclose(of_score.moments.mean, expected.scores[name].moments.mean, rtol=1e-4, atol=1e-6)
        assert of_score.of_parts[0].sum() == of_score.by_part.counts.sum()


def test_every_token_of_every_input_counts(tiny):
    inputs = [[*range(1, 13), 5, 6], [*range(1, 13), 7], [3, 4], [3, 4]]
    found = hc.summarise_heads(tiny(), inputs, unit="neuron", scores=["fhon/token", "fhon"]).scores
    assert set(np.unique(found["fhon/token"].moments.count)) == {31}
    per_input = np.array([[14, 13, 2, 2]])
    means = hc.measure_heads(tiny(), inputs, unit="neuron", scores=["fhon"])["fhon"].values
    expected = np.einsum("i,ilu->lu", per_input[0], means) / 31
    np.testing.assert_allclose(found["fhon/token"].moments.mean, expected, rtol=1e-4)


def test_a_batch_that_ran_out_of_memory_counts_once(tiny, monkeypatch):
    inputs = [[1, 2, 3], [4, 5, 6], [7, 8, 9], [2, 4, 6]]
    model = tiny()
    expected = hc.summarise_heads(model, inputs, unit="neuron", scores=["griffin"])
    add, calls = Sums.add, []

    def failing_once(self, *given):
        add(self, *given)
        calls.append(given)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Sums, "add", failing_once)
    with pytest.warns(UserWarning, match="halved"):
        found = hc.summarise_heads(model, inputs, unit="neuron", scores=["griffin"])
    assert len(calls) > 3
    np.testing.assert_array_equal(found.scores["griffin"].moments.count, expected.scores["griffin"].moments.count)
    np.testing.assert_allclose(found.scores["griffin"].moments.mean, expected.scores["griffin"].moments.mean, rtol=1e-5)


def test_a_table_too_large_to_hold_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(measure, "MOST_BYTES", 1 << 10)
    with pytest.raises(
        InputError, match=r"1 score of 288 MLP neurons on 2 inputs .* headcount\.summarise_heads counts them"
    ):
        hc.measure_heads(tiny(), [[1, 2], [3, 4]], unit="neuron", scores=["fhon"])
