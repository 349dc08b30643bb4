"""Measure, decide, replace: what happens in every layer of every pass, under ``instrument`` and in the engine alike."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headcount.attention.measurements import RAW_TENSORS
from headcount.devices import moved
from headcount.errors import InputError
from headcount.models.sites import Outputs
from headcount.policies import Policy
from headcount.policies.policy import Seen, declared
from headcount.replacements import Replacement, replaced
from headcount.scores import Score
from headcount.units import UnitMap

#: From a seed (None: the run's) to float32 [row, layer, unit] on [0, 1), a function of it and of each row's tokens alone.
Draws = Callable[[int | None], Tensor]


class Act:
    """What several policies decide, and several scores say, in one forward pass. Called by each layer with its outputs.

    Args:
        units: the model's.
        policies: who decides.
        scores: to keep the values of.
        rows: inputs of the pass.
        draws: random numbers of its rows.
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
        obeyed: int | Sequence[int] | None = None,
    ) -> None:
        self._units, self._policies, self._scores, self._rows = units, policies, scores, rows
        self._draws, self._obeyed = draws, obeyed
        self._places = {layer.index: place for place, layer in enumerate(units.layers)}
        self._drawn: dict[tuple[int | None, torch.device], Tensor] = {}
        self._obeying: dict[torch.device, list[tuple[Replacement, Tensor, Tensor]]] = {}
        self._decided: dict[int, Tensor] = {}  # place of the layer → bool [policy, row, unit]
        self._said: dict[int, dict[str, Tensor]] = {}  # place of the layer → score → [row, unit]
        self._measured: dict[int, dict[str, Tensor]] = {}  # place of the layer → what the other scores read

    def needs(self, layer: int) -> frozenset[str]:
        """The measurements that are read of a layer."""
        deciding = (policy.needs for policy in self._policies if layer not in policy.exclude_layers)
        return needs_of(self._scores).union(*deciding)

    def __call__(self, outputs: Outputs) -> Tensor:
        """The layer's outputs as they go on, ``[row, unit, token, width]``."""
        place = self._places[outputs.layer]
        uniform = partial(self._uniform, place, outputs.values.device)
        seen = Seen(outputs.layer, outputs.values, outputs.measured, uniform)
        if self._policies:
            decided = torch.zeros(len(self._policies), *seen.shape, dtype=torch.bool, device=seen.device)
            for i, policy in enumerate(self._policies):
                if outputs.layer not in policy.exclude_layers:
                    decided[i] = _checked(policy.decide(seen), policy, seen.shape)
            self._decided[place] = decided
        if self._scores:
            self._keep(place, seen, outputs)
        return outputs.values if self._obeyed is None else self._carried_out(outputs, place)

    def off(self, layer: int) -> Tensor:
        """bool ``[row, unit]``, what the first policy decided in a layer that ran."""
        return self._decided[self._places[layer]][0]

    def decided(self) -> np.ndarray:
        """bool ``[policy, row, layer, unit]``; False in layers that did not run."""
        found = np.zeros((len(self._policies), *self._shape), bool)
        if not self._decided:
            return found
        device = next(iter(self._decided.values())).device
        fetched = torch.cat([of_layer.to(device) for of_layer in self._decided.values()], dim=-1).cpu()  # at once
        sizes = [of_layer.shape[-1] for of_layer in self._decided.values()]
        for place, of_layer in zip(self._decided, fetched.split(sizes, dim=-1), strict=True):
            found[:, :, place, : of_layer.shape[-1]] = of_layer.numpy()
        return found

    def values(self) -> np.ndarray:
        """float32 ``[score, row, layer, unit]``; NaN where a layer has fewer units, or did not run."""
        found = np.full((len(self._scores), *self._shape), np.nan, np.float32)
        alike: dict[
            tuple[int, frozenset[str]], list[int]
        ] = {}  # number of units, scores said at once → places of layers
        for place, said in self._said.items():
            alike.setdefault((self._units.layers[place].num_attention_heads, frozenset(said)), []).append(place)
        for (num_units, _), places in alike.items():
            first = places[0]
            stacked = {name: _rows([self._measured[p][name] for p in places]) for name in self._measured[first]}
            for i, score in enumerate(self._scores):
                if score.id in self._said[first]:
                    values = _rows([self._said[p][score.id] for p in places])
                else:  # a score sees layers as it sees examples, so one call does for all layers
                    shape = len(places) * self._rows, num_units
                    values = score.values(declared(stacked, score.needs), shape).float()
                by_layer = values.view(len(places), self._rows, num_units).transpose(0, 1)
                found[i][:, places, :num_units] = by_layer.numpy()
        return found

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self._rows, len(self._units.layers), self._units.max_attention_heads

    def _keep(self, place: int, seen: Seen, outputs: Outputs) -> None:
        """What the scores say here, or what they read: whole tensors are gone after the layer."""
        now = [
            score.id for score in self._scores if score.id in seen.known or score.needs & (RAW_TENSORS | {"uniform"})
        ]
        self._said[place] = {id: seen.score(id) for id in now}
        later = needs_of(score for score in self._scores if score.id not in now)
        self._measured[place] = {name: outputs.measured[name] for name in later}

    def _carried_out(self, outputs: Outputs, place: int) -> Tensor:
        decided, obeyed = self._decided[place], self._obeyed
        if isinstance(obeyed, int):
            policy = self._policies[obeyed]
            if outputs.layer in policy.exclude_layers:
                return outputs.values
            return replaced(outputs.values, decided[obeyed], policy.instead)
        values = outputs.values
        for instead, chosen, of_rows in self._obeyed_on(decided.device):
            off = decided[chosen, torch.arange(self._rows, device=decided.device)]
            values = replaced(values, off & of_rows, instead)
        return values

    def _obeyed_on(self, device: torch.device) -> list[tuple[Replacement, Tensor, Tensor]]:
        """Each replacement, the policy that each row obeys, and the rows ``[row, 1]`` whose policy puts it in."""
        assert self._obeyed is not None and not isinstance(self._obeyed, int)
        if device not in self._obeying:
            chosen = moved(torch.tensor(self._obeyed), device)
            insteads = [self._policies[i].instead for i in self._obeyed]
            self._obeying[device] = [
                (instead, chosen, moved(torch.tensor([other == instead for other in insteads])[:, None], device))
                for instead in dict.fromkeys(insteads)
            ]
        return self._obeying[device]

    def _uniform(self, place: int, device: torch.device, seed: int | None) -> Tensor:
        if (seed, device) not in self._drawn:
            self._drawn[seed, device] = moved(self._draws(seed), device)
        return self._drawn[seed, device][:, place, : self._units.layers[place].num_attention_heads]


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
    for layer in units.layers:
        act(Outputs(layer=layer.index, values=torch.zeros(1, layer.num_attention_heads, 0, 0), measured={}))
    return act.decided()[0, 0]


def needs_of(scores: Iterable[Score]) -> frozenset[str]:
    """All measurements that some scores read."""
    return frozenset().union(*(score.needs for score in scores))


def _rows(layers: list[Tensor]) -> Tensor:
    """``[row, unit]`` of each layer → float32 ``[layer · row, unit]`` in main memory, fetched at once."""
    return torch.cat([tensor.detach().to(layers[0].device) for tensor in layers]).float().cpu()
