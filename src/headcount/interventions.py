"""Policies: which heads are zeroed on an input, decided layer by layer from what the layer measures."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from numbers import Real
from typing import Any, Protocol

import torch
from torch import Tensor

from headcount.attention.measurements import LayerMeasurements
from headcount.errors import InputError, seed_of, whole
from headcount.heads import HeadSet
from headcount.scores import get_score


class Policy(Protocol):
    """Decides which heads of a layer are zeroed, for each example of a batch on its own."""

    @property
    def exclude_layers(self) -> frozenset[int]:
        """Layers (indices in the model) that the policy never touches."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """The measurements the decision reads."""
        ...

    @property
    def seed(self) -> int | None:
        """Seed of the ``uniform`` measurement it reads; None for the run's."""
        ...

    @property
    def label(self) -> str:
        """Short unique name, such as ``ahon_ln:0.1`` or ``awft@0.8``."""
        ...

    def decide(
        self, layer: int, measurements: LayerMeasurements, shape: tuple[int, int], device: torch.device
    ) -> Tensor:
        """bool ``[batch, head]`` of ``shape``: True where the head is zeroed."""
        ...


def check_is_policy(given: Any) -> None:
    """Raise InputError for what is no policy."""
    if isinstance(given, type) or not all(hasattr(given, name) for name in ("decide", "label", "needs")):
        raise InputError(
            f"A policy is a Threshold, Random or Fixed, such as Random(0.1), not {given!r:.60}; headcount.policies."
            "resolve_policy reads one from text."
        )


def _layers(layers: Iterable[int]) -> frozenset[int]:
    if not isinstance(layers, Iterable):
        raise InputError(f"exclude_layers is a collection of layer indices, such as [0, 1], not {layers!r}.")
    return frozenset(whole(layer, "exclude_layers holds layer indices counted from 0", least=0) for layer in layers)


def _except(layers: frozenset[int]) -> str:
    return f" except layer {', '.join(map(str, sorted(layers)))}" if layers else ""


def _html(policy: "Policy") -> str:
    return f"<p><b>{escape(policy.label)}</b>: {escape(str(policy))}</p>"


def _share(share: float) -> float:
    number = float(share) if isinstance(share, Real | Tensor) and getattr(share, "ndim", 0) == 0 else math.nan
    if not 0 <= number <= 1:
        raise InputError(f"A share of heads lies between 0 and 1, not {share!r}; write 10% as 0.10.")
    return number


@dataclass(frozen=True)
class Threshold:
    """Zero the heads whose score on the input is beyond a threshold.

    Args:
        score: id or alias of a registered score.
        threshold: heads strictly below it (scores inactive when low) or above it (high) are zeroed.
        share: the share of heads the threshold was derived from, for labels and tables.
        source: where it was derived, if not from the scores of this run, for labels too.
        exclude_layers: layers never touched.

    Raises:
        InputError: unknown score, or a threshold that is not a number.
    """

    score: str
    threshold: float
    share: float | None = field(default=None, kw_only=True)
    source: str = field(default="", kw_only=True)
    exclude_layers: frozenset[int] = field(default=frozenset(), kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "score", get_score(self.score).id)
        try:
            object.__setattr__(self, "threshold", float(self.threshold))
        except (TypeError, ValueError):
            raise InputError(f"The threshold for {self.score} is a number, not {self.threshold!r}.") from None
        object.__setattr__(self, "exclude_layers", _layers(self.exclude_layers))
        if math.isnan(self.threshold):
            raise InputError(f"The threshold for {self.score} is NaN. Give a number, or measure the score first.")
        if self.share is not None:
            object.__setattr__(self, "share", _share(self.share))

    @property
    def needs(self) -> frozenset[str]:
        return get_score(self.score).needs

    @property
    def seed(self) -> int | None:
        return None

    @property
    def label(self) -> str:
        if self.share is None:
            name = f"{self.score}@{self.threshold:.12g}"
        else:
            name = ":".join(filter(None, (self.score, self.source, f"{self.share:.12g}")))
        return name + _except(self.exclude_layers)

    def __str__(self) -> str:
        score = get_score(self.score)
        side = "below" if score.inactive_when == "low" else "above"
        share = "" if self.share is None else f", beyond which {100 * self.share:g}% of its scores lie"
        excepted = _except(self.exclude_layers)
        return f"zeroes heads whose {self.score} ({score.name}) is {side} {self.threshold:.4g}{share}{excepted}"

    def _repr_html_(self) -> str:
        return _html(self)

    def decide(
        self, layer: int, measurements: LayerMeasurements, shape: tuple[int, int], device: torch.device
    ) -> Tensor:
        score = get_score(self.score)
        return score.inactive(score.values(measurements, shape), self.threshold)


@dataclass(frozen=True)
class Random:
    """Zero each head of each layer and example independently with probability ``share``.

    The draw depends on the seed and the example's tokens alone, so it is the same in any batch.
    """

    share: float
    seed: int = 0
    exclude_layers: frozenset[int] = field(default=frozenset(), kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "share", _share(self.share))
        object.__setattr__(self, "seed", seed_of(self.seed))
        object.__setattr__(self, "exclude_layers", _layers(self.exclude_layers))

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"uniform"})

    @property
    def label(self) -> str:
        name = f"random:{self.share:.12g}" if self.seed == 0 else f"random:{self.share:.12g}#{self.seed}"
        return name + _except(self.exclude_layers)

    def __str__(self) -> str:
        excepted = _except(self.exclude_layers)
        return f"zeroes each head of each input with probability {100 * self.share:g}%, seed {self.seed}{excepted}"

    def _repr_html_(self) -> str:
        return _html(self)

    def decide(
        self, layer: int, measurements: LayerMeasurements, shape: tuple[int, int], device: torch.device
    ) -> Tensor:
        return measurements.uniform < self.share


@dataclass(frozen=True)
class Fixed:
    """Zero the same heads on every input.

    Args:
        heads: a HeadSet, or (layer, head) pairs.
        name: its label in tables.
    """

    heads: HeadSet
    name: str = field(default="fixed", kw_only=True)
    exclude_layers: frozenset[int] = field(default=frozenset(), kw_only=True)

    def __post_init__(self) -> None:
        heads = self.heads if isinstance(self.heads, HeadSet) else HeadSet(self.heads)
        object.__setattr__(self, "heads", heads)
        object.__setattr__(self, "exclude_layers", _layers(self.exclude_layers))

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    @property
    def seed(self) -> int | None:
        return None

    @property
    def label(self) -> str:
        return self.name

    def __str__(self) -> str:
        pairs = [f"{layer}.{head}" for layer, head in self.heads]
        named = ", ".join(pairs[:12]) + (f" and {len(pairs) - 12} more" if len(pairs) > 12 else "")
        return f"zeroes the same {len(pairs)} heads on every input (layer.head: {named}){_except(self.exclude_layers)}"

    def _repr_html_(self) -> str:
        return _html(self)

    def decide(
        self, layer: int, measurements: LayerMeasurements, shape: tuple[int, int], device: torch.device
    ) -> Tensor:
        chosen = torch.zeros(shape[1], dtype=torch.bool)
        chosen[[head for of_layer, head in self.heads if of_layer == layer]] = True
        return chosen.to(device).expand(shape)
