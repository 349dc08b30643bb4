"""The output projection of an attention layer, head by head."""

from collections import defaultdict
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from headcount.errors import ModelError
from headcount.models.remembered import Stamp, weights
from headcount.models.state import own_settings

#: Names of the output projection in transformers' attention modules.
_NAMES = ("o_proj", "out_proj", "dense", "c_proj", "wo", "proj", "o", "linear_out")

#: Unit vectors that are projected at a time, where there may be very many.
_UNITS_AT_A_TIME = 2048
#: In which a projection can be given unit vectors; quantised ones have weights in others.
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def output_projection(module: nn.Module) -> nn.Module:
    """The submodule of an attention module that its concatenated head outputs go through (``o_proj``).

    Raises:
        ModelError: none of the known names is there.
    """
    for name in _NAMES:
        if isinstance(found := getattr(module, name, None), nn.Module):
            return found
    raise ModelError(
        f"{type(module).__name__} has no output projection under a known name ({', '.join(_NAMES)}), so the scores that "
        "need it (fhon, fhon_ln) cannot be computed. Leave them out with --score / scores=."
    )


def head_slices(projection: nn.Module, num_heads: int, head_dim: int, *, like: Tensor) -> Tensor:
    """W_h of every head, float32 ``[head, hidden, head_dim]``: the projection applied to the unit vectors.

    Applying it, rather than reading ``weight``, is right for quantised, adapted and offloaded projections too.
    """
    width = num_heads * head_dim
    units = torch.eye(width, dtype=_dtype(projection, like), device=like.device)
    with torch.no_grad():
        zero = projection(torch.zeros_like(units[:1])).float()
        columns = projection(units).float() - zero  # [width, hidden]; the bias is no head's
    return columns.view(num_heads, head_dim, -1).mT


def projection_factor(projection: nn.Module, num_heads: int, head_dim: int, *, like: Tensor) -> Tensor:
    """R ``[head, head_dim, head_dim]``, float32, with ‖R_h o‖ = ‖W_h o‖ for every o.

    W_h = Q_h R_h with orthonormal Q_h, so norms agree, at head_dim / hidden_size of the projection's cost per token.
    """
    if head_dim == 1:
        return _column_norms(projection, num_heads, like)[:, None, None]
    slices = head_slices(projection, num_heads, head_dim, like=like)
    if slices.device.type == "mps":  # which has no QR
        return torch.linalg.qr(slices.cpu(), mode="r").R.to(slices.device)
    return torch.linalg.qr(slices, mode="r").R


def _column_norms(projection: nn.Module, width: int, like: Tensor) -> Tensor:
    """‖W_h‖ of heads of one number each, float32 ``[width]``; some at a time, since of neurons there are many."""
    dtype = _dtype(projection, like)
    with torch.no_grad():
        zero = projection.forward(torch.zeros(1, width, dtype=dtype, device=like.device)).float()
        found = []
        for start in range(0, width, _UNITS_AT_A_TIME):
            units = torch.zeros(min(_UNITS_AT_A_TIME, width - start), width, dtype=dtype, device=like.device)
            units.diagonal(start).fill_(1)
            found.append(torch.linalg.vector_norm(projection.forward(units).float() - zero, dim=-1))
    return torch.cat(found)


@dataclass(frozen=True)
class _Factored:
    """A factor, and the projection as it was: PyTorch does not count changes through ``.data``, by which adapters are merged."""

    projection: nn.Module
    stamp: Stamp
    vector: Tensor  # [1, width]
    response: Tensor  # [1, hidden]
    factor: Tensor  # [head, head_dim, head_dim]


class Factors:
    """The factor of each of a model's output projections, made when it is first needed, for as long as they are the same."""

    def __init__(self) -> None:
        self._known: dict[object, _Factored] = {}

    def check(self) -> None:
        """Forget the factors of projections that have become others. Before a pass, since the host waits for the answer.

        Seen by what a projection makes of a fixed vector: another one once its weights, adapters or dtype are others.
        """
        differ: defaultdict[torch.device, dict[object, Tensor]] = defaultdict(dict)
        for layer, known in [*self._known.items()]:
            if known.stamp != weights(known.projection):
                del self._known[layer]
                continue
            with own_settings(known.vector.device.type):
                now = _responds(known.projection, known.vector)
            if now.shape != known.response.shape or now.dtype != known.response.dtype:
                del self._known[layer]
            else:
                differ[now.device][layer] = (now != known.response).any()
        for of_layers in differ.values():
            for layer, other in zip(of_layers, torch.stack([*of_layers.values()]).cpu().tolist(), strict=True):
                if other:
                    del self._known[layer]

    def of(self, projection: nn.Module, layer: object, num_heads: int, *, like: Tensor) -> Tensor:
        """``projection_factor`` of a layer's projection, as it was at the last ``check``; ``like`` is a value of its heads."""
        known = self._known.get(layer)
        if (
            known is None
            or known.projection is not projection
            or known.factor.device != like.device
            or known.stamp != weights(projection)
        ):
            with torch.inference_mode(False):  # it outlives the block, and gradients may flow in the next one
                numbers = torch.linspace(-1, 1, num_heads * like.shape[-1], dtype=torch.float32).sub(0.3)[None]
                vector = numbers.to(like.device, _dtype(projection, like))
                factor = projection_factor(projection, num_heads, like.shape[-1], like=like)
                response = _responds(projection, vector)
            known = self._known[layer] = _Factored(projection, weights(projection), vector, response, factor)
        return known.factor


_factors: "WeakKeyDictionary[nn.Module, Factors]" = WeakKeyDictionary()


def factors_of(model: nn.Module) -> Factors:
    """A model's, kept for as long as the model is."""
    return _factors.setdefault(model, Factors())


def _responds(projection: nn.Module, vector: Tensor) -> Tensor:
    with torch.no_grad():
        return projection.forward(vector)


def _dtype(projection: nn.Module, like: Tensor) -> torch.dtype:
    """In which the projection computes: its weight's, which is another than the values' under autocast."""
    weight = getattr(projection, "weight", None)
    return weight.dtype if isinstance(weight, Tensor) and weight.dtype in _DTYPES else like.dtype
