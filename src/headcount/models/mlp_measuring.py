"""What is measured of neurons' activations, and of what an MLP writes: tensors only."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection

import torch
from torch import Tensor

from headcount.attention.inputs import Positions
from headcount.attention.measurements import TAKEN

#: Numbers of activations that are looked at at a time: what is made of them stays in a processor's caches.
_NUMBERS_AT_A_TIME = {"cpu": 1 << 18, "cuda": 1 << 26}
_TINY = torch.finfo(torch.float32).tiny  # of a layer whose activations are all 0, of which each has no part
#: What was read of a layer, ``[row, token, width]``: ``residual``, ``gate``.
Read = Callable[[str], Tensor]


class Measuring(ABC):
    """Of the units of one layer's MLP in one pass.

    Args:
        values: activations ``[row, token, neuron]``, or what the MLP writes ``[row, token, hidden]``.
        positions: which of the tokens are real.
        read: what else was read of the layer.
    """

    def __init__(self, values: Tensor, positions: Positions, read: Read) -> None:
        self._values, self._positions, self._read = values, positions, read

    def of_rows(self, names: Collection[str]) -> dict[str, Tensor]:
        """Each ``[row, unit]``, float32."""
        means = {name for name in names if TAKEN[name].taken == "mean"}
        found = self._means(means)
        for name in set(names) - means:
            place = self._positions.last if TAKEN[name].taken == "last" else self._positions.first
            found[name] = self.of_tokens(TAKEN[name].of, place)[:, :, 0]
        return {name: values.float() for name, values in found.items()}

    def of_tokens(self, name: str, at: Tensor | None = None) -> Tensor:
        """Of each token ``[row, unit, token]``, float32; or of one a row, int64 ``[row]``."""
        values = self._at(self._values, at)
        return self._each(TAKEN[name].of, values, lambda what: self._at(self._read(what), at)).transpose(1, 2)

    @abstractmethod
    def _means(self, names: set[str]) -> dict[str, Tensor]:
        """Over real tokens, ``[row, unit]``."""

    @abstractmethod
    def _each(self, name: str, values: Tensor, read: Read) -> Tensor:
        """Of each token of ``values``, ``[row, token, unit]``."""

    @staticmethod
    def _at(values: Tensor, at: Tensor | None) -> Tensor:
        return (
            values
            if at is None
            else values[torch.arange(len(values), device=values.device), at.to(values.device)][:, None]
        )

    def _squared_norm(self, read: Read) -> Tensor:
        """‖x‖² ``[row, token, 1]``."""
        return read("residual").float().square().sum(-1, keepdim=True)


class MeasuringNeurons(Measuring):
    """Of neurons. ``norms`` gives ‖w‖ of each one's column of the map that reads them, float32 ``[neuron]``."""

    def __init__(self, values: Tensor, positions: Positions, read: Read, norms: Callable[[], Tensor]) -> None:
        super().__init__(values, positions, read)
        self._norms = norms

    def _each(self, name: str, values: Tensor, read: Read) -> Tensor:
        if name == "gate_norm":
            return read("gate").float().abs()
        if name == "residual_norm":
            return self._squared_norm(read).sqrt().expand(values.shape)
        sizes = values.float().abs()
        if name == "output_norm":
            return sizes
        if name == "contribution_norm":
            return sizes * self._norms()
        squares = sizes.square()
        if name == "square_share":
            return squares / squares.sum(-1, keepdim=True).clamp(min=_TINY)
        return squares * self._norms().square() / self._squared_norm(read)

    def _means(self, names: set[str]) -> dict[str, Tensor]:
        """Some tokens at a time, as weighted sums of |a| and a², in which everything is a product of two matrices."""
        weights = self._of_mean()
        at_a_time = max(1, _NUMBERS_AT_A_TIME.get(self._values.device.type, 1 << 20) // self._values[:, :1].numel())
        sums: dict[str, Tensor] = {}

        def add(parts: dict[str, Tensor], of: Tensor) -> None:
            for name, part in zip(parts, torch.bmm(torch.stack([*parts.values()], 1), of).unbind(1), strict=True):
                sums[name] = sums[name] + part if name in sums else part

        for start in range(0, self._values.shape[1], at_a_time):
            some = slice(start, start + at_a_time)
            mean, here = weights[:, some], self._real(self._values[:, some], some)
            if names & {"output_norm", "contribution_norm"}:
                add({"output_norm": mean}, here.abs())
            of_squares = {}
            if "relative_square" in names:
                of_squares["relative_square"] = (
                    mean / self._squared_norm(lambda what, s=some: self._read(what)[:, s])[..., 0]
                )
            squares = here.square() if names & {"relative_square", "square_share"} else here
            if "square_share" in names:
                of_squares["square_share"] = mean / squares.sum(-1).clamp(min=_TINY)
            if of_squares:
                add({name: part.masked_fill(mean == 0, 0) for name, part in of_squares.items()}, squares)
            if "gate_norm" in names:
                add({"gate_norm": mean}, self._real(self._read("gate")[:, some], some).abs())
        if "contribution_norm" in names:
            sums["contribution_norm"] = sums["output_norm"] * self._norms()
        if "relative_square" in names:
            sums["relative_square"] = sums["relative_square"] * self._norms().square()
        if "residual_norm" in names:
            norm = (self._squared_norm(self._read)[..., 0].sqrt().masked_fill(weights == 0, 0) * weights).sum(1)
            sums["residual_norm"] = norm[:, None].expand(-1, self._values.shape[-1])
        return {name: sums[name] for name in names}

    def _of_mean(self) -> Tensor:
        """float32 ``[row, token]``: 1 over a row's number of real tokens; 0 for padding."""
        rows, length, _ = self._values.shape
        if (real := self._positions.real) is None:
            return torch.full((rows, length), 1 / length, device=self._values.device)
        return real / real.sum(1, keepdim=True)

    def _real(self, values: Tensor, some: slice) -> Tensor:
        """float32, 0 for padding, which may hold anything."""
        real = self._positions.real
        return values.float() if real is None else values.float().masked_fill(~real[:, some, None], 0)


class MeasuringMlps(Measuring):
    """Of what MLPs write: one unit a layer."""

    def _each(self, name: str, values: Tensor, read: Read) -> Tensor:
        written = values.float()
        if name == "residual_norm":
            return self._squared_norm(read).sqrt()
        if name == "residual_cosine":
            residual = read("residual").float()
            return torch.cosine_similarity(residual, residual + written, dim=-1)[..., None]
        norm = torch.linalg.vector_norm(written, dim=-1, keepdim=True)
        return norm.square() / self._squared_norm(read) if name == "relative_square" else norm

    def _means(self, names: set[str]) -> dict[str, Tensor]:
        return {name: self._positions.mean(self.of_tokens(name)) for name in names}
