"""Summaries of scores on disk: safetensors files that are read whole.

A file ``FIRST-LAST-HASH.safetensors`` holds the sum over the shards of inputs from FIRST to LAST. Neighbours are added up,
within segments and always from a segment's first on, so that the sums do not depend on the order in which shards come.
"""

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from headcount.store.files import Shard, damaged, read_shard, shards, write_shard
from headcount.summaries import Counts, Moments, ScoreSummary, Summary

#: Shards that are added up into one file: what a damaged file costs at most.
_SEGMENT = 64


def add_summary(folder: Path, shard: int, summary: Summary) -> None:
    """Keep the summary of one shard of inputs, added up with its neighbours'."""
    write_shard(folder, f"{shard:06d}-{shard:06d}", "safetensors", _encode(summary))
    _add_up_segment(folder, shard // _SEGMENT)


def add_up(folder: Path) -> None:
    """Finish the sums that an interruption left."""
    for segment in {span(file)[0] // _SEGMENT for file in summary_files(folder)}:
        _add_up_segment(folder, segment)


def summary_files(folder: Path) -> list[Shard]:
    """Those that are not part of another one: both are there for a moment when they are added up."""
    by_start = groupby(sorted(shards(folder), key=span), key=lambda file: span(file)[0])
    largest = [max(files, key=span) for _, files in by_start]
    ends = [-1, *(span(file)[1] for file in largest)]
    return [file for i, file in enumerate(largest) if span(file)[0] > max(ends[: i + 1])]


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
        write_shard(folder, f"{first:06d}-{following[1]:06d}", "safetensors", _encode(read_summaries(parts)))
        for part in parts:
            part.path.unlink(missing_ok=True)


def _encode(summary: Summary) -> bytes:
    tensors = {}
    for name, score in summary.scores.items():
        parts = {
            **vars(score.moments),
            "fine_codes": score.fine.codes, "fine_counts": score.fine.counts,
            "head_codes": score.by_head.codes, "head_counts": score.by_head.counts,
        }  # fmt: skip
        tensors |= {f"{name}/{part}": np.ascontiguousarray(values) for part, values in parts.items()}
    facts = {name: value for name, value in vars(summary).items() if name not in ("scores", "heads")}
    return save_safetensors(tensors, {"headcount": json.dumps(facts | {"scores": list(summary.scores)}, default=str)})


def read_summaries(files: Sequence[Shard]) -> Summary:
    """The sum of the summaries in several files. Raises RunError if one is damaged."""
    total = None
    for file in files:
        content = read_shard(file)
        try:
            summary = _decode(content)
        except (SafetensorError, ValueError, LookupError, TypeError) as error:
            raise damaged(file.path, str(error)) from error
        total = summary if total is None else total + summary
    assert total is not None
    return total


def _decode(content: bytes) -> Summary:
    length = int.from_bytes(content[:8], "little")
    facts = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["headcount"])
    tensors = load_safetensors(content)
    names = ("count", "mean", "deviations", "smallest", "largest")
    scores = {
        name: ScoreSummary(
            moments=Moments(**{part: tensors[f"{name}/{part}"] for part in names}),
            fine=Counts(codes=tensors[f"{name}/fine_codes"], counts=tensors[f"{name}/fine_counts"]),
            by_head=Counts(codes=tensors[f"{name}/head_codes"], counts=tensors[f"{name}/head_counts"]),
        )
        for name in facts.pop("scores")
    }
    return Summary(scores=scores, **facts)
