"""Summaries of scores on disk: safetensors files that are read whole."""

import json
from collections.abc import Sequence

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from headcount.store.files import Shard, damaged, read_shard
from headcount.summaries import Counts, Moments, ScoreSummary, Summary


def encode_summary(summary: Summary) -> bytes:
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
