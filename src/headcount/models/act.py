"""Measure, decide, replace: what happens in every layer of every pass, under ``instrument`` and in the engine alike."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import or_
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from headcount.attention.measurements import RAW_TENSORS
from headcount.devices import moved
from headcount.errors import InputError, ModelError
from headcount.models.draws import draw_tokens
from headcount.outputs import Outputs
from headcount.policies import Policy
from headcount.policies.seen import Seen, Wholes, declared
from headcount.replacements import Replacement, replaced
from headcount.scores import Score
from headcount.units import UnitMap

#: From a seed (None: the run's) to float32 [row, layer, unit] on [0, 1), a function of it and of each row's tokens alone.
Draws = Callable[[int | None], Tensor]


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What is to be measured of a layer."""

    of_rows: frozenset[str] = frozenset()  # measurements of each row
    of_tokens: frozenset[str] = frozenset()  # measurements of each token
    shown: frozenset[str] = frozenset()  # what replacements read beside outputs

    def __bool__(self) -> bool:
        return bool(self.of_rows or self.of_tokens or self.shown)

    def __or__(self, other: "Needs") -> "Needs":
        return Needs(
            of_rows=self.of_rows | other.of_rows,
            of_tokens=self.of_tokens | other.of_tokens,
            shown=self.shown | other.shown,
        )

    @classmethod
    def of(cls, policies: Iterable[Policy], scores: Iterable[Score] = (), *, obeyed: bool = True) -> "Needs":
        """Those of policies, of which some are obeyed, and of scores."""
        found = cls()
        for reader in (*policies, *scores):
            found |= cls(of_tokens=reader.needs) if reader.per == "token" else cls(of_rows=reader.needs)
            if obeyed and isinstance(reader, Policy):
                found |= cls(shown=reader.instead.needs)
        return found


class Sink(Protocol):
    """Takes the values of scores as layers give them, where those of a pass would be too many to hold."""

    @property
    def scores(self) -> Sequence[Score]: ...

    def __call__(self, place: int, score: Score, values: Tensor) -> None:
        """``values`` are of one layer: float ``[row, unit]``, or ``[row · token, unit]``; ``place`` is its rank."""


class Act:
    """What several policies decide, and several scores say, in one forward pass. Called by each layer with its outputs.

    Args:
        units: the model's.
        policies: who decides.
        scores: to keep the values of, of inputs and of tokens.
        rows: inputs of the pass.
        draws: random numbers of its rows.
        seed: of random numbers of tokens, where a score draws them.
        sink: of other scores, whose values are handed on and not kept.
        obeyed: which of ``policies`` is carried out: one for all rows, or one for each; None carries none out.
    """

    def __init__(
        self,
        units: UnitMap,
        policies: Sequence[Policy] = (),
        *,
        scores: Sequence[Score] = (),
        rows: int,
        draws: Draws,
        seed: int = 0,
        sink: Sink | None = None,
        obeyed: int | Sequence[int] | None = None,
    ) -> None:
        self._sink = sink
        self._wholes: dict[tuple[int, torch.device], Wholes] = {}
        self._units, self._policies, self._rows = units, policies, rows
        self._scores = [score for score in scores if score.per == "input"]
        self._token_scores = [score for score in scores if score.per == "token"]
        self._draws, self._seed, self._obeyed = draws, seed, obeyed
        self._places = {layer.index: place for place, layer in enumerate(units.layers)}
        self._drawn: dict[tuple[int | None, torch.device], Tensor] = {}
        self._rows_of: dict[tuple[int, torch.device], Tensor] = {}  # that obey a policy
        self._decided: dict[int, Tensor] = {}  # place of the layer → bool [policy, row, unit]
        self._pairs: dict[int, Tensor] = {}  # place of the layer → int64 [policy, row]
        self._said: dict[int, dict[str, Tensor]] = {}  # place of the layer → score → [row, unit]
        self._said_of_tokens: dict[int, Tensor] = {}  # place of the layer → float32 [score, row, token, unit]
        self._measured: dict[int, dict[str, Tensor]] = {}  # place of the layer → what the other scores read

    def needs(self, layer: int) -> Needs:
        """What is read of a layer."""
        policies = [policy for policy in self._policies if layer not in policy.exclude_layers]
        sunk = () if self._sink is None else self._sink.scores
        return Needs.of(policies, (*self._scores, *self._token_scores, *sunk), obeyed=self._obeyed is not None)

    def __call__(self, outputs: Outputs) -> Tensor:
        """The layer's outputs as they go on, ``[row, unit, token, width]``."""
        place = self._places[outputs.layer]
        wholes = self._wholes_of(place, outputs.values.device)
        of_rows = Seen(outputs, partial(self._uniform, place, outputs.values.device), place=place, wholes=wholes)
        of_tokens = Seen(outputs, partial(self._uniform_of_tokens, outputs), place=place, per="token", wholes=wholes)
        off: dict[int, Tensor] = {}  # of each policy, [row, unit, token or 1]
        for i, policy in enumerate(self._policies):
            seen = of_tokens if policy.per == "token" else of_rows
            if outputs.layer not in policy.exclude_layers:
                off[i] = _off(_checked(policy.decide(seen), policy, seen.shape), policy, outputs)
        if self._policies:
            self._note(place, outputs, off)
        if self._scores:
            self._keep(place, of_rows, outputs)
        if self._token_scores:
            said = [of_tokens.score(score.id).float() for score in self._token_scores]
            self._said_of_tokens[place] = torch.stack(said).unflatten(1, (self._rows, -1))
        if self._sink is not None:
            for score in self._sink.scores:
                self._sink(place, score, (of_tokens if score.per == "token" else of_rows).score(score.id))
        if self._obeyed is None:
            return outputs.values
        return self._carried_out(
            outputs, off if wholes is None else {i: wholes.spread(units) for i, units in off.items()}
        )

    def off(self, layer: int) -> Tensor:
        """bool ``[row, part]``, what the first policy decided in a layer that ran; per token, what is off on all of them."""
        place = self._places[layer]
        off = self._decided[place][0]
        return off if (wholes := self._wholes_of(place, off.device)) is None else wholes.spread(off)

    def decided(self) -> np.ndarray:
        """bool ``[policy, row, layer, unit]``; False in layers that did not run. Per token, what is off on all of them."""
        found = np.zeros((len(self._policies), *self._shape), bool)
        if not self._decided:
            return found
        sizes = [of_layer.shape[-1] for of_layer in self._decided.values()]
        fetched = _fetched(self._decided.values(), dim=-1)
        for place, of_layer in zip(self._decided, fetched.split(sizes, dim=-1), strict=True):
            found[:, :, place, : of_layer.shape[-1]] = of_layer.numpy()
        return found

    def pairs_off(self) -> np.ndarray:
        """int64 ``[policy, row]``: of policies that decide per token, the pairs of a head and a real token that are off."""
        if not self._pairs:
            return np.zeros((len(self._policies), self._rows), np.int64)
        first, *others = self._pairs.values()
        return sum((of_layer.to(first.device) for of_layer in others), first).cpu().numpy()

    def values_of_tokens(self, real: np.ndarray) -> np.ndarray:
        """float32 ``[score, token, layer, unit]`` of the scores of tokens, in the order of the real ones, bool ``[row, token]``.

        NaN where a layer has fewer units, or did not run.
        """
        shape = len(self._token_scores), int(real.sum()), *self._shape[1:]
        found = np.full(shape, np.nan, np.float32)
        for place, said in self._said_of_tokens.items():
            found[:, :, place, : said.shape[-1]] = said.cpu().numpy()[:, real]
        return found

    def values(self) -> np.ndarray:
        """float32 ``[score, row, layer, unit]``; NaN where a layer has fewer units, or did not run."""
        found = np.full((len(self._scores), *self._shape), np.nan, np.float32)
        alike: dict[
            tuple[int, frozenset[str]], list[int]
        ] = {}  # number of units, scores said at once → places of layers
        for place, said in self._said.items():
            alike.setdefault((self._units.counts[place], frozenset(said)), []).append(place)
        for (num_units, _), places in alike.items():
            first = places[0]
            stacked = {
                name: _fetched(self._measured[p][name] for p in places).float() for name in self._measured[first]
            }
            for i, score in enumerate(self._scores):
                if score.id in self._said[first]:
                    values = _fetched(self._said[p][score.id] for p in places).float()
                else:  # a score sees layers as it sees examples, so one call does for all layers
                    shape = len(places) * self._rows, num_units
                    values = score.values(declared(stacked, score.needs), shape).float()
                by_layer = values.view(len(places), self._rows, num_units).transpose(0, 1)
                found[i][:, places, :num_units] = by_layer.numpy()
        return found

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self._rows, len(self._units.layers), self._units.most_units

    def _keep(self, place: int, seen: Seen, outputs: Outputs) -> None:
        """What the scores say here, or what they read: whole tensors are gone after the layer."""
        now = [
            score.id for score in self._scores
            if self._of_wholes or score.id in seen.known or score.needs & (RAW_TENSORS | {"uniform"})
        ]  # fmt: skip
        self._said[place] = {id: seen.score(id) for id in now}
        later = needs_of(score for score in self._scores if score.id not in now)
        self._measured[place] = {name: outputs.measured[name] for name in later}

    def _note(self, place: int, outputs: Outputs, off: dict[int, Tensor]) -> None:
        """What each policy decided: per row, or on all real tokens, and how many pairs of a unit and a real token."""
        device, units = outputs.values.device, self._units.counts[place]
        decided = torch.zeros(len(self._policies), self._rows, units, dtype=torch.bool, device=device)
        pairs: dict[int, Tensor] = {}
        for i, of_policy in off.items():
            if self._policies[i].per == "token":
                real = outputs.real
                off_here = of_policy & real if outputs.padded else of_policy
                tokens = off_here.sum(-1, dtype=torch.int32)  # [row, unit]
                decided[i] = tokens == real.sum(-1)
                pairs[i] = tokens.sum(1, dtype=torch.int64)
            else:
                decided[i] = of_policy[:, :, 0]
        self._decided[place] = decided
        if any(policy.per == "token" for policy in self._policies):
            none = torch.zeros(self._rows, dtype=torch.int64, device=device)
            self._pairs[place] = torch.stack([pairs.get(i, none) for i in range(len(self._policies))])

    def _carried_out(self, outputs: Outputs, off: dict[int, Tensor]) -> Tensor:
        obeyed, device = self._obeyed, outputs.values.device
        if isinstance(obeyed, int):
            policy = self._policies[obeyed]
            return replaced(outputs, off.get(obeyed), policy.instead, keep_first=policy.keep_first)
        assert obeyed is not None
        ways: dict[tuple[Replacement, bool], list[int]] = {}  # how units are replaced → by which policies
        for i in dict.fromkeys(obeyed):
            if i in off:
                ways.setdefault((self._policies[i].instead, self._policies[i].keep_first), []).append(i)
        for (instead, keep_first), policies in ways.items():
            mine = [off[i] & self._obeying(i, device) for i in policies]
            values = replaced(outputs, reduce(or_, mine), instead, keep_first=keep_first)
            outputs = replace(outputs, values=values)
        return outputs.values

    def _obeying(self, policy: int, device: torch.device) -> Tensor:
        """bool ``[row, 1, 1]``: which rows obey a policy."""
        assert self._obeyed is not None and not isinstance(self._obeyed, int)
        if (policy, device) not in self._rows_of:
            rows = torch.tensor([other == policy for other in self._obeyed])[:, None, None]
            self._rows_of[policy, device] = moved(rows, device)
        return self._rows_of[policy, device]

    @property
    def _of_wholes(self) -> bool:
        return self._units.kind in ("group", "attention")

    def _wholes_of(self, place: int, device: torch.device) -> Wholes | None:
        """Of which heads a layer's units are made, where of several."""
        if not self._of_wholes:
            return None
        if (place, device) not in self._wholes:
            self._wholes[place, device] = Wholes(self._units.layers[place].members(self._units.kind), device)
        return self._wholes[place, device]

    def _uniform(self, place: int, device: torch.device, seed: int | None) -> Tensor:
        if (seed, device) not in self._drawn:
            self._drawn[seed, device] = moved(self._draws(seed), device)
        return self._drawn[seed, device][:, place, : self._units.counts[place]]

    def _uniform_of_tokens(self, outputs: Outputs, seed: int | None) -> Tensor:
        """``[row · token, unit]``."""
        if outputs.tokens is None or outputs.places is None:
            raise ModelError("Random heads are drawn from an example's tokens: call the model with input_ids.")
        device = outputs.values.device
        drawn = draw_tokens(
            outputs.tokens.to(device), outputs.places.to(device), self._seed if seed is None else seed, outputs.layer,
            self._units.counts[self._places[outputs.layer]],
        )  # fmt: skip
        return drawn.flatten(0, 1)


def _off(decided: Tensor, policy: Policy, outputs: Outputs) -> Tensor:
    """bool ``[row, unit, 1]``, or per token ``[row, unit, token]`` without what is kept."""
    if policy.per == "input":
        return decided[:, :, None]
    off = decided.unflatten(0, (outputs.values.shape[0], -1)).transpose(1, 2)
    return off & ~outputs.first if policy.keep_first and outputs.first is not None else off


def _no_draws(policy: Policy) -> Draws:
    def draws(seed: int | None) -> Tensor:
        raise InputError(f"{policy.label} reads random numbers: its `needs` has to name them, {{'uniform'}}.")

    return draws


def _checked(decided: Any, policy: Policy, shape: tuple[int, int]) -> Tensor:
    if isinstance(decided, Tensor) and decided.dtype == torch.bool and tuple(decided.shape) == shape:
        return decided
    kind = type(decided).__name__
    given = f"{decided.dtype} {[*decided.shape]}".removeprefix("torch.") if isinstance(decided, Tensor) else kind
    raise InputError(
        f"{policy.label} decided by {given}. `decide` returns bool [row, unit], here {[*shape]}: True where a unit is off."
    )


def always_off(policy: Policy, units: UnitMap) -> np.ndarray | None:
    """bool ``[layer, unit]`` of a policy that reads nothing, and so decides the same on every input; None of another."""
    if policy.needs:
        return None
    act = Act(units, [policy], rows=1, draws=_no_draws(policy))
    for layer, count in zip(units.layers, units.counts, strict=True):
        parts = layer.num_parts if act._of_wholes else count
        act(Outputs(layer=layer.index, values=torch.zeros(1, parts, 0, 0), measured={}))
    return act.decided()[0, 0]


def needs_of(scores: Iterable[Score]) -> frozenset[str]:
    """All measurements that some scores read."""
    return frozenset().union(*(score.needs for score in scores))


def _fetched(layers: Iterable[Tensor], dim: int = 0) -> Tensor:
    """What layers hold, on whatever devices, joined and fetched to main memory at once."""
    first, *others = (tensor.detach() for tensor in layers)
    return torch.cat([first, *(tensor.to(first.device) for tensor in others)], dim=dim).cpu()
