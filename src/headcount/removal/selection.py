"""A selection of heads to remove, as a file."""

import os
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from transformers import PreTrainedModel

from headcount.errors import InputError, ModelError
from headcount.models.loading import fingerprint
from headcount.models.observe import units_of
from headcount.store import write_atomically
from headcount.units import KINDS, KindId, LayerUnits, MlpUnits, UnitSet, checked_kind

FORMAT = 1


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SelectedModel(_Strict):
    """The model that a selection is for."""

    name: str
    fingerprint: str
    """Of the weights rounded to bfloat16, so that it does not depend on the dtype that the model is loaded in."""
    layers: tuple[LayerUnits, ...] | tuple[MlpUnits, ...]

    @classmethod
    def of(cls, model: PreTrainedModel, name: str, kind: KindId = "head") -> Self:
        layers = units_of(model, kind).layers
        return cls(name=name, fingerprint=fingerprint(model, dtype=torch.bfloat16), layers=layers)


class Selection(_Strict):
    """Heads to remove from one model, or MLP neurons.

    Attributes:
        heads: (layer, head) or (layer, neuron) pairs, the least needed first.
        model: the model they are heads of.
        kind: of unit, what was chosen as a whole; ``unit`` in the file.
        chosen: how, for people and for the model card: score, texts, seed, …
        created: when, ISO 8601.
        versions: of headcount and of the libraries that the choice depends on.
        format: of the file.
    """

    format: Literal[1] = FORMAT
    model: SelectedModel
    kind: KindId = Field(alias="unit")
    heads: tuple[tuple[int, int], ...]
    chosen: dict[str, Any]
    created: str
    versions: dict[str, str]

    @field_validator("heads")
    @classmethod
    def _each_once(cls, heads: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        if not heads:
            raise ValueError("no heads")
        if twice := [head for head, often in Counter(heads).items() if often > 1]:
            raise ValueError(f"head {twice[0]} twice")
        return heads

    @property
    def part(self) -> KindId:
        """What ``heads`` are: ``head`` or ``neuron``."""
        return _part(self.kind)

    @property
    def num_parts(self) -> int:
        """Heads, or neurons, of the whole model."""
        return sum(layer.num_parts for layer in self.model.layers)

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        heads: Sequence[tuple[int, int]],
        *,
        name: str,
        kind: KindId,
        chosen: dict[str, Any],
    ) -> Self:
        """A selection of heads of ``model``.

        Raises:
            InputError: no heads, one twice, or one that the model lacks.
        """
        UnitSet(heads).check(units_of(model, _part(kind)))
        try:
            return cls(
                model=SelectedModel.of(model, name, _part(kind)), unit=kind, heads=tuple(heads), chosen=chosen,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                versions={package: version(package) for package in ("headcount", "torch", "transformers")},
            )  # fmt: skip
        except ValidationError as error:
            raise InputError(f"These heads cannot be selected: {_first(error)}.") from error

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> Self:
        """From a file that ``save`` wrote.

        Raises:
            InputError: no such file, or not a selection; says which field.
        """
        path = Path(file)
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise InputError(
                f"The selection {str(path)!r} is a pipe or a device: to read it might never end. Give a file."
            )
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise InputError(
                f"There is no selection {str(path)!r}. Make one with `headcount select … -o {path}`."
            ) from None
        except OSError as error:
            raise InputError(f"The selection {str(path)!r} cannot be read ({error.strerror}).") from error
        except ValidationError as error:
            raise InputError(
                f"{str(path)!r} is not a selection of heads that this headcount reads ({_first(error)}). Make it again with "
                "`headcount select`."
            ) from error

    def save(self, file: str | os.PathLike[str]) -> None:
        """To a JSON file; it is complete once it exists.

        Raises:
            RunError: it cannot be written.
        """
        write_atomically(Path(file), (self.model_dump_json(indent=1, by_alias=True) + "\n").encode())

    def check(self, model: PreTrainedModel, name: str) -> None:
        """Raise ModelError, with the difference, if the selection is for another model."""
        theirs, ours = self.model, SelectedModel.of(model, name, self.part)
        if theirs.fingerprint == ours.fingerprint and theirs.layers == ours.layers:
            return
        differing = [pair for pair in zip(theirs.layers, ours.layers, strict=False) if pair[0] != pair[1]]
        what = "attention layers" if self.part == "head" else "MLPs"
        if len(theirs.layers) != len(ours.layers):
            difference = f"it has {len(theirs.layers)} {what}, this one {len(ours.layers)}"
        elif differing:
            a, b = differing[0]
            difference = f"layer {a.index} has {_sizes(a)} there, and layer {b.index} {_sizes(b)} here"
        else:
            difference = (
                f"the {KINDS[self.part].plural} are alike and the weights are not (fingerprint {theirs.fingerprint} there, "
                f"{ours.fingerprint} here)"
            )
        raise ModelError(
            f"The selection is for {theirs.name}, not for {ours.name}: {difference}. Load the model that it was made for, or "
            f"select {self.part}s of this one with `headcount select`."
        )


def _part(kind: KindId) -> KindId:
    return "head" if KINDS[checked_kind(kind)].site == "attention" else "neuron"


def _sizes(layer: LayerUnits | MlpUnits) -> str:
    if isinstance(layer, MlpUnits):
        return f"{layer.num_neurons} neurons"
    return f"{layer.num_attention_heads} query heads, {layer.num_key_value_heads} key-value heads and head_dim {layer.head_dim}"


def _first(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(map(str, problem["loc"]))
    return f"{where}: {problem['msg']}" if where else problem["msg"]
