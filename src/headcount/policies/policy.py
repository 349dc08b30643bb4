"""What a policy is: how it decides which units of a layer are off, what stands in their place, and how it is called."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from html import escape
from numbers import Real
from typing import Any, NamedTuple, Self

import xarray as xr
from torch import Tensor

from headcount.attention.measurements import MEASUREMENTS, RAW_TENSORS, LayerMeasurements
from headcount.errors import InputError, whole
from headcount.replacements import ZERO, Replacement
from headcount.scores import get_score
from headcount.units import UnitMap

#: The untouched model, as tables and manifests call it.
BASELINE = "baseline"
#: The curve of checkpoints with heads removed for good.
PRUNED = "pruned"


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


class Seen:
    """What one layer of one pass shows to policies.

    Attributes:
        layer: the layer's index in the model.
        shape: rows (inputs) and units of the layer.
        device: where decisions are wanted.
        known: scores computed so far, by id.
    """

    def __init__(
        self, layer: int, outputs: Tensor, measured: Mapping[str, Tensor], uniform: Callable[[int | None], Tensor]
    ) -> None:
        """``outputs [row, unit, …]`` of the layer, what was ``measured`` of them, and ``uniform`` as below."""
        self.layer, self._measured, self._uniform = layer, measured, uniform
        self.shape: tuple[int, int] = (outputs.shape[0], outputs.shape[1])
        self.device = outputs.device
        self.known: dict[str, Tensor] = {}

    def score(self, id: str) -> Tensor:
        """A score's values ``[row, unit]``, computed once a layer however many policies read them."""
        score = get_score(id)
        if score.id not in self.known:
            uniform = self.uniform(None) if "uniform" in score.needs else None
            self.known[score.id] = score.values(declared(self._measured, score.needs, uniform), self.shape)
        return self.known[score.id]

    def uniform(self, seed: int | None) -> Tensor:
        """Float32 ``[row, unit]`` on [0, 1), a function of the seed (None: the run's) and each row's tokens alone."""
        return self._uniform(seed)


def declared(measured: Mapping[str, Tensor], needs: frozenset[str], uniform: Tensor | None = None) -> LayerMeasurements:
    """The measurements that ``needs`` names and no others; ``uniform`` [row, unit] if it is among them."""
    wanted = needs | {"real"} if needs & RAW_TENSORS else needs  # token_mean reads `real`
    found = {name: tensor for name, tensor in measured.items() if name in wanted}
    return LayerMeasurements(**found, **({} if uniform is None else {"uniform": uniform}))


class Wanted(NamedTuple):
    """A threshold that a policy lacks."""

    score: str
    share: float
    source: str  # "published" or "published/TASK"; empty for the scores of the run


@dataclass(frozen=True, kw_only=True)
class Policy(ABC):
    """Decides which units of a layer are off, for each row (input) of a batch on its own.

    Args:
        exclude_layers: layers (indices in the model) never touched.
        instead: what stands where a unit is off.
    """

    exclude_layers: frozenset[int] = frozenset()
    instead: Replacement = ZERO

    def __post_init__(self) -> None:
        object.__setattr__(self, "exclude_layers", layer_set(self.exclude_layers))

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
                f"exclude_layers names layer {min(missing)}; the model's attention layers are {known[0]}…{known[-1]}."
            )

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

    @property
    def suffix(self) -> str:
        """What labels and curves add: the replacement, and the layers left alone."""
        layers = self.exclude_layers
        return self.instead.suffix + (f" except layer {', '.join(map(str, sorted(layers)))}" if layers else "")

    def _repr_html_(self) -> str:
        return f"<p><b>{escape(self.label)}</b>: {escape(str(self))}</p>"


def check_policy(policy: Any, units: UnitMap | None = None) -> None:
    """Raise InputError for what is no policy, or for one that does not fit a model's ``units``."""
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
    if units is not None:
        policy.check(units)


def layer_set(layers: Iterable[int]) -> frozenset[int]:
    """Layers never touched. Raises InputError for what are no layer indices."""
    if not isinstance(layers, Iterable):
        raise InputError(f"exclude_layers is a collection of layer indices, such as [0, 1], not {layers!r}.")
    return frozenset(whole(layer, "exclude_layers holds layer indices counted from 0", least=0) for layer in layers)


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
