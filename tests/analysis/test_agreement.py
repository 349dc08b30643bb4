import numpy as np
import pytest
import xarray as xr

from headcount.analysis import inactivity
from headcount.analysis.agreement import score_agreement


def table(**scores):
    """Scores of one layer, each [example][head]."""
    values = {n: (("example", "layer", "head"), np.asarray(v, dtype=np.float32)[:, None, :]) for n, v in scores.items()}
    heads = next(iter(values.values()))[1].shape[2]
    return xr.Dataset(values, coords={"layer": [0], "head": np.arange(heads)})


def cuts(**thresholds):
    return xr.Dataset({name: ("share", [value]) for name, value in thresholds.items()}, coords={"share": [0.5]})


def test_overlap_by_hand():
    # Inactive by ahon (below 0): heads 0, 1, 2, then none, then 3. By awft (above 0): heads 1, 2, 3, then 0, then 3.
    found = score_agreement(
        table(
            ahon=[[-1, -1, -1, 1], [1, 1, 1, 1], [1, 1, 1, -1]],
            awft=[[-1, 1, 1, 1], [1, -1, -1, -1], [np.nan, -1, -1, 1]],
        ),
        cuts(ahon=0.0, awft=0.0),
    ).sel(share=0.5)
    pair = {"score": "ahon", "other": "awft"}
    assert found["iou"].sel(pair) == pytest.approx(3 / 6)  # 2, 0, 1 shared of 4, 1, 1
    assert found["iou_per_input"].sel(pair) == pytest.approx((2 / 4 + 0 + 1) / 3)
    assert found["precision"].sel(pair) == pytest.approx(3 / 4)  # of ahon's 3 + 0 + 1
    assert found["precision_per_input"].sel(pair) == pytest.approx((2 / 3 + 1) / 2)  # ahon has none on the second
    assert found["precision"].sel(score="awft", other="ahon") == pytest.approx(3 / 5)
    assert found["iou"].sel(score="awft", other="ahon") == found["iou"].sel(pair)
    assert (found["iou"].sel(score="ahon", other="ahon"), found["precision"].sel(score="awft", other="awft")) == (1, 1)


def test_an_empty_set_has_no_ratio():
    found = score_agreement(table(ahon=[[1, 1]], awft=[[1, 1]]), cuts(ahon=0.0, awft=2.0))
    assert found.isnull().all().to_array().all()


def test_plain_loops_agree_and_chunks_do_not_matter(monkeypatch):
    rng = np.random.default_rng(0)
    shape = 11, 3, 5
    names = ["ahon", "awft", "aeqd"]
    scores = xr.Dataset({name: (("example", "layer", "head"), rng.random(shape)) for name in names})
    thresholds = xr.Dataset(
        {"ahon": ("share", [0.1, 0.4]), "awft": ("share", [0.9, 0.6]), "aeqd": ("share", [0.2, 0.3])},
        coords={"share": [0.1, 0.4]},
    )
    monkeypatch.setattr(inactivity, "_CELLS_A_CHUNK", 200)  # 2 inputs at a time
    found = score_agreement(scores, thresholds)
    for share in (0.1, 0.4):
        sets = []
        for name in names:
            cut, values = thresholds[name].sel(share=share).item(), scores[name].to_numpy()
            sets.append({tuple(p) for p in np.argwhere(values > cut if name == "awft" else values < cut).tolist()})
        for i, of_score in enumerate(sets):
            for j, of_other in enumerate(sets):
                at = {"share": share, "score": names[i], "other": names[j]}
                assert found["iou"].sel(at) == pytest.approx(len(of_score & of_other) / len(of_score | of_other))
                ratios = []
                for example in range(shape[0]):
                    a, b = ({p for p in s if p[0] == example} for s in (of_score, of_other))
                    ratios += [len(a & b) / len(a | b)] if a | b else []
                assert found["iou_per_input"].sel(at) == pytest.approx(np.mean(ratios))
