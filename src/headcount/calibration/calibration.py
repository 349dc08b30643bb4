"""What was measured of a model's attention layers, and what follows from it.

Sources: the conditional mean of one part of a Gaussian vector given the rest, in terms of the precision matrix (Bishop 2006,
Pattern Recognition and Machine Learning, equations 2.73 and 2.75), which is ridge regression where a ridge was added to the
covariance; and the Fisher information, the mean outer product of gradients with labels drawn from the model itself.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import ValidationError
from torch import Tensor

from headcount.calibration.facts import CalibrationFacts, FileFacts
from headcount.calibration.layer import LayerCalibration, kept_shapes
from headcount.errors import InputError, ModelError
from headcount.tensor_files import TensorFile, content, write_tensors
from headcount.units import UnitMap

#: Of predictions, where nobody says another, in units of the mean variance: within 0.001 of the smallest unexplained share
#: that was found with 32, 64 and 128 texts on other texts of the same kinds (docs/calibration.md).
RIDGE = 0.1


@dataclass(frozen=True, eq=False, kw_only=True)
class Calibration:
    """What was measured of a model's attention layers on texts, as ``calibrate`` makes it.

    Calibrations of one model add up: that of two lots of texts is the sum of theirs, up to rounding.

    Attributes:
        layers: by the layer's index in the model, in its order.
        facts: what it was made of.

    Raises:
        InputError: layers that are not the model's, or tensors of other shapes, of other types or not finite.
    """

    layers: dict[int, LayerCalibration]
    facts: CalibrationFacts
    _derived: dict[tuple[str, int, float], Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        known = {layer.index: layer for layer in self.facts.layers}
        in_order = {index: self.layers[index] for index in known if index in self.layers}
        in_order |= self.layers  # which are refused if they are more
        object.__setattr__(self, "layers", in_order)
        for index, layer in in_order.items():
            if index not in known:
                raise InputError(
                    f"The calibration has a layer {index}, and its model's attention layers are {[*known]}."
                )
            try:
                layer.check(known[index], self.facts.hidden_size)
            except ValueError as error:
                raise InputError(f"The calibration of layer {index} cannot be used: {error}.") from error

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_derived": {}}

    @cached_property
    def fingerprint(self) -> str:
        """Identifies its content: 16 hex digits over what it was made of, counts and tensors."""
        digest = hashlib.sha256(json.dumps(self._said(), sort_keys=True).encode())
        for name in self._kept_shapes():
            digest.update(name.encode())
            digest.update(content(self._kept(name)))
        return digest.hexdigest()[:16]

    def linear(self, layer: int, ridge: float = RIDGE) -> Tensor:
        """The best linear map from the block's input to its head outputs, both about their means.

        A = C_oh (C_hh + Λ)⁻¹ with Λ = ``ridge`` · (mean variance of the block's input) on the diagonal: outputs are predicted
        as μ_o + A (h − μ_h).

        Returns:
            float32 ``[unit · width, hidden]``; computed in float64 and kept.

        Raises:
            InputError: no covariance was calibrated, or an unusable ridge.
        """
        return self._once("linear", layer, ridge, _linear)

    def precision(self, layer: int, ridge: float = RIDGE) -> Tensor:
        """The rows of head outputs of P = (C + Λ)⁻¹, by which any of them is predicted from all others and the input.

        Λ is diagonal: ``ridge`` · the mean variance of the head outputs on their entries, and the same of the block's input
        on its. With E = P (z − μ), the entries O have the conditional mean z_O − (P_OO)⁻¹ E_O, whichever they are: what ridge
        regression on all the others predicts.

        Returns:
            float32 ``[unit · width, unit · width + hidden]``; computed in float64 and kept.

        Raises:
            InputError: no covariance was calibrated, or an unusable ridge.
        """
        return self._once("precision", layer, ridge, _precision)

    def check(self, units: UnitMap, model_fingerprint: str) -> None:
        """Raise ModelError unless it was made of the model that has these units and this fingerprint."""
        if units != self.facts.units:
            difference = "its attention layers and heads are others"
        elif model_fingerprint != self.facts.model_fingerprint:
            difference = (
                f"weights, dtype or configuration are not the same (fingerprint {self.facts.model_fingerprint} there, "
                f"{model_fingerprint} here)"
            )
        else:
            return
        raise ModelError(
            f"The calibration is of {self.facts.model or 'another model'} in {self.facts.dtype}, not of this model: "
            f"{difference}. Load the model as it was then, or calibrate this one with `headcount calibrate`."
        )

    def __add__(self, other: "Calibration") -> "Calibration":
        """Of the texts of both.

        Raises:
            InputError: they are of different models, seeds or layers, or do not hold the same.
        """
        ours, theirs = self.facts, other.facts
        for name in ("model_fingerprint", "layers", "hidden_size", "dtype", "seed"):
            if getattr(ours, name) != getattr(theirs, name):
                raise InputError(
                    f"Calibrations add up where both have the same {name.replace('_', ' ')}; these have not."
                )
        if {i: layer.holds for i, layer in self.layers.items()} != {
            i: layer.holds for i, layer in other.layers.items()
        }:
            raise InputError(
                "Calibrations add up where both hold the same; one of these lacks layers, covariances, sensitivities or "
                "gradients that the other has. Calibrate both with the same options."
            )
        return Calibration(
            layers={index: layer + other.layers[index] for index, layer in self.layers.items()},
            facts=ours.model_copy(update={"texts": ours.texts + theirs.texts}),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as one safetensors file, whole or not at all. Covariances are symmetric: their upper halves are kept.

        Raises:
            RunError: it cannot be written.
        """
        facts = {"format": 1, "fingerprint": self.fingerprint, **self._said()}
        write_tensors(Path(path), facts, self._kept_shapes(), self._kept)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """From a file that ``save`` wrote; whatever else it may be is refused.

        All of it is read once and checked, a matrix at a time; matrices are read again when they are used.

        Raises:
            InputError: the file cannot be read, is none of headcount's, or was altered.
        """
        try:
            file = TensorFile(Path(os.path.realpath(path)))
            said = FileFacts.model_validate_json(json.dumps(file.facts))
            found = cls(layers=_layers(said, file), facts=said.facts)
            if found.fingerprint != said.fingerprint:
                raise ValueError("its content is not what was written")
        except OSError as error:
            raise InputError(f"The calibration {str(path)!r} cannot be read ({error.strerror or error}).") from error
        except ValidationError as error:
            first = error.errors()[0]
            raise _no_calibration(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        except (ValueError, RecursionError) as error:
            raise _no_calibration(path, str(error).rstrip(".")) from error
        return found

    def _once(self, name: str, layer: int, ridge: float, make: Callable[[Tensor, int, float], Tensor]) -> Tensor:
        key = name, layer, ridge
        if key not in self._derived:
            if not 0 < ridge < float("inf"):
                raise InputError(f"ridge is a number greater than 0, not {ridge}.")
            if layer not in self.layers:
                raise InputError(f"Layer {layer} was not calibrated; these were: {[*self.layers]}.")
            known = self.layers[layer]
            if (covariance := known.covariance) is None:
                raise InputError(
                    "The calibration holds no covariances, which predictions need. Calibrate again without --no-covariances "
                    "(covariances=True)."
                )
            try:
                self._derived[key] = make(covariance.double(), known.mean.numel(), ridge).float()
            except ValueError:
                raise InputError(
                    f"The covariance of layer {layer} cannot be inverted with ridge {ridge}. Use a larger ridge, or more texts."
                ) from None
        return self._derived[key]

    def _said(self) -> dict[str, Any]:
        counts = {str(index): layer.counts().model_dump() for index, layer in self.layers.items()}
        return {"facts": self.facts.model_dump(mode="json"), "counts": counts}

    def _kept_shapes(self) -> dict[str, tuple[int, ...]]:
        """By LAYER.NAME, in the file's order."""
        units = {layer.index: layer for layer in self.facts.layers}
        return {
            f"{index}.{name}": shape
            for index, layer in self.layers.items()
            for name, shape in kept_shapes(units[index], self.facts.hidden_size).items()
            if name in layer.holds
        }

    def _kept(self, name: str) -> Tensor:
        layer, _, of_layer = name.partition(".")
        return self.layers[int(layer)].kept(of_layer)


def _layers(said: FileFacts, file: TensorFile) -> dict[int, LayerCalibration]:
    units = {str(layer.index): layer for layer in said.facts.layers}
    of_layers: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for name, shape in file.shapes.items():
        index, _, of_layer = name.partition(".")
        of_layers[index][of_layer] = shape
    if of_layers.keys() != said.counts.keys() or not of_layers.keys() <= units.keys():
        raise ValueError("its tensors are of other layers than it says")

    def reading(index: str) -> Callable[[str], Tensor]:
        def read(name: str) -> Tensor:
            try:
                return file.read(f"{index}.{name}")
            except (OSError, ValueError) as error:
                raise InputError(
                    f"The calibration {str(file.path)!r} cannot be read any more ({error}). Load it again."
                ) from error

        return read

    return {
        int(index): LayerCalibration.of_kept(
            units[index], said.facts.hidden_size, counts, of_layers[index], reading(index)
        )
        for index, counts in said.counts.items()
    }


def _linear(covariance: Tensor, outputs: int, ridge: float) -> Tensor:
    of_input = covariance[outputs:, outputs:]
    of_input.diagonal().add_(ridge * of_input.diagonal().mean())
    return torch.cholesky_solve(covariance[outputs:, :outputs], _factor(of_input)).T.contiguous()


def _precision(covariance: Tensor, outputs: int, ridge: float) -> Tensor:
    for part in (covariance.diagonal()[:outputs], covariance.diagonal()[outputs:]):
        part.add_(ridge * part.mean())
    return torch.cholesky_inverse(_factor(covariance))[:outputs].contiguous()


def _factor(covariance: Tensor) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if bool(failed):
        raise ValueError("not positive definite")
    return factor


def _no_calibration(path: str | os.PathLike[str], why: str) -> InputError:
    return InputError(
        f"{str(path)!r} is not a calibration as headcount writes it ({why}). Make one with `headcount calibrate MODEL --texts … "
        f"-o FILE`."
    )
