"""Removal of MLP neurons: which of them go, what replaces them, and the maps without them."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from headcount.calibration import Calibration
from headcount.devices import with_float64
from headcount.errors import InputError, ModelError
from headcount.models.batching import Progress, data_fingerprint, no_progress, run_in_batches
from headcount.models.instrument import instrument
from headcount.models.mlps import Mlp
from headcount.models.observe import decoder_of, mlps_of, units_of
from headcount.models.reading import batch_of
from headcount.removal.cut import laid_out, resized_copy
from headcount.removal.fitting import Fitting
from headcount.removal.head_weights import refuse_offloaded, sizes
from headcount.removal.plan import NeuronPlan
from headcount.removal.replace import How, Replacement, read_projection, without_inputs
from headcount.removal.selection import Selection
from headcount.scores import get_score
from headcount.units import UnitSet

#: The score that neurons are chosen by where none is named.
NEURON_SCORE = "rms_res"


def select_neurons(
    model: PreTrainedModel,
    fitting: Fitting,
    *,
    share: float,
    score: str = NEURON_SCORE,
    calibration: Calibration | None = None,
    name: str = "",
    progress: Progress = no_progress,
) -> Selection:
    """The neurons whose score these texts give the mean that says least need, as many of each layer.

    Args:
        model: is left as it was.
        fitting: the texts to choose on.
        share: of each layer's neurons.
        score: the id of a registered score of neurons.
        calibration: of the model, for a score that needs one.
        name: of the model, for people.
        progress: called with (texts done, in all).

    Raises:
        InputError: a share below one neuron, or a layer of which too few neurons have a finite score on every text.
        ModelError: a model whose neurons cannot be measured.
    """
    if not fitting.rows:
        raise InputError("Neurons are chosen on texts. Give some.")
    units, score = units_of(model, "neuron"), get_score(score).id
    total = np.zeros((len(units.layers), units.most_units))
    rows = fitting.rows

    def run(batch: list[int]) -> None:
        nonlocal total
        tokens, mask, _ = batch_of(model, [rows[i] for i in batch])
        measuring = instrument(model, scores=[score], seed=fitting.seed, calibration=calibration, unit="neuron")
        with measuring as probe, torch.inference_mode():
            model.base_model(input_ids=tokens, attention_mask=mask, use_cache=False)
        total = total + probe.scores[score].values.sum(0, dtype=np.float64)

    run_in_batches([len(row) for row in rows], fitting.batch_tokens, run, progress)
    need = total / len(rows) * (1 if get_score(score).inactive_when == "low" else -1)
    need[~np.isfinite(need)] = np.inf  # without a finite score it stays
    gone: list[tuple[float, int, int]] = []
    for place, layer in enumerate(units.layers):
        of_layer = need[place, : layer.num_parts]
        num_gone = int(share * layer.num_parts + 1e-9)
        if not num_gone:
            raise InputError(
                f"A share of {share:g} is less than one of the {layer.num_parts} neurons of layer {layer.index}. "
                "Ask for a larger share."
            )
        if (finite := int(np.isfinite(of_layer).sum())) < num_gone:
            raise InputError(
                f"Of layer {layer.index} {finite} of {layer.num_parts} neurons have a finite {score} score on every text, "
                f"fewer than the {num_gone} to remove. Choose by another score, on longer texts, or load the model in float32."
            )
        least = np.argsort(of_layer, kind="stable")[:num_gone]
        gone += [(float(of_layer[neuron]), layer.index, int(neuron)) for neuron in least]
    chosen = {
        "score": score, "share": share, "of": "each layer", "aggregate": "mean", "texts": len(rows),
        "tokens": sum(map(len, rows)), "texts' fingerprint": data_fingerprint(rows),
        "dtype": str(model.dtype).removeprefix("torch."), "seed": fitting.seed,
    }  # fmt: skip
    ordered = [(layer, neuron) for _, layer, neuron in sorted(gone)]
    return Selection.of(model, ordered, name=name, kind="neuron", chosen=chosen)


def plain_mlps(model: PreTrainedModel) -> dict[int, Mlp]:
    """The MLP of each decoder layer, by the layer's place.

    Raises:
        ModelError: one whose neurons cannot be cut out, or weights that are not in memory.
    """
    refuse_offloaded(model)
    mlps = mlps_of(model)
    names = {id(module): name for name, module in model.named_modules()}
    for layer, mlp in mlps.items():
        if not mlp.makers:
            raise ModelError(
                f"Layer {layer} of {type(model).__name__} has no linear map whose outputs are its MLP's neurons, so they cannot "
                "be cut out. Use zero-filled weights (--format zeros), which keep every shape."
            )
        for projection in (*mlp.makers, mlp.down):
            if type(projection) not in (nn.Linear, Conv1D):
                raise ModelError(
                    f"{names[id(projection)]} is a {type(projection).__name__}, not a plain projection, so its neurons cannot "
                    "be cut out. Load the model without quantisation, and merge adapters into it first."
                )
    return mlps


def replace_neurons(
    model: PreTrainedModel, removed: UnitSet, how: How, fitting: Fitting, *, progress: Progress = no_progress
) -> Replacement:
    """The last map of each MLP that loses neurons, without ``removed``; ``mean`` adds what their mean gives to its bias.

    The mean is over the tokens that count.

    Raises:
        InputError: neurons that the model lacks, no calibration texts, or ``refit``.
    """
    if how == "refit":
        raise InputError("Neurons are replaced by zero or mean; refit is for heads. Use --replace zero, or mean.")
    if how == "mean" and not fitting.texts:
        raise InputError("Replacing neurons by mean needs calibration texts of two tokens or more. Give some.")
    removed.check(units_of(model, "neuron"))
    mlps = mlps_of(model)
    gone = {
        layer: torch.zeros(mlps[layer].num_neurons, dtype=torch.bool)
        for layer in sorted({layer for layer, _ in removed})
    }
    for layer, neuron in removed:
        gone[layer][neuron] = True
    means = _neuron_means(model, fitting, [*gone], progress) if how == "mean" else {}
    projections = {layer: without_inputs(mlps[layer].down, mask, means.get(layer)) for layer, mask in gone.items()}
    return Replacement(removed=removed, how=how, projections=projections, fitting=fitting, kind="neuron")


def _neuron_means(model: PreTrainedModel, fitting: Fitting, layers: list[int], progress: Progress) -> dict[int, Tensor]:
    """By layer, the mean of each neuron's activation over the tokens that count, float64 ``[neuron]``."""
    mlps, texts = mlps_of(model), fitting.texts
    totals: dict[int, Any] = dict.fromkeys(layers, 0.0)

    def run(batch: list[int]) -> None:
        tokens, mask, counted = batch_of(model, [texts[i] for i in batch])
        seen: dict[int, Tensor] = {}

        def keeping(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
                values = args[0].reshape(-1, args[0].shape[-1])
                values = with_float64(values[counted.flatten().to(values.device)])
                seen[layer] = values.sum(0, dtype=torch.float64).cpu()

            return keep

        with ExitStack() as stack, torch.inference_mode():
            for layer in layers:
                stack.callback(mlps[layer].down.register_forward_pre_hook(keeping(layer)).remove)
            model.base_model(input_ids=tokens, attention_mask=mask, use_cache=False)
        for layer, total in seen.items():
            totals[layer] = totals[layer] + total

    run_in_batches([len(row) for row in texts], fitting.batch_tokens, run, progress)
    count = sum(len(row) - 1 for row in texts)
    return {layer: total / count for layer, total in totals.items()}


def cut_neurons(
    model: PreTrainedModel, plan: NeuronPlan, replacement: Replacement
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A copy of the model without the plan's neurons, and how it was resized: as ``cut_heads``.

    Raises:
        ModelError: an MLP whose neurons cannot be cut out.
    """
    assert replacement.removed == plan.removed
    mlps, decoder = plain_mlps(model), decoder_of(model)
    paths = {id(module): name for name, module in model.named_modules()}
    resized: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for place, kept in plan.kept.items():
        mlp, layer, new = mlps[place], decoder.layers[place], replacement.projections[place]
        names = {id(module): name for name, module in layer.named_modules()}
        of_layer: dict[str, Tensor] = {}
        projections: dict[str, list[Any]] = {}
        staying = torch.tensor(kept)
        for maker in mlp.makers:
            weight, bias = read_projection(maker)
            rows = torch.cat([staying + start for start in range(0, len(weight), mlp.num_neurons)])
            projections[names[id(maker)]] = [weight.shape[1], len(rows), bias is not None]
            of_layer |= laid_out(layer, names[id(maker)], weight[rows], None if bias is None else bias[rows])
        projections[names[id(mlp.down)]] = [len(kept), len(new.weight), new.bias is not None]
        of_layer |= laid_out(layer, names[id(mlp.down)], new.weight[:, staying], new.bias)
        path = paths[id(layer)]
        tensors |= {f"{path}.{name}": tensor for name, tensor in of_layer.items()}
        resized[path] = {
            "projections": projections, "vectors": {}, "lists": {}, "attributes": {}, "config": {}, "key_value_index": None,
        }  # fmt: skip
    return resized_copy(model, resized, tensors), resized


def parameters_left(model: PreTrainedModel, plan: NeuronPlan, *, biases: bool) -> tuple[int, int]:
    """Parameters of the model before and after; ``biases``: whether last maps without a bias get one."""
    before, mlps = sum(parameter.numel() for parameter in model.parameters()), plain_mlps(model)
    after = before
    for layer, kept in plan.kept.items():
        mlp = mlps[layer]
        of_neuron = sizes(mlp.down)[0]
        for maker in mlp.makers:
            outputs, inputs = sizes(maker)
            of_neuron += outputs // mlp.num_neurons * (inputs + (getattr(maker, "bias", None) is not None))
        after -= of_neuron * (mlp.num_neurons - len(kept))
        if biases and getattr(mlp.down, "bias", None) is None:
            after += sizes(mlp.down)[0]
    return before, after
