"""A calibration of made-up numbers, by the definitions in numpy."""

import numpy as np
import torch

from headcount.calibration import Calibration, CalibrationFacts, CalibrationTexts, LayerCalibration
from headcount.units import LayerUnits

HEADS, WIDTH, HIDDEN = 3, 4, 5
LAYERS = (
    LayerUnits(index=0, num_attention_heads=HEADS, num_key_value_heads=1, head_dim=WIDTH),
    LayerUnits(index=2, num_attention_heads=HEADS, num_key_value_heads=3, head_dim=WIDTH),
)


def tensor(array):
    return torch.tensor(array, dtype=torch.float32)


def vectors(seed, count=60):
    """float64 ``[token, head · width + hidden]``: head outputs beside the block's input, all of them correlated."""
    draw = np.random.default_rng(seed)
    mixed = draw.normal(size=(HEADS * WIDTH + HIDDEN, HEADS * WIDTH + HIDDEN))
    return draw.normal(size=(count, len(mixed))) @ mixed + draw.normal(size=len(mixed))


def layer_of(z, first, gradients):
    """What is calibrated of a layer: z as of ``vectors``, float64 ``[text, head · width]`` and ``[token, hidden]``."""
    outputs = HEADS * WIDTH
    return LayerCalibration(
        count=len(z),
        mean=tensor(z[:, :outputs].mean(0).reshape(HEADS, WIDTH)),
        first_count=len(first),
        first=tensor(first.mean(0).reshape(HEADS, WIDTH)),
        input_mean=tensor(z[:, outputs:].mean(0)),
        covariance=tensor(np.cov(z.T, bias=True)),
        sensitivity=float((gradients**2).sum(1).mean()),
        gradients=tensor(gradients.T @ gradients / len(gradients)),
    )


def facts(**changed):
    return CalibrationFacts(
        **{
            "model": "made", "model_fingerprint": "f" * 16, "dtype": "float32", "hidden_size": HIDDEN, "layers": LAYERS,
            "texts": (CalibrationTexts(fingerprint="0" * 16, num_texts=7, num_tokens=67),), "seed": 0,
            "versions": {"headcount": "0"},
        }
        | changed
    )  # fmt: skip


def measured(seed, count=60):
    """What a layer's calibration is of."""
    draw = np.random.default_rng(seed + 100)
    return vectors(seed, count), draw.normal(size=(7, HEADS * WIDTH)), draw.normal(size=(count, HIDDEN))


def calibration(seed=1, **changed):
    layers = {layer.index: layer_of(*measured(seed + layer.index)) for layer in LAYERS}
    return Calibration(layers=layers, facts=facts(**changed))
