"""What one layer of one pass shows to policies: scores of its units, made once, and random numbers."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from headcount.attention.measurements import OF_TOKENS, RAW_TENSORS, LayerMeasurements
from headcount.devices import moved
from headcount.errors import InputError
from headcount.outputs import Outputs
from headcount.scores import Rows, get_score


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
