import numpy as np
import pytest
import torch
import xarray as xr

from headcount.errors import InputError, ModelError
from headcount.measure import measure_heads
from headcount.models.observe import attention_modules
from headcount.models.projection import output_projection
from headcount.removal import choose
from headcount.removal.choose import order_by_need, select_heads
from headcount.removal.fitting import Fitting
from headcount.removal.gradients import taylor_scores
from headcount.removal.replace import replace_heads
from headcount.units import UnitSet
from tests.calibrated import calibrated_on

ROWS = [torch.randint(3, 256, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (12, 20, 9)]


def table(*texts):
    return xr.DataArray(np.array(texts, np.float32)[:, None], dims=("example", "layer", "unit"))


def order(scores, side, aggregate, **options):
    return [unit for _, unit in order_by_need(scores, side, aggregate, **options)]


def test_order_by_need():
    # Unit 0: means 2, at most 3, at least 1. Unit 1: 1.5, 3.5, 0… Three texts, needed when high.
    scores = table([1, 0, 2.2], [2, 0.5, 2.2], [3, 4, 2.2])
    assert order(scores, "high", "mean") == [1, 0, 2]  # 1.5, 2, 2.2
    assert order(scores, "high", "max") == [2, 0, 1]  # 2.2, 3, 4
    assert order(scores, "low", "mean") == [2, 0, 1]  # high scores are least needed
    assert order(scores, "low", "max") == [2, 0, 1]  # the lowest: 2.2, 1, 0
    # The median of each: 2, 0.5, 2.2.
    assert order(scores, "high", "quantile", quantile=0.5) == [1, 0, 2]
    assert order(scores, "low", "quantile", quantile=0.5) == [2, 0, 1]


def test_order_by_how_often_units_are_inactive():
    # Nine scores; a third of them lies below the threshold, which is at the third smallest, 1 (not below itself).
    scores = table([0, 5, 9], [0.5, 5, 9], [7, 1, 3])
    # Unit 0 is inactive twice, the others never; between those the mean decides: 11/3 before 7.
    assert order(scores, "high", "inactive", share=1 / 3) == [0, 1, 2]
    # Needed when low: the upper third, beyond 5: 7, 9 and 9. Unit 2 twice, unit 0 once, unit 1 never.
    assert order(scores, "low", "inactive", share=1 / 3) == [2, 0, 1]


def test_what_was_not_measured_on_a_text_never_goes():
    nan = float("nan")
    assert order(table([1, nan, 3], [1, 0, 3]), "high", "mean") == [0, 2]
    assert order(table([1, nan, 3], [1, 0, 3]), "high", "inactive", share=0.5) == [0, 2]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_unit_without_a_finite_score_on_every_text_stays_and_is_counted(tiny, monkeypatch, value):
    model = tiny()
    whole = choose._unit_scores(model, Fitting(rows=ROWS), "ahon_ln", "head", progress=lambda *_: None)
    first, *others = select_heads(model, Fitting(rows=ROWS), share=0.2, score="ahon_ln").heads
    broken = whole.copy()
    broken[1, first[0], first[1]] = value
    monkeypatch.setattr(choose, "_unit_scores", lambda *_, **__: broken)
    for aggregate in ("mean", "max", "quantile", "inactive"):
        selection = select_heads(model, Fitting(rows=ROWS), share=0.2, score="ahon_ln", aggregate=aggregate)
        assert first not in selection.heads
        assert selection.chosen[choose.NOT_FINITE] == 1
    assert list(select_heads(model, Fitting(rows=ROWS), share=0.2, score="ahon_ln").heads[: len(others)]) == others
    broken[0] = value
    with pytest.raises(InputError, match="No head has a finite ahon_ln score on every text"):
        select_heads(model, Fitting(rows=ROWS), share=0.2, score="ahon_ln")


def test_registered_scores_choose_the_heads_they_call_inactive(tiny):
    model = tiny()
    measured = measure_heads(model, ROWS, scores=["ahon_ln", "awft"])
    for score, sign in (("ahon_ln", 1), ("awft", -1)):
        means = sign * measured[score].values.astype(np.float64).mean(0)
        expected = [(place // 8, place % 8) for place in np.argsort(means, axis=None)[:6]]
        selection = select_heads(model, Fitting(rows=ROWS, batch_tokens=30), share=0.25, score=score, name="tiny")
        assert list(selection.heads) == expected
        assert selection.chosen["score"] == score
        assert selection.chosen["texts"] == 3
        groups = means.reshape(3, 2, 4).mean(-1)
        first = np.unravel_index(groups.argmin(), groups.shape)
        selection = select_heads(model, Fitting(rows=ROWS), share=0.25, score=score, kind="group")
        assert list(selection.heads) == [(first[0], 4 * first[1] + i) for i in range(4)]  # two would be a third


def test_calibrated_scores_read_the_calibration_that_is_given(tiny):
    model, fitting = tiny(), Fitting(rows=ROWS)
    calibration = calibrated_on(model, ROWS)
    means = measure_heads(model, ROWS, scores=["devg"], calibration=calibration)["devg"].values.mean(0)
    expected = [(place // 8, place % 8) for place in np.argsort(means, axis=None)[:6]]
    selection = select_heads(model, fitting, share=0.25, score="devg", calibration=calibration)
    assert list(selection.heads) == expected
    assert selection.chosen["calibration"] == calibration.fingerprint
    assert "calibration" not in select_heads(model, fitting, share=0.25, score="awft", calibration=calibration).chosen
    with pytest.raises(InputError, match="devg needs a calibration"):
        select_heads(model, fitting, share=0.25, score="devg")
    with pytest.raises(
        InputError, match="devg is measured against a calibration of the whole model, and between rounds"
    ):
        select_heads(model, fitting, share=0.25, score="devg", calibration=calibration, rounds=2)
    with pytest.raises(ModelError, match="calibration is of tiny"):
        select_heads(tiny(seed=1), fitting, share=0.25, score="devg", calibration=calibration)


def test_taylor_chooses_what_changes_the_loss_least(tiny):
    model = tiny()
    need = taylor_scores(model, Fitting(rows=ROWS), how="mean").values.max(0)
    expected = [(place // 8, place % 8) for place in np.argsort(need, axis=None)[:7]]
    assert list(select_heads(model, Fitting(rows=ROWS), share=0.3, how="mean", aggregate="max").heads) == expected
    kept = select_heads(
        model, Fitting(rows=ROWS), share=0.3, how="mean", aggregate="max", exclude_layers=[expected[0][0]]
    )
    assert len(kept.heads) == 7
    assert expected[0][0] not in {layer for layer, _ in kept.heads}


def test_rounds_measure_again_with_what_has_gone_replaced(tiny):
    model = tiny()
    before = model(torch.tensor(ROWS[:1])).logits
    selection = select_heads(model, Fitting(rows=ROWS), share=0.5, rounds=2, how="mean")
    first = select_heads(model, Fitting(rows=ROWS), share=0.25, how="mean").heads
    assert selection.heads[:6] == first
    with replace_heads(model, UnitSet(first), "mean", Fitting(rows=ROWS)).applied(model):
        need = taylor_scores(model, Fitting(rows=ROWS), how="mean", removed=UnitSet(first)).values.mean(0)
    then = [(place // 8, place % 8) for place in np.argsort(need, axis=None)]
    assert list(selection.heads[6:]) == [head for head in then if head not in first][:6]
    assert torch.equal(model(torch.tensor(ROWS[:1])).logits, before)
    assert output_projection(attention_modules(model)[0]).bias is None


def test_whole_layers(tiny):
    selection = select_heads(tiny(), Fitting(rows=ROWS), share=0.4, kind="attention", how="mean")
    assert len({layer for layer, _ in selection.heads}) == 1
    assert len(selection.heads) == 8


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"share": 20}, "between 0 and 1, not 20; write 20% as 0.20"),
        ({"share": 0.02}, "is 0 of 24 heads, less than one query head"),
        ({"share": 0.1, "kind": "attention"}, "is 2 of 24 heads, less than one layer's attention"),
        ({"share": 0.1, "aggregate": "median"}, "not 'median'"),
        ({"share": 0.1, "aggregate": "inactive"}, "no side on which heads are inactive"),
        ({"share": 0.1, "rounds": 0}, "rounds is at least 1"),
        ({"share": 0.1, "quantile": 1.5}, "quantile lies between 0 and 1"),
        ({"share": 0.1, "score": "ahom"}, "Did you mean ahon"),
        ({"share": 0.1, "exclude_layers": [3]}, "Layer 3 is no attention layer"),
    ],
)
def test_bad_input(tiny, options, complaint):
    with pytest.raises(InputError, match=complaint):
        select_heads(tiny(), Fitting(rows=ROWS), how="mean", **options)
