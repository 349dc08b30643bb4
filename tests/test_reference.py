"""Agreement with the numbers of the authors' own code; see data/README.md."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from headcount.measure import measure_heads
from headcount.models.instrument import instrument
from headcount.policies import Threshold

DATA = Path(__file__).parent / "data"
pytestmark = pytest.mark.demo


@pytest.fixture(scope="module")
def texts() -> dict[str, list[int]]:
    return json.loads((DATA / "smollm2_texts.json").read_text())


def test_every_score_of_every_head_agrees(demo, texts):
    reference = np.load(DATA / "smollm2_scores_float32.npz")
    table = measure_heads(demo[0], [texts[str(name)] for name in reference["texts"]])
    for name, expected in zip(reference["score_ids"], reference["scores"], strict=True):
        measured = table[str(name)].values
        assert not np.isnan(measured).any()
        difference = np.abs(measured - expected)
        assert ((difference <= 1e-5) | (difference <= 1e-4 * np.abs(expected))).all(), (name, difference.max())


def _cases():
    reference = np.load(DATA / "smollm2_zeroing_float32.npz")
    return [(p, t) for p in range(len(reference["policies"])) for t in range(len(reference["texts"]))]


@pytest.mark.parametrize(("policy", "text"), _cases())
def test_zeroing_agrees(demo, texts, policy, text):
    reference = np.load(DATA / "smollm2_zeroing_float32.npz")
    score, threshold = str(reference["policies"][policy]).split(":")
    tokens = torch.tensor([texts[str(reference["texts"][text])]])
    with instrument(demo[0], policy=Threshold(score, float(threshold)), scores=[score]) as probe, torch.no_grad():
        logits = demo[0](tokens).logits[0]
    np.testing.assert_array_equal(probe.off.values[0], reference["masks"][policy, text])
    seen, expected = probe.scores[score].values[0], reference["scores_while_zeroing"][policy, text]
    np.testing.assert_allclose(seen, expected, rtol=1e-4, atol=1e-5)
    top = reference["top20_ids"][policy, text]
    np.testing.assert_allclose(logits[-1].numpy()[top], reference["top20_logits"][policy, text], atol=2e-4)
    loss = F.cross_entropy(logits[:-1], tokens[0, 1:]).item()
    assert loss == pytest.approx(float(reference["mean_nll"][policy, text]), abs=1e-4)
