"""Measure once, on texts, what calibrated scores and replacements need of a model's attention layers."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from headcount.calibration import Calibration, CalibrationFacts, CalibrationTexts, LayerCalibration
from headcount.calibration.layer import symmetric
from headcount.errors import InputError, ModelError, seed_of, whole
from headcount.measure import token_ids, versions
from headcount.models.batching import Progress, batch_tokens_for, check_lengths, data_fingerprint, no_progress
from headcount.models.loading import fingerprint
from headcount.models.observe import units_of
from headcount.models.reading import Heard, block_inputs, changed_outputs, read_layers
from headcount.models.sensitivity import sensitivities
from headcount.models.state import reads
from headcount.moments import Covariance, Mean
from headcount.store.parts import CalibrationParts, calibrating, clear_parts
from headcount.store.whole import check_writable
from headcount.units import LayerUnits

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
#: Bytes that sums of products may take at a time, in float64, where nobody says another number.
MEMORY = 2 * 2**30


@reads
def calibrate(
    model: "PreTrainedModel",
    inputs: Sequence[str] | Sequence[Sequence[int]],
    *,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    covariances: bool = True,
    sensitivity: bool = True,
    gradients: bool = False,
    batch_tokens: int | None = None,
    memory: int = MEMORY,
    seed: int = 0,
    too_long: str = "refuse",
    into: str | os.PathLike[str] | None = None,
    name: str = "",
    command: str = "",
    prepared: Callable[[list[list[int]]], object] = lambda _: None,
    progress: Callable[[str], Progress] = lambda _: no_progress,
) -> Calibration:
    """What calibrated scores and replacements need of every attention layer, from a few passes over texts.

    Nothing of a text is kept: means and covariances are summed as its tokens come, as many layers at a time as ``memory``
    allows, each such group in a pass that ends after its last layer. The sensitivity takes one backward pass more. Padding
    never counts, and numbers do not depend on how texts are batched, beyond rounding.

    Args:
        model: a causal language model, as from ``load``; is left as it was.
        inputs: texts, or lists of token ids, to which nothing is added.
        tokenizer: needed for texts; adds the special tokens it adds by default.
        covariances: of head outputs and block inputs, for predictions; else means alone.
        sensitivity: of the model's predictions to what each layer writes; needs gradients.
        gradients: also the mean outer product of these gradients.
        batch_tokens: tokens in a batch, padding included; None for as many as suit the memory.
        memory: bytes that sums of products may take at a time; one layer's are always taken.
        seed: of the tokens that are drawn from the model's predictions.
        too_long: what to do with an input longer than the model's positions: ``refuse``, or ``cut`` its end off.
        into: a new file, where it is also written. What is done of it is kept in a hidden folder beside it, so that the same
            call goes on where one before was stopped, to the same bytes.
        name: of the model, for people. [default: where it was loaded from]
        command: for people who wait for the file.
        prepared: called with the token ids of what is read, before that takes minutes.
        progress: called with the name of each step, gives what to call with (done, total).

    Raises:
        InputError: no inputs, none of two tokens or more, inputs too long, or a file that exists.
        ModelError: a model that cannot be measured, whose blocks' inputs or gradients cannot be had, or whose numbers are not
            finite.
        RunError: the file cannot be written, or is being made by another process.
    """
    file = new_file(into, sensitivity=sensitivity, gradients=gradients)
    memory = whole(memory, "memory is a number of bytes, at least 1", least=1)
    rows, _ = check_lengths(token_ids(inputs, tokenizer), model, too_long=too_long)
    if max(map(len, rows)) < 2:
        raise InputError(
            "A calibration needs a text of two tokens or more: the first of each is apart. Give longer texts."
        )
    prepared(rows)
    batch_tokens = batch_tokens_for(model, batch_tokens)
    _refuse_changed_outputs(model)
    facts = _facts(model, rows, seed_of(seed), name)
    if covariances:
        _refuse_without_inputs(model, facts.hidden_size)
    with calibrating(file, facts, command) as parts:
        squared = parts.sensitivities(gradients=gradients) if sensitivity else {}
        if squared is None:
            squared = sensitivities(
                model, rows, batch_tokens=batch_tokens, seed=facts.seed, gradients=gradients,
                progress=progress("Differentiating its predictions"),
            )  # fmt: skip
            parts.keep_sensitivities(squared)
        layers = _layers(
            model, rows, facts, parts, covariances=covariances, batch_tokens=batch_tokens, memory=memory,
            progress=progress,
        )  # fmt: skip
        for index, (mean, outer) in squared.items():
            layers[index] = LayerCalibration(**vars(layers[index]) | {"sensitivity": mean, "gradients": outer})
        calibration = Calibration(layers=layers, facts=facts)
        if file is not None:
            parts.finish(calibration, file)
            calibration = Calibration.load(file)  # matrices are read from there; the parts go
    return calibration


def new_file(into: str | os.PathLike[str] | None, *, sensitivity: bool, gradients: bool) -> Path | None:
    """The file to write, if one is wanted. What of ``calibrate``'s options is wrong without a model is said here.

    Raises:
        InputError: it exists, or gradients are wanted without the sensitivity.
        RunError: it cannot be written.
    """
    if gradients and not sensitivity:
        raise InputError(
            "Gradients are part of the sensitivity: leave --no-sensitivity (sensitivity=False), or the gradients, out."
        )
    if into is None:
        return None
    file = Path(os.path.abspath(into))
    if os.path.lexists(file):
        clear_parts(file)
        raise InputError(f"{os.fspath(into)!r} exists already. Choose another file with -o (into), or remove it first.")
    check_writable(file)
    return file


def layer_groups(layers: Sequence[LayerUnits], hidden_size: int, memory: int | None) -> list[list[int]]:
    """Layers by index, in order, as many together as have sums of products that fit in ``memory``; None for means alone.

    >>> layers = [LayerUnits(index=i, num_attention_heads=2, num_key_value_heads=2, head_dim=4) for i in range(3)]
    >>> layer_groups(layers, 8, memory=2 * 8 * 16**2)
    [[0, 1], [2]]
    """
    groups: list[list[int]] = []
    taken = 0
    for layer in layers:
        size = 0 if memory is None else sum_bytes(layer, hidden_size)
        if not groups or taken + size > (memory or 0):
            groups.append([])
            taken = 0
        groups[-1].append(layer.index)
        taken += size
    return groups


def sum_bytes(layer: LayerUnits, hidden_size: int) -> int:
    """Bytes of a layer's sum of products, in float64."""
    return 8 * (layer.num_attention_heads * layer.head_dim + hidden_size) ** 2


def _facts(model: "PreTrainedModel", rows: Sequence[Sequence[int]], seed: int, name: str) -> CalibrationFacts:
    texts = CalibrationTexts(fingerprint=data_fingerprint(rows), num_texts=len(rows), num_tokens=sum(map(len, rows)))
    return CalibrationFacts(
        model=name or str(getattr(model.config, "_name_or_path", "")), model_fingerprint=fingerprint(model),
        dtype=str(model.dtype).removeprefix("torch."), hidden_size=model.config.get_text_config().hidden_size,
        layers=units_of(model).heads, texts=(texts,), seed=seed, versions=versions(),
    )  # fmt: skip


def _refuse_changed_outputs(model: "PreTrainedModel") -> None:
    if changed := changed_outputs(model):
        raise ModelError(
            f"What the heads of layer {changed[0]} of {type(model).__name__} put out is changed before the output projection, as "
            "by a gate, so what would stand in a head's place there is not what was calibrated. Such a model's heads can be "
            "zeroed (scores without a calibration), and removed with `headcount prune`."
        )


def _refuse_without_inputs(model: "PreTrainedModel", hidden_size: int) -> None:
    for layer, shape in block_inputs(model).items():
        if shape is None or shape[-1] != hidden_size:
            seen = "is not to be seen" if shape is None else f"is {shape[-1]} wide"
            raise ModelError(
                f"What enters the attention block of layer {layer} of {type(model).__name__} {seen}, and covariances are of head "
                f"outputs and an input {hidden_size} wide. Leave covariances out with --no-covariances (covariances=False)."
            )


def _layers(
    model: "PreTrainedModel",
    rows: Sequence[Sequence[int]],
    facts: CalibrationFacts,
    parts: CalibrationParts,
    *,
    covariances: bool,
    batch_tokens: int,
    memory: int,
    progress: Callable[[str], Progress],
) -> dict[int, LayerCalibration]:
    """Every layer's means and covariance: those that are done, and the others, a group at a time."""
    units = {layer.index: layer for layer in facts.layers}
    done = {index: parts.layer(index, covariance=covariances) for index in units}
    missing = [index for index, layer in done.items() if layer is None]
    sums: dict[int, _Sums] = {}

    def hear(index: int, heard: Heard) -> None:
        if index not in sums:
            sums[index] = _Sums(covariances)
        sums[index].add(heard)

    groups = layer_groups([units[index] for index in missing], facts.hidden_size, memory if covariances else None)
    told = progress("Reading layer by layer") if groups else no_progress
    for group in read_layers(model, rows, groups, batch_tokens, hear, progress=told):
        for index in group:
            done[index] = parts.keep_layer(index, sums.pop(index).layer(units[index], model))
    return {index: layer for index, layer in done.items() if layer is not None}


class _Sums:
    """What comes of one layer, summed."""

    def __init__(self, covariance: bool) -> None:
        self._joint = Covariance() if covariance else Mean()
        self._first = Mean()

    def add(self, heard: Heard) -> None:
        self._first.add(heard.outputs[heard.first])
        vectors = heard.outputs[heard.counted].float()
        if isinstance(self._joint, Covariance):
            assert heard.inputs is not None
            vectors = torch.cat([vectors, heard.inputs[heard.counted].to(vectors)], -1)
        self._joint.add(vectors)

    def layer(self, units: LayerUnits, model: "PreTrainedModel") -> LayerCalibration:
        """Raises ModelError where it is not finite."""
        joint, first = self._joint.mean.float().cpu(), self._first.mean.float().cpu()
        covariance = symmetric(self._joint.covariance).cpu() if isinstance(self._joint, Covariance) else None
        if not all(bool(torch.isfinite(each).all()) for each in (joint, first, covariance) if each is not None):
            raise ModelError(
                f"Head outputs or inputs of layer {units.index} are not finite in {str(model.dtype).removeprefix('torch.')}. "
                "Load the model with --dtype float32."
            )
        shape = units.num_attention_heads, units.head_dim
        outputs = shape[0] * shape[1]
        return LayerCalibration(
            count=self._joint.count, mean=joint[:outputs].view(shape).clone(), first_count=self._first.count,
            first=first.view(shape), input_mean=None if covariance is None else joint[outputs:].clone(),
            covariance=covariance,
        )  # fmt: skip
