"""Summaries of scores on disk: safetensors files that are read whole.

A file ``FIRST-LAST-HASH.safetensors`` holds the sum over the shards of inputs from FIRST to LAST. Neighbours are added up,
within segments and always from a segment's first on, so that the sums do not depend on the order in which shards come.
"""

import json
import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from headcount.store.files import Shard, damaged, read_shard, shards, write_shard
from headcount.store.headers import Header, read_header
from headcount.summaries import FINE_BITS, PART_BITS, PART_SPAN, Counts, Moments, Parts, ScoreSummary, Summary
from headcount.units import MOST_UNITS

#: Shards that are added up into one file: what a damaged file costs at most.
_SEGMENT = 64
_MOMENTS = ("count", "mean", "deviations", "smallest", "largest")
_MOST = 10**15  # values in a bin
#: What counts of parts are called.
_CALLED: dict[Parts, str] = {"unit": "head", "layer": "layer"}
_SPAN = re.compile(r"\d+-\d+")


def add_summary(folder: Path, shard: int, summary: Summary, subject: str) -> None:
    """Keep the summary of one shard of inputs, added up with its neighbours'; ``subject`` says of which run it is."""
    write_shard(folder, f"{shard:06d}-{shard:06d}", "safetensors", _encode(summary, subject))
    _add_up_segment(folder, shard // _SEGMENT)


def add_up(folder: Path) -> None:
    """Finish the sums that an interruption left."""
    for segment in {span(file)[0] // _SEGMENT for file in summary_files(folder)}:
        _add_up_segment(folder, segment)


def summary_files(folder: Path) -> list[Shard]:
    """Those that are not part of another one: both are there for a moment when they are added up."""
    return standing(shards(folder))


def standing(files: Iterable[Shard]) -> list[Shard]:
    """Those of a segment's shards that are not part of another one."""
    spans = [file for file in files if _SPAN.fullmatch(file.stem) and _within_segment(*span(file))]
    by_start = groupby(sorted(spans, key=span), key=lambda file: span(file)[0])
    largest = [max(files, key=span) for _, files in by_start]
    ends = [-1, *(span(file)[1] for file in largest)]
    return [file for i, file in enumerate(largest) if span(file)[0] > max(ends[: i + 1])]


def _within_segment(first: int, last: int) -> bool:
    return first <= last and first // _SEGMENT == last // _SEGMENT


def span(file: Shard) -> tuple[int, int]:
    """The first and the last shard that a file is the sum of."""
    first, last = file.stem.split("-")
    return int(first), int(last)


def _add_up_segment(folder: Path, segment: int) -> None:
    """Add the segment's first summaries into one, as far as they follow each other."""
    first = segment * _SEGMENT
    while True:
        files = {span(file): file for file in summary_files(folder) if span(file)[0] // _SEGMENT == segment}
        begun = next((known for known in files if known[0] == first), None)
        if begun is None or (following := (begun[1] + 1, begun[1] + 1)) not in files:
            return
        parts = files[begun], files[following]
        content = _encode(read_summaries(parts), read_header(parts[0].path).run)
        write_shard(folder, f"{first:06d}-{following[1]:06d}", "safetensors", content)
        for part in parts:
            part.path.unlink(missing_ok=True)


def _encode(summary: Summary, subject: str | None) -> bytes:
    tensors = {}
    for name, score in summary.scores.items():
        parts = {
            **vars(score.moments),
            "fine_codes": score.fine.codes, "fine_counts": score.fine.counts,
            f"{_CALLED[score.parts]}_codes": score.by_part.codes,
            f"{_CALLED[score.parts]}_counts": score.by_part.counts,
        }  # fmt: skip
        tensors |= {f"{name}/{part}": np.ascontiguousarray(values) for part, values in parts.items()}
    facts = {name: value for name, value in vars(summary).items() if name not in ("scores", "heads")}
    return save_safetensors(
        tensors, {"headcount": json.dumps(facts | {"scores": list(summary.scores), "run": subject}, default=str)}
    )


def read_summaries(files: Sequence[Shard]) -> Summary:
    """The sum of the summaries in several files. Raises RunError if one is damaged."""
    total = None
    for file in files:
        known, content = read_header(file.path), read_shard(file)
        try:
            summary = _decode(known, load_safetensors(content))
            total = summary if total is None else total + summary
        except (SafetensorError, ValueError, LookupError, TypeError) as error:
            raise damaged(file.path, str(error)) from error
    assert total is not None
    return total


def _decode(known: Header, tensors: dict[str, np.ndarray]) -> Summary:
    first = known.check(f"{known.scores[0]}/count", ("I64",), len(known.layers), None)
    shape = len(known.layers), first.shape[1]
    if not 1 <= shape[1] <= MOST_UNITS:
        raise ValueError(f"it is of {shape[1]} heads")
    scores = {name: _score(known, tensors, name, shape) for name in known.scores}
    return Summary(
        scores=scores, layers=known.layers, num_inputs=known.num_inputs, num_tokens=known.num_tokens, attrs=known.attrs
    )


def _score(known: Header, tensors: dict[str, np.ndarray], name: str, shape: tuple[int, int]) -> ScoreSummary:
    """One score, if its counts are of each head what its moments say."""
    for part in _MOMENTS:
        known.check(f"{name}/{part}", ("I64" if part == "count" else "F64",), *shape)
    moments = Moments(**{part: tensors[f"{name}/{part}"] for part in _MOMENTS})
    parts: Parts = "layer" if f"{name}/layer_codes" in known.tensors else "unit"
    fine = _counts(known, tensors, f"{name}/fine", FINE_BITS)
    by_part = _counts(known, tensors, f"{name}/{_CALLED[parts]}", PART_BITS)
    found = ScoreSummary(moments=moments, fine=fine, by_part=by_part, parts=parts)
    expected = found.of_parts[0].ravel()
    numbers, of_part = by_part.codes // PART_SPAN, np.zeros(expected.size, np.int64)
    if by_part.codes.size and not (numbers.min() >= 0 and numbers.max() < of_part.size):
        raise ValueError(f"{name} counts {'heads' if parts == 'unit' else 'layers'} that are not there")
    np.add.at(of_part, numbers, by_part.counts)
    if (of_part != expected).any() or fine.counts.sum() != of_part.sum():
        raise ValueError(f"the counts of {name} do not agree")
    return found


def _counts(known: Header, tensors: dict[str, np.ndarray], name: str, bits: int) -> Counts:
    (size,) = known.check(f"{name}_codes", ("I64",), None).shape
    known.check(f"{name}_counts", ("I64",), size)
    codes, counts = tensors[f"{name}_codes"], tensors[f"{name}_counts"]
    largest = int(counts.max(initial=0))
    if (np.diff(codes) <= 0).any() or codes.min(initial=0) < 0 or counts.min(initial=1) < 1 or largest > _MOST:
        raise ValueError(f"{name} is no count of values")
    bins = codes % PART_SPAN if bits == PART_BITS else codes
    if bins.max(initial=0) >= 1 << (9 + bits):
        raise ValueError(f"{name} counts values that are no numbers")
    return Counts(codes=codes, counts=counts)
