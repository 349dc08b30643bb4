"""What stands where a unit that is off would have written: zero, its mean, or what else tells about it."""

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from headcount.calibration import RIDGE, Calibration
from headcount.devices import doubled
from headcount.errors import InputError, nearest
from headcount.outputs import Outputs


@dataclass(frozen=True)
class Replacement(ABC):
    """What takes the place of units that are off."""

    #: As policies are written: ``ahon_ln+mean:0.10``; empty for zero.
    name: ClassVar[str]
    #: What it reads beside the outputs: ``calibration``, ``block_input``.
    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def suffix(self) -> str:
        """What it adds to the names of scores, curves and policies; empty for zero."""
        return f"+{self.name}" if self.name else ""

    @abstractmethod
    def values(self, outputs: Outputs, off: Tensor) -> Tensor | None:
        """What stands where ``off [row, unit, token or 1]``, ``[row, unit, token, width]`` or broadcast to it; None is 0."""

    def alone(self, outputs: Outputs) -> Tensor | None:
        """What would stand for each unit if it were the only one off, in the same shape; None is 0."""
        return self.values(outputs, torch.ones(1, 1, 1, dtype=torch.bool))


class Zero(Replacement):
    """Nothing: the unit writes 0 into the residual stream, as in the paper (arXiv 2504.03889, Section 3)."""

    name = ""

    def values(self, outputs: Outputs, off: Tensor) -> None:
        return None


class Mean(Replacement):
    """The unit's mean output on the calibration texts; at a text's first token the mean of first tokens."""

    name = "mean"
    needs = frozenset({"calibration"})

    def values(self, outputs: Outputs, off: Tensor) -> Tensor:
        known, values = _calibration(outputs).layers[outputs.layer], outputs.values
        return _with_first(outputs, known.mean.to(values.device)[None, :, None, :])


@dataclass(frozen=True)
class _Predicted(Replacement):
    """What a ridge regression on the calibration texts predicts."""

    needs = frozenset({"calibration", "block_input"})
    ridge: float = RIDGE

    def __post_init__(self) -> None:
        if not (self.ridge > 0 and math.isfinite(self.ridge)):
            raise InputError(f"ridge is greater than 0, not {self.ridge!r}.")

    @property
    def suffix(self) -> str:
        return super().suffix + (f"({self.ridge:g})" if self.ridge != RIDGE else "")

    def _of_layer(self, outputs: Outputs, what: str, make: Callable[[], Tensor]) -> Tensor:
        """A matrix of the calibration by its name, made once for each layer and device."""
        kept = _MATRICES.setdefault(_calibration(outputs), _Matrices()).of_layers
        key = what, outputs.layer, self.ridge, outputs.values.device
        if key not in kept:
            kept[key] = make().to(outputs.values.device)
        return kept[key]


class Linear(_Predicted):
    """The linear prediction of the unit's output from what enters its block: ridge regression on the calibration texts.

    μ_o + C_oh (C_hh + Λ)⁻¹ (h − μ_h); at a text's first token the mean of first tokens.

    Args:
        ridge: Λ, in units of the mean variance of what predicts.
    """

    name = "linear"

    def values(self, outputs: Outputs, off: Tensor) -> Tensor:
        calibration = _calibration(outputs)
        known, units = calibration.layers[outputs.layer], outputs.values.shape[1]
        matrix = self._of_layer(outputs, "linear", lambda: calibration.linear(outputs.layer, self.ridge))
        predicted = (_block_input(outputs, known.input_mean) @ matrix.T).unflatten(-1, (units, -1)).transpose(1, 2)
        return _with_first(outputs, predicted + known.mean.to(predicted.device)[:, None, :])


class Kept(_Predicted):
    """The linear prediction of the outputs that are off from the units that stay, and from what enters the block.

    Ridge regression on the calibration texts, exact for whatever set is off: with z the outputs of all units and the block's
    input, and P = (C + Λ)⁻¹, the outputs O become o_O − (P_OO)⁻¹ [P (z − μ)]_O, which is their conditional mean given the
    rest of z. At a text's first token the mean of first tokens.

    Args:
        ridge: Λ, in units of the mean variance of the outputs, and of the block's input.
    """

    name = "kept"

    def values(self, outputs: Outputs, off: Tensor) -> Tensor:
        surprise = self._surprise(outputs)  # [row, token, unit · width]
        rows, units, _, width = outputs.values.shape
        if off.shape[2] == 1:  # decided for each row: one set for all its tokens
            sets, each = off[:, :, 0], surprise
        else:
            sets, each = off.transpose(1, 2).flatten(0, 1), surprise.flatten(0, 1)[:, None]
        gone = torch.zeros_like(each)
        distinct, number = torch.unique(sets.to(torch.uint8), dim=0, return_inverse=True)
        for i, members in enumerate(distinct.bool()):  # those with one set share its matrix
            if bool(members.any()):
                features = members.repeat_interleave(width).nonzero()[:, 0]
                where = (number == i).nonzero()[:, 0]
                own = torch.zeros_like(each[where])
                own[..., features] = each[where][..., features] @ self._inverse(outputs, features)
                gone[where] = own
        gone = gone.view(rows, -1, units, width).transpose(1, 2)
        return _with_first(outputs, outputs.values.float() - gone)

    def alone(self, outputs: Outputs) -> Tensor:
        units, width = outputs.values.shape[1], outputs.values.shape[3]
        surprise = self._surprise(outputs).unflatten(-1, (units, width)).transpose(1, 2)  # [row, unit, token, width]

        def inverses() -> Tensor:
            own = doubled(self._precision(outputs)[:, : units * width])
            blocks = own.view(units, width, units, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
            return torch.linalg.inv(blocks).float()  # [unit, width, width]

        return _with_first(outputs, outputs.values.float() - surprise @ self._of_layer(outputs, "alone", inverses))

    def jointly(self, outputs: Outputs, slices: Tensor) -> Tensor:
        """What each unit adds to what is lost, where they go off one after another, the one that adds least first.

        What is lost by a set O is the sum over a row's real tokens of ‖Σ_O W_h (o_h − r_h)‖², with r what stands for all of O; a
        text's first token, where this is apart, is left out.

        Args:
            outputs: of the layer.
            slices: W_h, float32 ``[unit, hidden, width]``.

        Returns:
            float32 ``[row, unit]``, the mean over tokens: the largest addition so far, so that the units below any number are
            those that went first.
        """
        units, width = outputs.values.shape[1], outputs.values.shape[3]
        counted = outputs.real if outputs.first is None else outputs.real & ~outputs.first  # [row, 1, token]
        surprise = self._surprise(outputs).unflatten(-1, (units, width))
        precision = self._precision(outputs)[:, : units * width].view(units, width, units, width)
        rows = zip(surprise, counted[:, 0], strict=True)
        return torch.stack([_in_order(of[own], precision, slices.transpose(0, 1)) / own.sum() for of, own in rows])

    def _surprise(self, outputs: Outputs) -> Tensor:
        """P (z − μ) of the outputs, float32 ``[row, token, unit · width]``."""
        known = _calibration(outputs).layers[outputs.layer]
        own = outputs.values.float() - known.mean.to(outputs.values.device)[:, None, :]
        every = torch.cat([own.transpose(1, 2).flatten(2), _block_input(outputs, known.input_mean)], dim=-1)
        return every @ self._precision(outputs).T

    def _precision(self, outputs: Outputs) -> Tensor:
        calibration = _calibration(outputs)
        return self._of_layer(outputs, "precision", lambda: calibration.precision(outputs.layer, self.ridge))

    def _inverse(self, outputs: Outputs, features: Tensor) -> Tensor:
        """(P_OO)⁻¹, float32."""

        def inverse() -> Tensor:
            precision = self._precision(outputs)
            return torch.linalg.inv(doubled(precision[features][:, features])).float()

        return _of_set(features, outputs, self.ridge, inverse)


ZERO = Zero()
#: Those that policies can name.
REPLACEMENTS: dict[str, type[Replacement]] = {kind.name: kind for kind in (Mean, Linear, Kept)}


def replaced(outputs: Outputs, off: Tensor | None, instead: Replacement = ZERO, *, keep_first: bool = False) -> Tensor:
    """A layer's outputs ``[row, unit, token, width]`` with those of the units that are off replaced.

    Args:
        outputs: of the layer.
        off: bool ``[row, unit]``, or ``[row, unit, token]``; None is none.
        instead: what stands in their place.
        keep_first: leave every text's first token as it is.
    """
    if off is None:
        return outputs.values
    off = off.to(outputs.values.device)
    off = off[:, :, None] if off.dim() == 2 else off
    where = off & ~outputs.first if keep_first and outputs.first is not None else off
    values = instead.values(outputs, off)
    if values is None:
        return torch.where(where[..., None], outputs.values.new_zeros(()), outputs.values)  # half of masked_fill's time
    return values.to(outputs.values.dtype).where(where[..., None], outputs.values)


def replacement_named(name: str) -> Replacement:
    """The replacement that policies call ``name``. Raises InputError where there is none."""
    if name not in REPLACEMENTS:
        raise InputError(
            f"Nothing that stands for a head that is off is called {name!r}. {nearest(name, REPLACEMENTS)}"
        )
    return REPLACEMENTS[name]()


def _in_order(surprise: Tensor, precision: Tensor, writes: Tensor) -> Tensor:
    """What units add that go off one after another: the largest addition so far, ``[unit]``.

    One that goes is no longer predicted from: its rows of the precision are swept out of the others' (Bishop 2006, equation
    2.75 once more), and with them of ``surprise`` and of what is written in its place.

    Args:
        surprise: P (z − μ), ``[token, unit, width]``.
        precision: ``[unit, width, unit, width]``.
        writes: ``[hidden, unit, width]``.
    """
    found, staying = surprise.new_zeros(surprise.shape[1]), [*range(surprise.shape[1])]
    lost, highest = surprise.new_zeros(len(surprise), len(writes)), surprise.new_zeros(())
    while staying:
        inverses = torch.linalg.inv(precision.diagonal(dim1=0, dim2=2).permute(2, 0, 1))  # [unit, width, width]
        errors = torch.einsum("tuw,uwv->utv", surprise, inverses)  # o − r of each, if it went now
        grams = torch.einsum("huw,huv->uwv", writes, writes)
        across = torch.einsum("th,huw->utw", lost, writes)
        additions = ((errors @ grams + 2 * across) * errors).sum((1, 2))
        least = int(additions.argmin())
        highest = torch.maximum(highest, additions[least])
        found[staying.pop(least)] = highest
        lost = lost + errors[least] @ writes[:, least].T
        swept = torch.tensordot(inverses[least], precision[least], 1)  # [width, unit, width]
        others = [unit for unit in range(surprise.shape[1]) if unit != least]
        precision = (precision - torch.tensordot(precision[:, :, least], swept, 1))[others][:, :, others]
        surprise = (surprise - torch.tensordot(surprise[:, least], swept, 1))[:, others]
        writes = (writes - torch.tensordot(writes[:, least], swept, 1))[:, others]
    return found


def _calibration(outputs: Outputs) -> Calibration:
    if outputs.calibration is None:
        raise InputError("What stands for heads that are off comes from a calibration, and none was given.")
    return outputs.calibration


def _block_input(outputs: Outputs, mean: Tensor | None) -> Tensor:
    """What entered the block about its mean, float32 ``[row, token, hidden]``."""
    assert outputs.block_input is not None
    assert mean is not None
    return outputs.block_input.float() - mean.to(outputs.block_input.device)


def _with_first(outputs: Outputs, values: Tensor) -> Tensor:
    """``values`` but at the first token of each text, where the mean of first tokens stands."""
    if (first := outputs.first) is None:
        return values
    mean = _calibration(outputs).layers[outputs.layer].first.to(values.device)
    return torch.where(first[..., None], mean[:, None, :], values)


@dataclass
class _Matrices:
    """What replacements made of one calibration, where it is used."""

    of_layers: dict[object, Tensor] = field(default_factory=dict)
    of_sets: OrderedDict[object, Tensor] = field(default_factory=OrderedDict)  # the least recently used go first
    bytes: int = 0  # of these


_MATRICES: WeakKeyDictionary[Calibration, _Matrices] = WeakKeyDictionary()
_MOST_BYTES = 1 << 28  # of the matrices of sets


def _of_set(features: Tensor, outputs: Outputs, ridge: float, make: Callable[[], Tensor]) -> Tensor:
    kept = _MATRICES.setdefault(_calibration(outputs), _Matrices())
    key = features.cpu().numpy().tobytes(), outputs.layer, ridge, outputs.values.device
    if key not in kept.of_sets:
        kept.of_sets[key] = make().to(outputs.values.device)
        kept.bytes += kept.of_sets[key].nbytes
        while kept.bytes > _MOST_BYTES and len(kept.of_sets) > 1:
            kept.bytes -= kept.of_sets.popitem(last=False)[1].nbytes
    kept.of_sets.move_to_end(key)
    return kept.of_sets[key]
