"""Policies as people write them: ``ahon_ln:0.10``, ``awft@0.8``, ``random:0.10``."""

from collections.abc import Iterable
from dataclasses import dataclass

import xarray as xr

from headcount.errors import InputError
from headcount.interventions import Policy, Random, Threshold
from headcount.scores import get_score


@dataclass(frozen=True, kw_only=True)
class PolicyRequest:
    """A policy by name; one asked for by share still needs its threshold from measured scores."""

    score: str
    share: float | None
    threshold: float | None
    exclude_layers: frozenset[int]

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
        return Threshold(self.score, threshold, share=self.share, exclude_layers=self.exclude_layers)


def parse_policy(text: str, *, exclude_layers: Iterable[int] = ()) -> PolicyRequest:
    """``ID:SHARE``, ``ID@THRESHOLD`` or ``random:SHARE``.

    Raises:
        InputError: another form, an unknown score, or a share outside 0…1.
    """
    separator = "@" if "@" in text else ":"
    name, found, number = text.partition(separator)
    try:
        value = float(number)
    except ValueError:
        value = None
    if not found or value is None:
        raise InputError(
            f"Policy {text!r} is not understood. Write ID:SHARE (ahon_ln:0.10), ID@THRESHOLD (awft@0.8) or random:SHARE."
        )
    score = get_score(name.strip()).id
    by_share = separator == ":"
    if by_share and not 0 <= value <= 1:
        raise InputError(f"Policy {text!r}: a share of heads lies between 0 and 1; write 10% as 0.10.")
    return PolicyRequest(
        score=score,
        share=value if by_share else None,
        threshold=None if by_share else value,
        exclude_layers=frozenset(exclude_layers),
    )
