"""The tutorial's score works as the tutorial says."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import headcount as hc
from headcount.errors import InputError
from headcount.scores import load_scores, registry

TUTORIAL = Path(__file__).parents[2] / "docs" / "your-own-score.md"


@pytest.fixture
def own_score(tmp_path, monkeypatch):
    """The tutorial's my_scores.py, registered for one test."""
    for name in ("_SCORES", "_NAMES", "_FILES"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))
    code = re.search(r"```python\n(.*?)```", TUTORIAL.read_text("utf-8"), re.DOTALL)
    assert code is not None
    file = tmp_path / "my_scores.py"
    file.write_text(code[1], "utf-8")
    return file


def test_loading_it_registers_it_once(own_score):
    assert [score.id for score in load_scores(own_score)] == ["output_variation"]
    assert [score.id for score in load_scores(own_score)] == ["output_variation"]
    assert hc.get_score("output_variation").unit == "1"


def test_it_is_measured_thresholded_and_zeroed_like_a_built_in(own_score, tiny):
    load_scores(own_score)
    model, rows = tiny(), [[5, 6, 7, 8, 9, 10], [11, 12, 13]]
    table = hc.measure_heads(model, rows, scores=["output_variation"])
    alone = hc.measure_heads(model, rows[1:], scores=["output_variation"])
    values = table["output_variation"].values
    assert ((values > 0) & (values < 1)).all()
    np.testing.assert_allclose(values[1], alone["output_variation"].values[0], rtol=1e-4)  # padding does not count
    cut = hc.thresholds(table, shares=[0.25])["output_variation"].item()
    with hc.instrument(model, policy=hc.Threshold("output_variation", cut)) as probe, torch.no_grad():
        model(torch.tensor([rows[0]]))
    first_layer = probe.off.values[0, 0]
    np.testing.assert_array_equal(first_layer, values[0, 0] < cut)
    assert probe.off.values.any()


def test_a_constant_output_has_no_variation(own_score):
    load_scores(own_score)
    output = torch.ones(1, 2, 3, 4)
    output[0, 1, 1] = -1  # head 1: mean vector 1/3, norm of each 2: 1 − (2/3)/2 = 2/3
    m = registry.LayerMeasurements(
        output=output, output_norm=torch.full((1, 2), 2.0), real=torch.ones(1, 3, dtype=torch.bool)
    )
    torch.testing.assert_close(hc.get_score("output_variation")(m), torch.tensor([[0.0, 2 / 3]]))


def test_what_goes_wrong_is_said(tmp_path, tiny, own_score):
    with pytest.raises(InputError, match="There is no file"):
        load_scores(tmp_path / "none.py")
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1")
    with pytest.raises(InputError, match="registers no score"):
        load_scores(empty)
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0")
    with pytest.raises(InputError, match="ZeroDivisionError"):
        load_scores(broken)

    @hc.score("whole", name="Whole", needs=["output"], inactive_when="low", unit="1", source="test")
    def whole(m):
        return m.output.norm(dim=-1)

    with pytest.raises(InputError, match="gave shape"):
        hc.measure_heads(tiny(), [[5, 6, 7]], scores=["whole"])
