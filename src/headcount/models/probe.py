"""What was seen and done while a model ran."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from headcount.scores import Score
from headcount.units import KindId, UnitMap


@dataclass(kw_only=True)
class Examples:
    """The examples of one forward pass."""

    scores: np.ndarray  # [score, example, layer, head]
    off: np.ndarray  # [example, layer, head], off on the prompt and ever since
    num_tokens: np.ndarray
    shares: list[np.ndarray]  # [example] for the prompt and each step that decided anew; NaN where no text goes on
    weights: list[np.ndarray | int]  # of these: 1, or per token the number of tokens


class Probe:
    """What was seen and done while a model ran under ``instrument``, example by example in the order of the calls.

    Decoding steps (calls that continue a cache) are no examples of their own. Where they decide anew
    (``decide="running"``), they count for the example whose text they continue: ``off`` holds the heads that were off
    on the prompt and at every step since, and ``share_off`` the mean over prompt and steps. Beams that continue one
    example count as one step of it, as their mean.
    """

    def __init__(self, units: UnitMap, scores: list[Score]) -> None:
        self.units = units
        self.beside: dict[KindId, Probe] = {}  # of other kinds of units, where several are off at once
        self._score_ids = [score.id for score in scores]
        self._passes: list[Examples] = []

    @property
    def scores(self) -> xr.Dataset:
        """One float32 variable per score id, dims (example, layer, head): what each layer saw, with what was off before it.

        NaN where a layer has fewer heads than the widest, or where a score is not defined.
        """
        shape = (len(self._score_ids), 0, *self._coordinates_shape)
        values = np.concatenate([np.zeros(shape, np.float32), *(seen.scores for seen in self._passes)], axis=1)
        return xr.Dataset(
            {id: (("example", "layer", "head"), values[i]) for i, id in enumerate(self._score_ids)},
            coords=self._coordinates,
            attrs=self._attributes,
        )

    @property
    def off(self) -> xr.DataArray:
        """bool, dims (example, layer, head): the heads that were off; per token, those off on all of an example's tokens."""
        values = np.concatenate([np.zeros((0, *self._coordinates_shape), bool), *(seen.off for seen in self._passes)])
        return xr.DataArray(
            values, dims=("example", "layer", "head"), coords=self._coordinates, name="off", attrs=self._attributes
        )

    @property
    def share_off(self) -> np.ndarray:
        """float64 [example]: heads off over heads of the model; per token, pairs of a head and a token over all pairs."""
        return np.concatenate([np.zeros(0), *(_mean(seen) for seen in self._passes)])

    def clear(self) -> None:
        """Forget the examples seen so far."""
        self._passes.clear()

    def _add(self, scores: np.ndarray, off: np.ndarray, pairs: np.ndarray | None, num_tokens: np.ndarray) -> Examples:
        """``pairs [example]``: of a policy that decides per token, pairs of a head and a token that are off."""
        share, weight = self._share(off, pairs, num_tokens)
        seen = Examples(scores=scores, off=off, num_tokens=num_tokens, shares=[share], weights=[weight])
        self._passes.append(seen)
        return seen

    def _continue(
        self, seen: Examples, rows: np.ndarray, pairs: np.ndarray | None, num_new: int, off: np.ndarray
    ) -> None:
        """A step that decided anew: ``off [row, layer, head]`` for texts that continue the examples ``rows [row]``."""
        share, _ = self._share(off, pairs, np.full(len(rows), num_new))
        step = np.full(len(seen.off), np.nan)
        for example in np.unique(rows):
            step[example] = share[rows == example].mean()
            seen.off[example] &= off[rows == example].all(0)
        seen.shares.append(step)
        seen.weights.append(1 if pairs is None else num_new)

    def _share(
        self, off: np.ndarray, pairs: np.ndarray | None, num_tokens: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | int]:
        """The share that is off, and how much it counts."""
        if pairs is None:
            return off.sum((1, 2)) / self.units.num_units, 1
        return pairs / (self.units.num_units * num_tokens), num_tokens

    @property
    def _coordinates_shape(self) -> tuple[int, int]:
        return len(self.units.layers), self.units.most_units

    @property
    def _attributes(self) -> dict[str, Any]:
        return {} if self.units.kind == "head" else {"unit": self.units.kind}

    @property
    def _coordinates(self) -> dict[str, Any]:
        num_tokens = np.concatenate([np.zeros(0, np.int64), *(seen.num_tokens for seen in self._passes)])
        heads = np.arange(self._coordinates_shape[1])
        return {"layer": self.units.layer_indices, "head": heads, "num_tokens": ("example", num_tokens)}


def _mean(seen: Examples) -> np.ndarray:
    shares = np.stack(seen.shares)
    weights = np.stack([np.broadcast_to(weight, shares[0].shape) for weight in seen.weights])
    return np.nansum(shares * weights, axis=0) / np.where(np.isnan(shares), 0, weights).sum(axis=0)
