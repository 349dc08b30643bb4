"""Policies as people write them: ``ahon_ln:0.10``, ``awft@0.8``, ``random:0.10``, ``ahon_ln:published:0.10``."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import xarray as xr

from headcount.errors import InputError, RunError
from headcount.interventions import Policy, Random, Threshold
from headcount.published import published_threshold
from headcount.scores import get_score
from headcount.store import open_run
from headcount.thresholding import thresholds


@dataclass(frozen=True, kw_only=True)
class PolicyRequest:
    """A policy by name; one asked for by share still needs its threshold from measured scores, unless it is published."""

    score: str
    share: float | None
    threshold: float | None
    exclude_layers: frozenset[int]
    source: str = ""  # of the threshold: "published", or "published/TASK" for another task than MMLU

    @property
    def needs_threshold(self) -> bool:
        return self.threshold is None and self.score != "random"

    def resolve(self, cuts: xr.Dataset | None, *, seed: int = 0) -> Policy:
        """The policy, with its threshold out of ``cuts`` (as from ``thresholds``) if it needs one; ``seed`` is for random."""
        if self.score == "random" and self.share is not None:
            return Random(self.share, seed, exclude_layers=self.exclude_layers)
        threshold = self.threshold
        if threshold is None:
            assert cuts is not None
            threshold = cuts[self.score].sel(share=self.share).item()
        return Threshold(
            self.score, threshold, share=self.share, source=self.source, exclude_layers=self.exclude_layers
        )


def parse_policy(text: str, *, exclude_layers: Iterable[int] = (), model: str = "") -> PolicyRequest:
    """``ID:SHARE``, ``ID@THRESHOLD``, ``random:SHARE``, ``ID:published:SHARE`` or ``ID:published/TASK:SHARE``.

    Args:
        text: the policy.
        exclude_layers: layers never touched.
        model: hub id, for thresholds published for it: on MMLU, or on TASK (``piqa``, ``winogrande``).

    Raises:
        InputError: another form, an unknown score, a share outside 0…1, or a threshold that was not published.
    """
    separator = "@" if "@" in text else ":"
    name, found, rest = text.partition(separator)
    source, _, number = rest.rpartition(":")
    source = source.strip().lower()
    try:
        value = float(number)
    except ValueError:
        value = None
    published = separator == ":" and (source == "published" or source.startswith("published/"))
    if not found or value is None or (source and not published):
        raise InputError(
            f"Policy {text!r} is not understood. Write ID:SHARE (ahon_ln:0.10), ID@THRESHOLD (awft@0.8), random:SHARE or "
            "ID:published:SHARE."
        )
    score = get_score(name.strip()).id
    by_share = separator == ":"
    if by_share and not 0 <= value <= 1:
        raise InputError(f"Policy {text!r}: a share of heads lies between 0 and 1; write 10% as 0.10.")
    threshold = None if by_share else value
    if published:
        threshold = published_threshold(model, score, value, task=source.partition("/")[2] or "mmlu")
    return PolicyRequest(
        score=score,
        share=value if by_share else None,
        threshold=threshold,
        exclude_layers=frozenset(exclude_layers),
        source=source,
    )


def resolve_policy(text: str, *, thresholds_from: str | Path | None = None, seed: int = 0) -> Policy:
    """The policy that ``text`` names, as ``parse_policy`` reads it, with its threshold from a run's scores if it needs one.

    Raises:
        InputError: text that is not understood, or a share of a score without a run to take its threshold from.
        RunError: no run there, or one without that score.
    """
    request = parse_policy(text)
    if not request.needs_threshold:
        return request.resolve(None, seed=seed)
    if thresholds_from is None:
        raise InputError(
            f"Policy {text!r} names a share of heads, so its threshold comes from measured scores: give thresholds_from=RUN "
            f"(a folder made by `headcount measure`), or name the threshold, {request.score}@NUMBER."
        )
    scores = open_run(thresholds_from).measurements()
    if scores is None or request.score not in scores:
        raise RunError(
            f"{str(thresholds_from)!r} has no scores for {request.score}. Measure them with `headcount measure`."
        )
    assert request.share is not None
    return request.resolve(thresholds(scores[[request.score]], [request.share]), seed=seed)
