"""A calibration worked out by hand: what reaches output projections and attention blocks, collected by hooks."""

from contextlib import ExitStack

import numpy as np
import torch

from headcount.calibration import RIDGE, Calibration, LayerCalibration
from headcount.calibration.facts import CalibrationFacts, CalibrationTexts
from headcount.models.loading import fingerprint
from headcount.models.observe import attention_modules, units_of
from headcount.models.projection import output_projection

SENSITIVITIES = (0.5, 2.0, 1.0, 3.0)


def seen(model, rows):
    """For each layer and text: (head outputs [token, head · width], block input [token, hidden]) in the untouched model."""
    found = {layer: [] for layer in attention_modules(model)}
    for row in rows:
        with ExitStack() as stack, torch.no_grad():
            for layer, module in attention_modules(model).items():
                entry = [None, None]
                found[layer].append(entry)
                stack.callback(module.register_forward_pre_hook(_noting(entry, 1), with_kwargs=True).remove)
                projection = output_projection(module)
                stack.callback(projection.register_forward_pre_hook(_noting(entry, 0), with_kwargs=True).remove)
            model(torch.tensor([row]), use_cache=False)
    return found


def _noting(entry, place):
    def hook(_, args, kwargs):
        entry[place] = (args[0] if args else kwargs["hidden_states"])[0].double().numpy()

    return hook


def calibrated_on(model, rows):
    """The calibration of a model on texts, by numpy."""
    units, layers = units_of(model), {}
    hidden = next(iter(seen(model, rows[:1]).values()))[0][1].shape[1]
    for place, (layer, texts) in enumerate(seen(model, rows).items()):
        shape = units.layers[place].num_attention_heads, units.layers[place].head_dim
        joint = np.concatenate([np.concatenate([outputs, inputs], 1)[1:] for outputs, inputs in texts])
        width, mean = shape[0] * shape[1], joint.mean(0)
        layers[layer] = LayerCalibration(
            count=len(joint), mean=torch.tensor(mean[:width]).float().view(shape), first_count=len(texts),
            first=torch.tensor(np.stack([outputs[0] for outputs, _ in texts]).mean(0)).float().view(shape),
            input_mean=torch.tensor(mean[width:]).float(), covariance=_symmetric(np.cov(joint.T, bias=True)),
            sensitivity=SENSITIVITIES[place % 4],
        )  # fmt: skip
    texts = CalibrationTexts(fingerprint="by hand", num_texts=len(rows), num_tokens=sum(map(len, rows)))
    facts = CalibrationFacts(
        model="tiny", model_fingerprint=fingerprint(model), dtype="float32", hidden_size=hidden, layers=units.layers,
        texts=(texts,), seed=0, versions={},
    )  # fmt: skip
    return Calibration(layers=layers, facts=facts)


def _symmetric(matrix):
    upper = torch.tensor(matrix).float().triu()
    return upper + upper.triu(1).T


def predicted(known, off, outputs, inputs, how, ridge=RIDGE):
    """What stands for the heads ``off`` (bool [head]) of each token ``outputs [token, head · width]``, by ridge regression."""
    heads, width = known.mean.shape
    mean, first = known.mean.double().numpy().ravel(), known.first.double().numpy().ravel()
    covariance = known.covariance.double().numpy()
    gone = np.repeat(off, width)
    size = heads * width
    variance = np.concatenate([
        np.full(size, np.diag(covariance)[:size].mean()), np.full(len(covariance) - size, np.diag(covariance)[size:].mean())
    ])  # fmt: skip
    if how == "zero":
        return np.zeros_like(outputs[:, gone])
    if how == "mean":
        found = np.repeat(mean[None, gone], len(outputs), 0)
    else:
        into = np.concatenate([~gone if how == "kept" else np.zeros(size, bool), np.ones(len(covariance) - size, bool)])
        target = np.flatnonzero(gone)
        regression = np.linalg.solve(
            covariance[into][:, into] + ridge * np.diag(variance[into]), covariance[into][:, target]
        )
        centred = np.concatenate([outputs - mean, inputs - known.input_mean.double().numpy()], 1)[:, into]
        found = mean[gone] + centred @ regression
    found = found.copy()
    found[0] = first[gone]
    return found
