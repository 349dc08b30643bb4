"""A finished run, and a study of it, made without a model."""

from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from headcount.store import begin_run
from headcount.store.run import noted_facts
from headcount.study.analysing import analyse_study
from headcount.study.folder import begin_study
from headcount.study.spec import Study
from headcount.units import LayerUnits
from tests.store.parts import metrics, outcomes

IDS = ["awft", "ahon_ln"]
LAYERS = [LayerUnits(index=i, num_attention_heads=4, num_key_value_heads=2, head_dim=8).facts() for i in range(2)]
FACTS = {
    "model": {"name": "some/model", "fingerprint": "ab", "dtype": "float32", "num_heads": 8, "layers": LAYERS},
    "data": {"tasks": ["sums"], "num_questions": 6, "num_inputs": 6},
    "settings": {"seed": 0, "shard": 3},
}


def scores(examples):
    rng = np.random.default_rng(examples)
    values = {name: (("example", "layer", "head"), rng.random((examples, 2, 4), np.float32)) for name in IDS}
    tokens = ("example", rng.integers(1, 9, examples))
    return xr.Dataset(values, coords={"layer": [0, 1], "head": np.arange(4), "num_tokens": tokens})


def _rows(policy, score, share, first):
    frame = outcomes(policy).assign(score=score, share_asked=share, threshold=share, doc_id=range(first, first + 3))
    return frame.assign(acc=[1.0, 0.0, 1.0], loglikelihoods=[[-1.0, -2.0]] * 3)


def make_run(path):
    with begin_run(path, **FACTS) as run:
        run.update(scores=noted_facts(IDS), measured={"scores": IDS, "num_inputs": 6})
        for shard in range(2):
            run.add_scores(shard, scores(3))
        cuts = {name: ("share", [0.1, 0.2]) for name in IDS}
        run.set_thresholds(xr.Dataset(cuts, coords={"share": [0.1, 0.2]}))
        nan = float("nan")
        for policy, score, share in (("baseline", "", nan), ("awft:0.1", "awft", 0.1)):
            for first in (0, 3):
                run.add_outcomes([policy], range(first, first + 3), _rows(policy, score, share, first))
        asked = [{"policy": "baseline"}, {"policy": "awft:0.1", "score": "awft", "share_asked": 0.1, "threshold": 0.1}]
        run.update(policies=asked)
        run.set_metrics(pd.concat([metrics("baseline"), metrics("awft:0.1")]))


def make_study(path):
    study = Study(models=["some/model"], data=["sums"], scores=IDS, shares=[0.1, 0.2])
    with begin_study(Path(path), study, "") as opened:
        make_run(opened.run_path(study.models[0], study.data[0]))
        analyse_study(opened)
