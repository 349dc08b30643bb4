"""What several policies decide, and several scores say, in one forward pass."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from headcount.heads import HeadGeometry
from headcount.interventions import Policy, Threshold
from headcount.models.context import draw_uniform
from headcount.models.measuring import declared
from headcount.scores import Score, get_score


class Decisions:
    """Collects, layer by layer, which heads of each row each policy would zero.

    Args:
        geometry: the model's heads.
        policies: by their places in the plan's list.
        scores: to keep the values of.
        texts: each row's whole text, from whose tokens random numbers are drawn; None where the text goes on.
        seed: of the ``random`` score.
        obeyed: for each row the policy whose decision is carried out; None carries none out.
    """

    def __init__(
        self,
        geometry: HeadGeometry,
        policies: Mapping[int, Policy],
        *,
        scores: Sequence[Score] = (),
        texts: Sequence[Sequence[int] | None],
        seed: int,
        obeyed: Sequence[int] | None = None,
    ) -> None:
        self._geometry, self._policies, self._scores = geometry, policies, scores
        self._texts, self._seed = texts, seed
        self._obeyed = None if obeyed is None else torch.tensor([[*policies].index(p) for p in obeyed])
        self._places = {layer.index: place for place, layer in enumerate(geometry.layers)}
        self._draws: dict[int, Tensor] = {}
        self._decided: dict[int, Tensor] = {}  # place of the layer → bool [policy, row, head]
        self._values: dict[int, list[Tensor]] = {}  # place of the layer → [row, head] of each score

    def of_layer(
        self, layer: int, measured: dict[str, Tensor], shape: tuple[int, int], device: torch.device
    ) -> Tensor | None:
        """Decide, as ``SegmentReader.read`` asks; the heads to zero, bool ``[row, head]``."""
        place, seen = self._places[layer], {}
        if self._scores:
            self._values[place] = [self._value(score, place, measured, shape, seen) for score in self._scores]
        if not self._policies:
            return None
        decided = torch.zeros(len(self._policies), *shape, dtype=torch.bool, device=device)
        for i, policy in enumerate(self._policies.values()):
            if layer in policy.exclude_layers:
                continue
            if isinstance(policy, Threshold):
                score = get_score(policy.score)
                decided[i] = score.inactive(self._value(score, place, measured, shape, seen), policy.threshold)
            else:
                uniform = self._uniform(policy.seed, place) if "uniform" in policy.needs else None
                decided[i] = policy.decide(layer, declared(measured, policy.needs, uniform), shape, device)
        self._decided[place] = decided
        if self._obeyed is None:
            return None
        return decided[self._obeyed.to(device), torch.arange(shape[0], device=device)]

    def decided(self) -> dict[int, np.ndarray]:
        """For each policy bool ``[row, layer, head]``; False in layers that did not run."""
        shape = len(self._policies), len(self._texts), len(self._geometry.layers), self._geometry.max_attention_heads
        found = np.zeros(shape, bool)
        for place, of_layer in self._decided.items():
            found[:, :, place, : of_layer.shape[-1]] = of_layer.cpu().numpy()
        return dict(zip(self._policies, found, strict=True))

    def values(self) -> np.ndarray:
        """float32 ``[score, row, layer, head]``; NaN where a layer has fewer heads."""
        shape = len(self._scores), len(self._texts), len(self._geometry.layers), self._geometry.max_attention_heads
        found = np.full(shape, np.nan, np.float32)
        for place, of_layer in self._values.items():
            stacked = torch.stack(of_layer).float().cpu().numpy()  # [score, row, head]
            found[:, :, place, : stacked.shape[-1]] = stacked
        return found

    def _value(
        self, score: Score, place: int, measured: dict[str, Tensor], shape: tuple[int, int], seen: dict[str, Tensor]
    ) -> Tensor:
        """A score's values ``[row, head]``, computed once a layer however many policies read it."""
        if score.id not in seen:
            uniform = self._uniform(None, place) if "uniform" in score.needs else None
            seen[score.id] = score.values(declared(measured, score.needs, uniform), shape)
        return seen[score.id]

    def _uniform(self, seed: int | None, place: int) -> Tensor:
        seed = self._seed if seed is None else seed
        if seed not in self._draws:
            shape = len(self._geometry.layers), self._geometry.max_attention_heads
            rows = [
                np.ones(shape, np.float32) if text is None else draw_uniform(np.asarray(text), seed, shape)
                for text in self._texts
            ]
            self._draws[seed] = torch.from_numpy(np.stack(rows))  # [row, layer, head]
        return self._draws[seed][:, place, : self._geometry.layers[place].num_attention_heads]
