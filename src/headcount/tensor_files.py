"""safetensors files of float32 tensors, written as they come and read as if a stranger had written them.

Format: https://huggingface.co/docs/safetensors, with what is there beside the tensors as JSON under ``headcount``.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from headcount.files import open_file, write_atomically

_LARGEST = 100_000_000  # bytes of a header, as in safetensors
_BYTES = 4  # of a float32


def write_tensors(
    file: Path, facts: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], tensor: Callable[[str], Tensor]
) -> None:
    """Write tensors with ``facts``, whole or not at all, one tensor at a time.

    Args:
        file: replaced if it is there.
        facts: for JSON.
        shapes: by name, in the file's order.
        tensor: gives each, in float32 and in main memory, when it is written.

    Raises:
        RunError: it cannot be written.
    """
    write_atomically(file, _encoded(facts, shapes, tensor))


class TensorFile:
    """What ``write_tensors`` wrote: its facts, and its tensors, each read when it is asked for.

    Attributes:
        path: of the file.
        facts: beside the tensors.
        shapes: of the tensors, by name.
    """

    def __init__(self, path: Path) -> None:
        """Reads the header alone.

        Raises:
            OSError: it cannot be read, or is a link, a pipe, a folder or a device.
            ValueError: it is not what ``write_tensors`` writes.
        """
        self.path = path
        with open_file(path) as stream:
            header, start = read_header(stream)
            self._stamp = _stamp(stream)
        try:
            with safe_open(path, framework="pt"):  # which holds the header to the file
                pass
        except SafetensorError as error:
            raise ValueError(" ".join(str(error).split())) from error
        self.facts = _facts(header)
        self.shapes = {name: _shape(name, entry) for name, entry in header.items()}
        self._begins = {name: start + entry["data_offsets"][0] for name, entry in header.items()}

    def read(self, name: str) -> Tensor:
        """One tensor.

        Raises:
            OSError: the file cannot be read any more.
            ValueError: it is not the file that it was.
        """
        tensor = torch.empty(self.shapes[name])
        with open_file(self.path) as stream:
            stream.seek(self._begins[name])
            whole = stream.readinto(tensor.numpy().data.cast("B")) == tensor.numel() * _BYTES
            if not whole or _stamp(stream) != self._stamp:
                raise ValueError("it was changed after it had been checked")
        return tensor


def read_header(stream: BufferedReader) -> tuple[dict[str, Any], int]:
    """A safetensors file's header as it is, and where its tensors' bytes begin.

    Raises:
        ValueError: it has none.
        RecursionError: its JSON is nested too deeply.
    """
    length = int.from_bytes(stream.read(8), "little")
    if length > _LARGEST:
        raise ValueError("its header is too long")
    header = json.loads(stream.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    return header, 8 + length


def _encoded(
    facts: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], tensor: Callable[[str], Tensor]
) -> Iterator[bytes | memoryview]:
    header: dict[str, Any] = {"__metadata__": {"headcount": json.dumps(facts, sort_keys=True)}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + prod(shape) * _BYTES
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # so that tensors are aligned
    yield len(encoded).to_bytes(8, "little")
    yield encoded
    for name in shapes:
        yield content(tensor(name))


def content(tensor: Tensor) -> memoryview:
    """A float32 tensor's bytes, in its order."""
    assert tensor.dtype == torch.float32 and tensor.numel()
    return tensor.contiguous().numpy().data.cast("B")


def _stamp(stream: BufferedReader) -> tuple[int, ...]:
    """Other once the file's content is, or another file is there."""
    found = os.fstat(stream.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _facts(header: dict[str, Any]) -> dict[str, Any]:
    facts = json.loads(header.pop("__metadata__", {}).get("headcount", "null"))
    if not isinstance(facts, dict):
        raise ValueError("it says nothing of itself")
    return facts


def _shape(name: str, entry: dict[str, Any]) -> tuple[int, ...]:
    shape = entry["shape"]
    if entry["dtype"] != "F32" or not 1 <= len(shape) <= 8 or 0 in shape:
        raise ValueError(f"{name!r:.50} is not a tensor of 32-bit floats")
    return tuple(shape)
