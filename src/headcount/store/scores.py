"""Score shards: safetensors files that are read one score at a time.

A shard holds one tensor ``[example, layer, head]`` for each score, and ``num_tokens`` ``[example]``. Its header carries
the checksum of each tensor, so that reading one score checks that score and touches no other.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from safetensors.numpy import save as save_safetensors
from xarray.backends import BackendArray
from xarray.core import indexing

from headcount.errors import InputError
from headcount.files import checksum, open_file
from headcount.store.files import Shard, damaged
from headcount.store.headers import Header, read_header
from headcount.units import MOST_UNITS

DTYPES = ("float32", "float16")
_TYPES = {"F32": "<f4", "F16": "<f2", "I64": "<i8"}
_DIMS = ("example", "layer", "head")


def encode_scores(table: xr.Dataset, dtype: str, subject: str | None = None) -> bytes:
    """A shard's content, from scores as ``measure_heads`` gives them; ``subject`` says of which run they are.

    Raises:
        InputError: a value too large for float16.
    """
    tensors = {}
    for name, values in table.data_vars.items():
        exact = np.ascontiguousarray(values.transpose(*_DIMS).values, np.float32)
        with np.errstate(over="ignore"):
            stored = exact.astype(dtype)
        if (np.isinf(stored) & np.isfinite(exact)).any():
            raise InputError(
                f"Score {name} reaches {np.nanmax(np.abs(exact)):.4g}, which float16 cannot hold (it ends at 65,504). "
                "Keep scores as float32."
            )
        tensors[str(name)] = stored
    facts = {"scores": list(tensors), "layers": table["layer"].values.tolist(), "attrs": table.attrs, "run": subject}
    tensors["num_tokens"] = table["num_tokens"].values.astype(np.int64)
    facts["checksums"] = {name: checksum(tensor.tobytes()) for name, tensor in tensors.items()}
    return save_safetensors(tensors, {"headcount": json.dumps(facts, default=str)})  # one key: their order is not kept


def open_scores(files: Sequence[Shard]) -> xr.Dataset:
    """The scores of several shards as one table whose values are read when they are asked for."""
    parts = [_Part.of(file) for file in files]
    first = parts[0]
    for part in parts:
        if part.holds != first.holds:
            raise damaged(part.file.path, f"it holds other scores or heads than {first.file.path.name!r}")
    variables = {}
    for name in first.header.scores:
        lazy: Any = indexing.LazilyIndexedArray(_Score(name, parts))
        lazy = indexing.CopyOnWriteArray(lazy)
        variables[name] = xr.Variable(_DIMS, indexing.MemoryCachedArray(lazy))
    num_tokens = np.concatenate([part.read("num_tokens") for part in parts])
    coordinates = {
        "layer": first.header.layers,
        "head": np.arange(first.shape[2]),
        "num_tokens": ("example", num_tokens),
    }
    return xr.Dataset(variables, coords=coordinates, attrs=first.header.attrs)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One shard, whose tensors are read by its header."""

    file: Shard
    header: Header
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, file: Shard) -> "_Part":
        known = read_header(file.path)
        try:
            (examples,) = known.check("num_tokens", ("I64",), None).shape
            shapes = {
                tuple(known.check(name, ("F32", "F16"), examples, len(known.layers), None).shape)
                for name in known.scores
            }
            ((_, layers, heads),) = shapes
            if not examples or not 1 <= heads <= MOST_UNITS or not known.checksums.keys() >= known.tensors.keys():
                raise ValueError(f"it is of {examples} inputs, {heads} heads and {len(known.checksums)} checksums")
        except ValueError as error:
            raise damaged(file.path, str(error)) from error
        return cls(file=file, header=known, shape=(examples, layers, heads))

    @property
    def holds(self) -> tuple[Any, ...]:
        return self.header.scores, self.header.layers, self.shape[1:]

    def read(self, name: str) -> np.ndarray:
        tensor = self.header.tensors[name]
        start, end = tensor.data_offsets
        try:
            with open_file(self.file.path) as stream:
                stream.seek(self.header.start + start)
                content = stream.read(max(0, end - start))
            values = np.frombuffer(content, _TYPES[tensor.dtype]).reshape(tensor.shape)
        except (OSError, ValueError) as error:
            raise damaged(self.file.path, str(error)) from error
        if checksum(content) != self.header.checksums[name]:
            raise damaged(self.file.path, f"the checksum of {name} differs")
        return values


class _Score(BackendArray):
    """One score across shards, as xarray reads lazily: a shard's tensor is loaded if an example in it is asked for."""

    def __init__(self, name: str, parts: Sequence[_Part]) -> None:
        self.name, self.parts = name, parts
        self.shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        self.dtype = np.dtype(np.float32)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[int | slice, ...]) -> np.ndarray:
        wanted = np.arange(self.shape[0])[key[0]]
        rows = np.atleast_1d(wanted)
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        end = 0
        for part in self.parts:
            start, end = end, end + part.shape[0]
            here = (rows >= start) & (rows < end)
            if here.any():
                found[here] = part.read(self.name)[rows[here] - start]
        return (found if wanted.ndim else found[0])[(slice(None),) * wanted.ndim + key[1:]]
