"""What a safetensors shard says of itself, checked before anything is made of its tensors."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from headcount import tensor_files
from headcount.files import open_file
from headcount.store.files import damaged
from headcount.store.manifest import Count, Facts, first_fault, plain

_NOT_SCORES = {"example", "layer", "head", "num_tokens", "share", "score"}  # names of dimensions


class Tensor(Facts):
    dtype: str
    shape: Annotated[list[Count], Field(max_length=8)]
    data_offsets: Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], Field(min_length=2, max_length=2)]


class Header(Facts):
    """Facts of a shard: its scores and layers, the run that it is of, and its tensors by name."""

    scores: Annotated[list[str], Field(min_length=1)]
    layers: Annotated[list[Count], Field(min_length=1)]
    attrs: dict[str, Any] = Field(default={})
    run: str | None = None
    tensors: dict[str, Tensor]
    start: int
    """Of the tensors' bytes in the file."""
    # of scores
    checksums: dict[str, str] = Field(default={})
    # of summaries
    num_inputs: Count = 0
    num_tokens: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @field_validator("scores", "layers")
    @classmethod
    def _once_each(cls, names: list[Any]) -> list[Any]:
        if len(set(names)) < len(names) or _NOT_SCORES & set(names):
            raise ValueError("each stands once, under a name of its own")
        return names

    def check(self, name: str, dtypes: tuple[str, ...], *shape: int | None) -> Tensor:
        """A tensor. Raises ValueError unless it is of one of these types and this shape, where None is any number."""
        tensor = self.tensors.get(name)
        fits = tensor is not None and tensor.dtype in dtypes and len(tensor.shape) == len(shape)
        if tensor is None or not fits or any(w not in (None, n) for w, n in zip(shape, tensor.shape, strict=True)):
            raise ValueError(f"{name} is not a tensor of {' or '.join(dtypes)} with shape {list(shape)}")
        return tensor


def read_header(file: Path) -> Header:
    """A shard's header. Raises Damaged if it is none of headcount's."""
    try:
        with open_file(file) as stream:
            tensors, start = tensor_files.read_header(stream)
            size = os.fstat(stream.fileno()).st_size
        tensors = plain(tensors)
        facts = plain(json.loads(tensors.pop("__metadata__")["headcount"]))
        header = Header.model_validate({**facts, "tensors": tensors, "start": start})
        if size != header.start + max(tensor.data_offsets[1] for tensor in header.tensors.values()):
            raise ValueError("it is shorter or longer than its header says")
        return header
    except ValidationError as error:
        raise damaged(file, first_fault(error)) from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(file, str(error)) from error
