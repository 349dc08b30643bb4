"""The output projection of an attention layer, head by head."""

import torch
from torch import Tensor, nn

from headcount.errors import ModelError

#: Names of the output projection in transformers' attention modules.
_NAMES = ("o_proj", "out_proj", "dense", "c_proj", "wo", "proj", "o", "linear_out")

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
    slices = head_slices(projection, num_heads, head_dim, like=like)
    return torch.linalg.qr(slices, mode="r").R


def projection_response(projection: nn.Module, width: int, *, like: Tensor) -> Tensor:
    """What the projection makes of one fixed vector: another one once its weights, adapters or dtype are others.

    PyTorch does not count changes through ``.data``, which is how adapters are merged.
    """
    vector = torch.linspace(-1, 1, width, dtype=torch.float32).sub(0.3).to(like.device, _dtype(projection, like))[None]
    with torch.no_grad():
        return projection.forward(vector)


def _dtype(projection: nn.Module, like: Tensor) -> torch.dtype:
    """In which the projection computes: its weight's, which is another than the values' under autocast."""
    weight = getattr(projection, "weight", None)
    return weight.dtype if isinstance(weight, Tensor) and weight.dtype in _DTYPES else like.dtype
