"""What a policy is: how it decides which units of a layer are off, what stands in their place, and how it is called."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from numbers import Real
from typing import Any, NamedTuple, Self

import torch
import xarray as xr
from torch import Tensor

from headcount.attention.measurements import (
    CALIBRATED,
    MEASURED,
    MEASUREMENTS,
    OF_TOKENS,
    RAW_TENSORS,
    LayerMeasurements,
)
from headcount.calibration import Calibration
from headcount.devices import moved
from headcount.errors import InputError, whole
from headcount.outputs import Outputs
from headcount.replacements import ZERO, Replacement, replacement_named
from headcount.scores import Rows, Score, get_score
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


class Wholes:
    """Units of a layer that are made of several of its query heads each."""

    def __init__(self, members: Sequence[Sequence[int]], device: torch.device) -> None:
        """``members``: the heads of each unit."""
        self.num_units, most = len(members), max(map(len, members))
        padded = torch.tensor([[*heads, *[heads[0]] * (most - len(heads))] for heads in members])
        sizes = torch.tensor([[len(heads)] for heads in members])
        unit_of = {head: unit for unit, heads in enumerate(members) for head in heads}
        self._members, self._there = moved(padded, device), moved(torch.arange(most) < sizes, device)
        self._sizes = moved(sizes[:, 0], device)
        self._unit_of = moved(torch.tensor([unit_of[head] for head in sorted(unit_of)]), device)

    def means(self, values: Tensor) -> Tensor:
        """``[row, head]`` → ``[row, unit]``: NaN where one of a unit's heads has no value."""
        return values[:, self._members].masked_fill(~self._there, 0).sum(-1) / self._sizes

    def spread(self, values: Tensor) -> Tensor:
        """``[row, unit, …]`` → ``[row, head, …]``: each head its unit's."""
        return values.index_select(1, self._unit_of)


class Seen:
    """What one layer of one pass shows to policies.

    A row is what a decision is about: an input, or a token of one, input after input and padding included.

    Attributes:
        layer: the layer's index in the model.
        place: its rank among the layers that have units, as in tables.
        shape: rows and units of the layer.
        device: where decisions are wanted.
        known: scores computed so far, by id.
    """

    def __init__(
        self, outputs: Outputs, uniform: Callable[[int | None], Tensor], *, place: int, per: Rows = "input",
        wholes: Wholes | None = None,
    ) -> None:  # fmt: skip
        """``outputs`` of the layer, ``uniform`` as below, and of which of its parts a unit is made, where of several."""
        self._outputs, self._per, self._uniform, self.place, self._wholes = outputs, per, uniform, place, wholes
        rows, parts, length = outputs.values.shape[:3]
        self.layer, self.device = outputs.layer, outputs.values.device
        self._of_parts = (rows * length if per == "token" else rows, parts)
        self.shape: tuple[int, int] = (self._of_parts[0], parts if wholes is None else wholes.num_units)
        self.known: dict[str, Tensor] = {}

    def score(self, id: str) -> Tensor:
        """A score's values ``[row, unit]``, computed once a layer however many policies read them: the mean of a unit's parts.

        Raises:
            InputError: it is of other rows, or reads what was not measured.
        """
        score = get_score(id)
        if score.per != self._per:
            other = score.id.removesuffix("/token") if self._per == "input" else f"{score.id}/token"
            raise InputError(f"{score.id} is a score per {score.per}, and the policy decides per {self._per}: {other}.")
        if score.id not in self.known:
            uniform = self.uniform(None) if "uniform" in score.needs else None
            if self._wholes is not None and uniform is not None:
                uniform = self._wholes.spread(uniform)
            measured = self._outputs.measured if self._per == "input" else _of_tokens(self._outputs, score.needs)
            values = score.values(declared(measured, score.needs, uniform), self._of_parts)
            self.known[score.id] = values if self._wholes is None else self._wholes.means(values)
        return self.known[score.id]

    def uniform(self, seed: int | None) -> Tensor:
        """Float32 ``[row, unit]`` on [0, 1): of an input a function of the seed (None: the run's) and its tokens alone; of a
        token one of the seed, the token and its place."""
        return self._uniform(seed)


def declared(measured: Mapping[str, Tensor], needs: frozenset[str], uniform: Tensor | None = None) -> LayerMeasurements:
    """The measurements that ``needs`` names and no others; ``uniform`` [row, unit] if it is among them."""
    wanted = needs | {"real"} if needs & RAW_TENSORS else needs  # token_mean reads `real`
    found = {name: tensor for name, tensor in measured.items() if name in wanted}
    return LayerMeasurements(**found, **({} if uniform is None else {"uniform": uniform}))


def _of_tokens(outputs: Outputs, needs: frozenset[str]) -> dict[str, Tensor]:
    """Measurements with a token a row: ``[row · token, unit]``; tensors with that one token."""
    found = {name: outputs.by_token[name].transpose(1, 2).flatten(0, 1) for name in needs if name in outputs.by_token}
    for name in needs & OF_TOKENS & outputs.measured.keys():
        tensor = outputs.measured[name]
        if name == "output":
            tensor = tensor.transpose(1, 2).flatten(0, 1)[:, :, None]
        elif name in ("residual", "block_input"):
            tensor = tensor.flatten(0, 1)[:, None]
        found[name] = tensor
    if needs & RAW_TENSORS:
        rows, _, length, _ = outputs.values.shape
        found["real"] = outputs.values.new_ones(rows * length, 1, dtype=torch.bool)
    return found


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


def check_policy(policy: Any, units: UnitMap | None = None) -> None:
    """Raise InputError for what is no policy, lacks its calibration, or does not fit a model's ``units``."""
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
    if policy.needs_calibration and policy.calibration is None:
        raise InputError(
            f"{policy.label} needs a calibration. Make one with `headcount calibrate MODEL --texts … -o FILE` and give it with "
            "--calibration FILE, or from Python with calibration=headcount.calibrate(…)."
        )
    if units is not None:
        check_measured(policy, units.kind)
        policy.check(units)


def check_measured(policy: Policy, kind: KindId) -> None:
    """Raise InputError unless what a policy decides by is measured of units of a kind."""
    if unknown := policy.needs - MEASURED[kind]:
        plural = KINDS[kind].plural
        raise InputError(f"{policy.label} reads {', '.join(sorted(unknown))}, which {plural} do not have.")


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
        raise InputError(f"Policy {policy!r}: a share of heads lies between 0 and 1; write 10% as 0.10.")
    return share


def share_of(share: object) -> float:
    """A share of units. Raises InputError unless it lies between 0 and 1."""
    number = float(share) if _is_number(share) else math.nan  # type: ignore[arg-type]
    if not 0 <= number <= 1:
        raise InputError(f"A share of heads lies between 0 and 1, not {share!r}; write 10% as 0.10.")
    return number


def _is_number(value: object) -> bool:
    return isinstance(value, Real | Tensor) and getattr(value, "ndim", 0) == 0


#: Of the untouched model.
UNTOUCHED = PolicyFacts(policy=BASELINE)
