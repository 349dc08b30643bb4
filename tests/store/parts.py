"""What the tests put into runs."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from headcount.store.manifest import sealed, unsealed


def table(examples, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(examples, 3, 4)).astype("f4")
    values[0, 2, 3] = np.nan
    return xr.Dataset(
        {"awft": (("example", "layer", "head"), values), "ahon": (("example", "layer", "head"), 2 * values)},
        coords={"layer": [0, 2, 5], "head": np.arange(4), "num_tokens": ("example", rng.integers(1, 9, examples))},
        attrs={"seed": 3, "model": "some/model", "num_cut": 0},
    )


def outcomes(policy, questions=3):
    nan = float("nan")
    return pd.DataFrame({
        "policy": policy, "curve": "", "score": "", "share_asked": nan, "threshold": nan, "task": "sums",
        "doc_id": range(questions), "doc_hash": [f"{i:x}" for i in range(questions)],
        "acc": [1.0, nan, 0.0][:questions], "loglikelihoods": [[-1.5, -2.0, nan], None, [-0.25]][:questions],
        "target": ["1", "über", ""][:questions], "share_off": [0.0, 0.5, 1 / 3][:questions],
    })  # fmt: skip


def metrics(policy):
    return pd.DataFrame({"policy": [policy], "task": ["sums"], "metric": ["acc"], "value": [0.1]})


FACTS = {"model": {"name": "some/model", "fingerprint": "ab"}, "data": {"tasks": ["sums"]}, "settings": {"seed": 0}}


def forge(file, change):
    """Change a manifest's facts, and seal it again as headcount would."""
    facts = unsealed(json.loads(Path(file).read_text()))
    Path(file).write_bytes(sealed(change(facts)))


def shard_files(folder):
    return sorted(file for file in Path(folder).rglob("*") if file.suffix in (".safetensors", ".parquet"))
