"""Off are the units whose score on the row is beyond a threshold: ``ahon_ln:0.10``, ``awft@0.8``, ``ahon_ln/token+mean:0.2``."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Self

import xarray as xr
from torch import Tensor

from headcount.errors import InputError
from headcount.policies.by_score import ByScore
from headcount.policies.policy import PolicyFacts, Wanted, read_name, read_number, read_share, share_of
from headcount.policies.seen import Seen
from headcount.scores import get_score
from headcount.units import UnitMap

#: As a source: its threshold is sought under the intervention.
REALISED = "realised"


@dataclass(frozen=True)
class Threshold(ByScore):
    """The heads whose score on the input is beyond a threshold are off, or, by a score ``ID/token``, those on a token.

    Args:
        score: id or alias of a registered score.
        threshold: heads strictly below it (scores inactive when low) or above it (high) are off. None: what measured
            scores say for ``share``, which ``found`` fills in.
        share: the share of heads the threshold was derived from, for labels and tables.
        source: where it was derived, if not from the scores of this run, for labels too. ``realised``: it is sought so that
            the share comes about while heads are off, since what is off in one layer moves the scores of the next.

    Raises:
        InputError: unknown score, a threshold that is not a number, or neither a threshold nor a share.
    """

    threshold: float | None = None
    share: float | None = field(default=None, kw_only=True)
    source: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share is not None:
            object.__setattr__(self, "share", share_of(self.share))
        if self.threshold is None and self.share is not None:
            return
        try:
            object.__setattr__(self, "threshold", float(self.threshold))  # type: ignore[arg-type]  (None raises)
        except (TypeError, ValueError):
            raise InputError(f"The threshold for {self.score} is a number, not {self.threshold!r}.") from None
        if math.isnan(self.threshold):  # type: ignore[arg-type]
            raise InputError(f"The threshold for {self.score} is NaN. Give a number, or measure the score first.")

    @classmethod
    def parse(cls, text: str, *, exclude_layers: Iterable[int], seed: int) -> Self | None:
        """``ID:SHARE``, ``ID@THRESHOLD``, ``ID:published:SHARE``, ``ID:published/TASK:SHARE`` or ``ID:realised:SHARE``; None for
        anything else.

        ``ID`` may be ``ID/token``, and be followed by ``+REPLACEMENT`` and ``+keep-first``.
        """
        separator = "@" if "@" in text else ":"
        name, found, rest = text.partition(separator)
        source, _, number = rest.rpartition(":")
        source = source.strip().lower()
        known = source in ("published", REALISED) or source.startswith("published/")
        value = read_number(number) if separator == "@" else read_share(number, text)
        if not found or value is None or (source and not (known and separator == ":")):
            return None
        score, said = read_name(name)
        at: dict[str, Any] = {"threshold": value} if separator == "@" else {"share": value, "source": source}
        return cls(score, **at, **said, exclude_layers=frozenset(exclude_layers))

    @property
    def wants(self) -> Wanted | None:
        return (
            Wanted(self.score, self.share, self.source) if self.threshold is None and self.share is not None else None
        )

    @property
    def realised(self) -> bool:
        """Whether its threshold is sought under the intervention."""
        return self.source == REALISED

    def found(self, cuts: xr.Dataset | None) -> Self:
        if self.wants is None or self.realised:
            return self
        if cuts is None:
            raise InputError(f"{self.label} needs a threshold: measure {self.score} first, or name one.")
        if not isinstance(cuts, xr.Dataset) or self.score not in cuts or self.share not in cuts[self.score]["share"]:
            raise InputError(
                f"{self.label} needs the threshold of {self.score} at {self.share:g}, which these cuts lack."
            )
        return replace(self, threshold=cuts[self.score].sel(share=self.share).item())

    def facts(self) -> PolicyFacts:
        at = f"@{self.threshold:.12g}" if self.share is None else f":{self.share:.12g}"
        source = f":{self.source}" if self.source else ""
        return PolicyFacts(
            policy=self.called(self.score, source + at), curve=self.called(self.score, source), score=self.score,
            share_asked=self.share, threshold=self.threshold, decides=self.decides,
        )  # fmt: skip

    def __str__(self) -> str:
        score = get_score(self.score)
        side = "below" if score.inactive_when == "low" else "above"
        at = "its threshold" if self.threshold is None else f"{self.threshold:.4g}"
        share = "" if self.share is None else f", beyond which {100 * self.share:g}% of its scores lie"
        return f"{self._verb} heads whose {self.score} ({score.name}) is {side} {at}{share}{self._how}"

    def check(self, units: UnitMap) -> None:
        super().check(units)
        if self.wants is not None:
            raise InputError(
                f"Policy {self.label} names a share and has no threshold yet. Find it with thresholds() of measured "
                "scores and `found`, or name it."
            )

    def decide(self, seen: Seen) -> Tensor:
        threshold: Any = self.threshold
        return get_score(self.score).inactive(seen.score(self.score), threshold)
