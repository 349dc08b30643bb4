"""What is measured of one attention layer, how two of them add up, and what of it is kept in a file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, Self

import torch
from torch import Tensor

from headcount.calibration.facts import Counts
from headcount.units import LayerUnits

_SYMMETRIC = ("covariance", "gradients")
_Shape = tuple[int, ...]


@dataclass(frozen=True)
class Stored:
    """A symmetric matrix of which a file has the upper half, read whenever it is asked for. Pickled, it is the matrix."""

    upper: Callable[[], Tensor]
    size: int

    def whole(self) -> Tensor:
        """``[size, size]``."""
        matrix = torch.empty(self.size, self.size)
        for i, row in enumerate(self.upper().split([*range(self.size, 0, -1)])):
            matrix[i, i:] = row
            matrix[i:, i] = row
        return matrix

    def __reduce__(self) -> tuple[Callable[[Tensor], Tensor], tuple[Tensor]]:
        return torch.clone, (self.whole(),)


class _Matrix:
    """A field that is a matrix, or ``Stored``, and is read as the matrix."""

    def __set_name__(self, _: type, name: str) -> None:
        self._name = name

    def __get__(self, layer: object, _: type | None = None) -> Tensor | None:
        found = None if layer is None else vars(layer)[self._name]
        return found.whole() if isinstance(found, Stored) else found

    def __set__(self, layer: object, value: Tensor | Stored | None) -> None:
        vars(layer)[self._name] = value


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerCalibration:
    """What was measured of one attention layer; the first token of each text is apart.

    Matrices of a file stay there: each use of one reads it.

    Attributes:
        count: tokens that are not the first of their text.
        mean: float32 ``[unit, width]``: of the heads' outputs, as they enter the output projection, over these tokens.
        first_count: first tokens.
        first: float32 ``[unit, width]``: the same mean over the first tokens.
        input_mean: float32 ``[hidden]``: of what enters the attention block (its normed input), over ``count`` tokens.
        covariance: float32 ``[unit · width + hidden, the same]``: of head outputs and block input together, about their
            mean, divided by ``count``. With it comes ``input_mean``.
        sensitivity: nats²: the mean over ``count`` tokens of ‖g‖², where g is the gradient, at the output of the output
            projection, of the text's summed −log p(y), and each y is drawn from the model's own prediction.
        gradients: float32 ``[hidden, hidden]``: the mean of g gᵀ.
    """

    count: int
    mean: Tensor
    first_count: int
    first: Tensor
    input_mean: Tensor | None = None
    covariance: _Matrix = _Matrix()
    sensitivity: float | None = None
    gradients: _Matrix = _Matrix()

    @property
    def holds(self) -> frozenset[str]:
        """The names of what was measured."""
        return frozenset(name for name, value in vars(self).items() if value is not None)

    def __add__(self, other: "LayerCalibration") -> "LayerCalibration":
        """Of the texts of both, which hold the same."""
        count, first_count = self.count + other.count, self.first_count + other.first_count
        own, own_first = self.count / count, self.first_count / first_count
        sensitivity = None
        if self.sensitivity is not None and other.sensitivity is not None:
            sensitivity = own * self.sensitivity + (1 - own) * other.sensitivity
        covariance = gradients = input_mean = None
        ours, theirs = self.covariance, other.covariance
        if ours is not None and theirs is not None:
            assert self.input_mean is not None and other.input_mean is not None
            apart = torch.cat([(self.mean - other.mean).flatten(), self.input_mean - other.input_mean]).double()
            covariance = _mixed(ours, theirs, own).addr_(apart, apart, alpha=own * (1 - own))
            input_mean = _mixed(self.input_mean, other.input_mean, own).float()
        ours, theirs = self.gradients, other.gradients
        if ours is not None and theirs is not None:
            gradients = symmetric(_mixed(ours, theirs, own))
        return LayerCalibration(
            count=count, mean=_mixed(self.mean, other.mean, own).float(), first_count=first_count,
            first=_mixed(self.first, other.first, own_first).float(), input_mean=input_mean,
            covariance=None if covariance is None else symmetric(covariance), sensitivity=sensitivity,
            gradients=gradients,
        )  # fmt: skip

    def check(self, units: LayerUnits, hidden_size: int) -> None:
        """Raise ValueError, with what is wrong, unless it is of a layer with these units."""
        if self.count < 1 or self.first_count < 1:
            raise ValueError("it counts no tokens")
        if len(self.holds & {"covariance", "input_mean"}) == 1:
            raise ValueError("of covariance and input_mean it holds one alone")
        if "gradients" in self.holds and self.sensitivity is None:
            raise ValueError("it holds gradients and no sensitivity")
        for name, shape in _shapes(units, hidden_size).items():
            tensor: Tensor | None = getattr(self, name)
            if tensor is None:
                continue
            if tensor.dtype != torch.float32 or tensor.shape != shape or tensor.device.type != "cpu":
                raise ValueError(f"{name} is not a tensor of 32-bit floats in main memory with shape {list(shape)}")
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{name} holds numbers that are not finite")
            if name in _SYMMETRIC and not (bool((tensor.diagonal() >= 0).all()) and torch.equal(tensor, tensor.T)):
                raise ValueError(f"{name} is not symmetric with a diagonal of 0 and more")

    def counts(self) -> Counts:
        """What of it are no tensors."""
        return Counts(count=self.count, first_count=self.first_count, sensitivity=self.sensitivity)

    def kept(self, name: str) -> Tensor:
        """A tensor as a file holds it."""
        tensor: Tensor | Stored = vars(self)[name]
        if isinstance(tensor, Stored):
            return tensor.upper()
        return torch.cat([row[i:] for i, row in enumerate(tensor)]) if name in _SYMMETRIC else tensor

    @classmethod
    def of_kept(
        cls,
        units: LayerUnits,
        hidden_size: int,
        counts: Counts,
        kept: Mapping[str, _Shape],
        read: Callable[[str], Tensor],
    ) -> Self:
        """From what a file holds, by name with its shape, and what reads it. Matrices are not read.

        Raises:
            ValueError: tensors of other names or shapes.
        """
        shapes = kept_shapes(units, hidden_size)
        for name, shape in kept.items():
            if shape != shapes.get(name):
                raise ValueError(f"{name!r:.50} is no tensor of layer {units.index}, or has another shape")
        if missing := {"mean", "first"} - kept.keys():
            raise ValueError(f"layer {units.index} has no {' and no '.join(sorted(missing))}")
        sizes = _shapes(units, hidden_size)
        tensors: dict[str, Any] = {
            name: Stored(partial(read, name), sizes[name][0]) if name in _SYMMETRIC else read(name) for name in kept
        }
        return cls(**counts.model_dump(), **tensors)


def kept_shapes(units: LayerUnits, hidden_size: int) -> dict[str, _Shape]:
    """The shapes of a layer's tensors in a file: of symmetric ones the upper half, row after row."""
    shapes = _shapes(units, hidden_size)
    return {name: (n[0] * (n[0] + 1) // 2,) if name in _SYMMETRIC else n for name, n in shapes.items()}


def _shapes(units: LayerUnits, hidden_size: int) -> dict[str, _Shape]:
    outputs = units.num_attention_heads, units.head_dim
    joint = prod(outputs) + hidden_size
    return {
        "mean": outputs, "first": outputs, "input_mean": (hidden_size,), "covariance": (joint, joint),
        "gradients": (hidden_size, hidden_size),
    }  # fmt: skip


def _mixed(ours: Tensor, theirs: Tensor, own: float) -> Tensor:
    """float64: ``own`` parts of ours, the rest of theirs."""
    return own * ours.double() + (1 - own) * theirs.double()


def symmetric(matrix: Tensor) -> Tensor:
    """float32, with one value where rounding gave two."""
    return ((matrix + matrix.T) / 2).float()
