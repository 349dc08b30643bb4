"""What a policy is: how it decides which units of a layer are off, what stands in their place, and how it is called."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from html import escape
from numbers import Real
from typing import Any, NamedTuple, Self

import xarray as xr
from torch import Tensor

from headcount.attention.measurements import CALIBRATED, MEASURED, MEASUREMENTS, RAW_TENSORS
from headcount.calibration import Calibration
from headcount.errors import InputError, whole
from headcount.policies.seen import Seen
from headcount.replacements import ZERO, Replacement, replacement_named
from headcount.scores import Rows, Score
from headcount.units import KINDS, KindId, UnitMap

#: The untouched model, as tables and manifests call it.
BASELINE = "baseline"
#: The curve of checkpoints with heads removed for good.
PRUNED = "pruned"
#: In the text of a policy: every text's first token stays as it is.
KEEP_FIRST = "+keep-first"


@dataclass(frozen=True, kw_only=True)
class PolicyFacts:
    """The columns by which outcomes and manifests name who answered.

    Attributes:
        policy: the label, unique in a run.
        curve: what a table groups and a plot joins: one way to choose, decide and replace, at several shares. Empty where
            there is no other share.
        score: id of the score it decides by; empty for those that use none.
        share_asked: the share of units asked for; None where none was.
        threshold: what a score is held against; None where nothing is.
        decides: what else tells its decisions from another's of the same label, such as a fingerprint of its heads. Kept in
            manifests alone, so that a run is not continued by another policy of the same name.

    Raises:
        InputError: no label, or a share or threshold that is not a number.
    """

    policy: str
    curve: str = ""
    score: str = ""
    share_asked: float | None = None
    threshold: float | None = None
    decides: str = ""

    def __post_init__(self) -> None:
        for name in ("policy", "curve", "score", "decides"):
            if not isinstance(text := getattr(self, name), str) or not (text or name != "policy"):
                raise InputError(f"The {name} of a policy's facts is text, not {text!r:.60}.")
        if self.share_asked is not None:
            object.__setattr__(self, "share_asked", share_of(self.share_asked))
        if self.threshold is not None:
            if not _is_number(self.threshold) or math.isnan(self.threshold):
                raise InputError(f"The threshold of {self.policy} is a number, not {self.threshold!r:.60}.")
            object.__setattr__(self, "threshold", float(self.threshold))

    def columns(self) -> dict[str, Any]:
        """For a row of a table: NaN where there is no number."""
        values = ((name, getattr(self, name)) for name in POLICY_COLUMNS)
        return {name: math.nan if value is None else value for name, value in values}


#: The columns by which rows of outcomes name their policy.
POLICY_COLUMNS = ("policy", "curve", "score", "share_asked", "threshold")


class Wanted(NamedTuple):
    """A threshold that a policy lacks."""

    score: str
    share: float
    source: str  # "published" or "published/TASK"; empty for the scores of the run


@dataclass(frozen=True, kw_only=True)
class Policy(ABC):
    """Decides which units of a layer are off, for each row (an input, or a token) of a batch on its own.

    Args:
        exclude_layers: layers (indices in the model) never touched.
        instead: what stands where a unit is off.
        keep_first: leave every text's first token as it is, where attention sinks live.
        calibration: what the replacement or the score reads; ``calibrated`` fills it in where it is missing.
    """

    exclude_layers: frozenset[int] = frozenset()
    instead: Replacement = ZERO
    keep_first: bool = False
    calibration: Calibration | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "exclude_layers", layer_set(self.exclude_layers))
        if not isinstance(self.instead, Replacement):
            raise InputError(f"instead is a Zero(), Mean(), Linear() or Kept(), not {self.instead!r:.60}.")
        if not isinstance(self.calibration, Calibration | None):
            raise InputError(f"calibration is a headcount.Calibration, not {self.calibration!r:.60}.")

    @property
    def per(self) -> Rows:
        """What a decision is about: an ``input``, or a ``token``. A token's looks at nothing that comes after it."""
        return "input"

    @property
    @abstractmethod
    def needs(self) -> frozenset[str]:
        """The measurements the decision reads. A policy that reads none decides the same on every input."""

    @abstractmethod
    def facts(self) -> PolicyFacts:
        """How tables name it."""

    @abstractmethod
    def decide(self, seen: Seen) -> Tensor:
        """bool ``[row, unit]`` of ``seen.shape``: True where the unit is off."""

    def check(self, units: UnitMap) -> None:
        """Raise InputError unless the model has what the policy names, and the policy all it needs to decide."""
        if missing := self.exclude_layers - set(units.layer_indices):
            known = units.layer_indices
            raise InputError(
                f"exclude_layers names layer {min(missing)}; the model's layers with {KINDS[units.kind].plural} are "
                f"{known[0]}…{known[-1]}."
            )

    @property
    def needs_calibration(self) -> bool:
        """Whether what it decides by, or puts in place, comes from a calibration."""
        return "calibration" in self.instead.needs or bool(self.needs & CALIBRATED)

    def calibrated(self, calibration: Calibration | None) -> Self:
        """With a calibration, if it needs one and has none."""
        missing = self.needs_calibration and self.calibration is None
        return replace(self, calibration=calibration) if missing else self

    @property
    def wants(self) -> Wanted | None:
        """The threshold that ``found`` is to fill in; None where none is missing."""
        return None

    def found(self, cuts: xr.Dataset | None) -> Self:
        """With the threshold that ``cuts`` (as from ``thresholds``) have for its share, if it needs one."""
        return self

    @property
    def label(self) -> str:
        """Short unique name, such as ``ahon_ln:0.1`` or ``awft@0.8``."""
        return self.facts().policy

    def called(self, name: str, at: str = "") -> str:
        """``name`` as labels and curves have it: with the replacement, what is kept, ``at`` and the layers left alone."""
        return name + self.instead.suffix + KEEP_FIRST * self.keep_first + at + self._but

    @property
    def _but(self) -> str:
        return f" except layer {', '.join(map(str, sorted(self.exclude_layers)))}" if self.exclude_layers else ""

    @property
    def suffix(self) -> str:
        """What labels and curves add after a name without a share."""
        return self.called("")

    @property
    def decides(self) -> str:
        """What tells its decisions from another's of its label: the calibration."""
        return "" if self.calibration is None else f"calibration {self.calibration.fingerprint}"

    @property
    def _verb(self) -> str:
        return "replaces" if self.instead.name else "zeroes"

    @property
    def _how(self) -> str:
        """The end of a sentence that starts with ``_verb``."""
        instead = f", by {self.instead.suffix.removeprefix('+')}" if self.instead.name else ""
        return instead + ", first tokens kept" * self.keep_first + self._but

    def _repr_html_(self) -> str:
        return f"<p><b>{escape(self.label)}</b>: {escape(str(self))}</p>"


def check_policy(policy: Any, units: UnitMap | None = None, *, kind: KindId | None = None) -> None:
    """Raise InputError for what is no policy, not for units of a ``kind``, lacks its calibration, or does not fit ``units``."""
    if not isinstance(policy, Policy):
        raise InputError(
            f"A policy is a Threshold, Random or Fixed, such as Random(0.1), or a class of your own that is a headcount.Policy, "
            f"not {policy!r:.60}; headcount.resolving."
            "resolve_policy reads one from text."
        )
    if not isinstance(policy.needs, frozenset) or not policy.needs <= MEASUREMENTS:
        raise InputError(
            f"{policy.label} says that it needs {policy.needs!r:.80}. A policy's `needs` is a frozenset of what its scores "
            f"read: {', '.join(sorted(MEASUREMENTS - RAW_TENSORS))}."
        )
    if units is not None or kind is not None:
        _check_kind(policy, units.kind if units is not None else kind or "head")
    if policy.needs_calibration and policy.calibration is None:
        raise InputError(
            f"{policy.label} needs a calibration. Make one with `headcount calibrate MODEL --texts … -o FILE` and give it with "
            "--calibration FILE, or from Python with calibration=headcount.calibrate(…)."
        )
    if units is not None:
        policy.check(units)


def _check_kind(policy: Policy, kind: KindId) -> None:
    plural = KINDS[kind].plural
    if unknown := policy.needs - MEASURED[kind]:
        raise InputError(f"{policy.label} reads {', '.join(sorted(unknown))}, which {plural} do not have.")
    if KINDS[kind].site == "mlp" and policy.instead.needs:
        raise InputError(
            f"{policy.label} puts {policy.instead.name} in the place of what is off, which is calibrated for heads alone: "
            f"{plural} that are off write 0. Leave +{policy.instead.name} out (instead=Zero())."
        )


def calibration_of(
    policies: Iterable[Policy], scores: Iterable[Score] = (), given: Calibration | None = None
) -> Calibration | None:
    """The calibration that policies and scores read in one pass; None where none does.

    Args:
        policies: with theirs, if they need one.
        scores: those that need one read ``given``, or that of the policies.
        given: for scores.

    Raises:
        InputError: a score has none, or there are two.
    """
    reading = [score.id for score in scores if score.needs & CALIBRATED]
    found = [policy.calibration for policy in policies if policy.needs_calibration]
    known = {each.fingerprint: each for each in (*found, *([given] if reading or found else [])) if each is not None}
    if len(known) > 1:
        raise InputError(
            f"Two calibrations are given, {' and '.join(known)}. One pass reads one: give everybody the same."
        )
    if reading and not known:
        raise InputError(
            f"{reading[0]} needs a calibration. Make one with `headcount calibrate MODEL --texts … -o FILE` and give it with "
            "--calibration FILE, or from Python with calibration=headcount.calibrate(…)."
        )
    return next(iter(known.values()), None)


def read_name(text: str) -> tuple[str, dict[str, Any]]:
    """``NAME+REPLACEMENT+keep-first`` of a policy's text: the name, and what the rest says as arguments of a policy.

    Raises:
        InputError: a replacement that is unknown, or said twice.
    """
    name, *said = (part.strip() for part in text.split("+"))
    found: dict[str, Any] = {}
    for part in said:
        key, value = ("keep_first", True) if f"+{part}" == KEEP_FIRST else ("instead", replacement_named(part))
        if key in found:
            raise InputError(f"Policy {text!r} says twice what stands for heads that are off, or what is kept.")
        found[key] = value
    return name, found


def layer_set(layers: Iterable[int]) -> frozenset[int]:
    """Layers never touched. Raises InputError for what are no layer indices."""
    if not isinstance(layers, Iterable):
        raise InputError(f"exclude_layers is a collection of layer indices, such as [0, 1], not {layers!r}.")
    return frozenset(whole(layer, "exclude_layers holds layer indices counted from 0", least=0) for layer in layers)


def read_number(text: str) -> float | None:
    """The number that a text is; None where it is none."""
    try:
        return float(text)
    except ValueError:
        return None


def read_share(number: str, policy: str) -> float | None:
    """The share that the text of a ``policy`` names by ``number``; None where that is none. Raises InputError outside 0…1."""
    share = read_number(number)
    if share is not None and not 0 <= share <= 1:
        raise InputError(f"Policy {policy!r}: a share lies between 0 and 1; write 10% as 0.10.")
    return share


def share_of(share: object) -> float:
    """A share of units. Raises InputError unless it lies between 0 and 1."""
    number = float(share) if _is_number(share) else math.nan  # type: ignore[arg-type]
    if not 0 <= number <= 1:
        raise InputError(f"A share lies between 0 and 1, not {share!r}; write 10% as 0.10.")
    return number


def _is_number(value: object) -> bool:
    return isinstance(value, Real | Tensor) and getattr(value, "ndim", 0) == 0


#: Of the untouched model.
UNTOUCHED = PolicyFacts(policy=BASELINE)
