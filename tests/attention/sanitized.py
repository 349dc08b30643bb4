"""Calls the kernel, built with the compiler's sanitizers, with inputs of every kind; they end the process at the first fault.

Run as ``python -m tests.attention.sanitized LIBRARY``, with the address sanitizer's own library preloaded: then a read or
write outside of a tensor is a fault too.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from headcount.attention import compiled, kernel
from headcount.attention.compiled import attend_compiled
from tests.attention.reference import CASES, PER_POSITION, factors, make


def variants():
    """Inputs whose sizes, strides and values are those that nothing else in the tests has."""
    plain, positions = make(length=40)
    yield plain, positions
    for batch in (0, 1, 3):
        inputs, positions = make(length=9, batch=3)
        for turned in (False, True):
            given = {name: getattr(inputs, name)[:batch] for name in ("query", "key", "value")}
            if turned:  # with elements apart
                given = {name: torch.empty(tensor.mT.shape).copy_(tensor.mT).mT for name, tensor in given.items()}
            yield replace(inputs, **given), replace(positions, first=positions.first[:batch], real=None)
    inputs, positions = make(length=9, batch=1, mask="holes")
    for length, keys in ((0, 9), (9, 0), (0, 0)):
        yield (
            replace(
                inputs, query=inputs.query[:, :, :length], key=inputs.key[:, :, :keys], value=inputs.value[:, :, :keys],
                mask=inputs.mask[:, :, :length, :keys],
            ),
            positions,
        )  # fmt: skip
    for value in (0.0, 1e-42, 1e30, float("inf"), float("-inf"), float("nan")):
        inputs, positions = make(length=40, softcap=3.0, sinks=True)
        for tensor in (inputs.query, inputs.key, inputs.value):
            tensor[:, :, 7:9, 1:] = value
        yield inputs, positions
    inputs, positions = make(length=40)
    yield (
        replace(
            inputs, key=inputs.key[:, :1].expand_as(inputs.key), query=inputs.query[..., :1].expand_as(inputs.query)
        ),
        positions,
    )


def main(library: Path) -> int:
    built = kernel._load(library)
    compiled.load_kernel = lambda: built
    calls = 0
    for dtype in (torch.float32, torch.bfloat16):
        for inputs, positions in [*(make(**shape) for shape in CASES.values()), *variants()]:
            given = {name: getattr(inputs, name).to(dtype) for name in ("query", "key", "value")}
            of_dtype = replace(inputs, **given)
            for sizes in ({}, {"block_rows": 16, "held_scores": 1}):
                attend_compiled(
                    of_dtype, positions, wanted=PER_POSITION, projection_factor=lambda i=inputs: factors(i), **sizes
                )
                calls += 1
    return calls


if __name__ == "__main__":
    torch.set_num_threads(2)
    print(main(Path(sys.argv[1])))
