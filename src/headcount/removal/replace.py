"""What the rest of the model gets instead of removed heads: nothing, their mean, or a refitted projection of the others."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from headcount.errors import InputError
from headcount.models.batching import Progress, no_progress
from headcount.models.observe import attention_modules, mlps_of, units_of
from headcount.models.projection import output_projection
from headcount.models.state import refuse_out_of_reach
from headcount.moments import Covariance, Mean
from headcount.removal.fitting import NO_TEXTS, Distillation, Fitting
from headcount.removal.head_outputs import head_output_statistics, walk_layers
from headcount.units import KINDS, KindId, UnitSet

#: What removed heads are replaced by.
How = Literal["zero", "mean", "refit"]


@dataclass(frozen=True, kw_only=True)
class Projection:
    """An output projection as it is to be: float32 ``weight`` [hidden, head · head_dim] and ``bias`` [hidden] or None.

    The columns of removed heads are 0.
    """

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """New output projections, by layer, for a set of removed heads; or new last maps of MLPs, for removed neurons.

    Attributes:
        removed: the heads or neurons that the projections do without.
        how: ``zero``, ``mean`` or ``refit``.
        projections: for each layer that loses heads.
        fitting: what they were found on.
        distillation: how they were trained on from there; None where they were not.
        kind: of the units: ``head`` or ``neuron``.
    """

    removed: UnitSet
    how: How
    projections: dict[int, Projection]
    fitting: Fitting
    distillation: Distillation | None = None
    kind: KindId = "head"

    @contextmanager
    def applied(self, model: PreTrainedModel) -> Iterator[None]:
        """Inside, the model does without the removed units: the masked model. Afterwards it is as it was."""
        if KINDS[self.kind].site == "mlp":
            writing = {layer: mlp.down for layer, mlp in mlps_of(model).items()}
        else:
            writing = {layer: output_projection(module) for layer, module in attention_modules(model).items()}
        changed = {layer: writing[layer] for layer in self.projections}
        with parameters_restored(list(changed.values())):
            for layer, projection in changed.items():
                put_projection(projection, self.projections[layer])
            yield


def replace_heads(
    model: PreTrainedModel, removed: UnitSet, how: How, fitting: Fitting = NO_TEXTS, *, progress: Progress = no_progress
) -> Replacement:
    """Output projections that do without ``removed``.

    ``zero`` drops the heads' part. ``mean`` puts each head's mean output through its part of the projection and adds the
    result to the bias. ``refit`` also refits the part of the heads that stay: layer after layer, with earlier layers
    already changed, ridge regression of what the layer's projection put out on the centred outputs of the heads that
    stay, in closed form from the streaming covariance of the head outputs. Means and covariances are over the tokens that
    count.

    Args:
        model: is left as it was.
        removed: query heads.
        how: ``zero``, ``mean`` or ``refit``.
        fitting: the texts, for ``mean`` and ``refit``.
        progress: called with (texts done, in all), each once a layer for ``refit``.

    Raises:
        InputError: heads that the model lacks, no calibration texts, or an unknown ``how``.
    """
    refuse_out_of_reach(model)
    if how not in ("zero", "mean", "refit"):
        raise InputError(f"Heads are replaced by 'zero', 'mean' or 'refit', not {how!r}.")
    if how != "zero" and not fitting.texts:
        raise InputError(f"Replacing heads by {how} needs calibration texts of two tokens or more. Give some.")
    removed.check(units_of(model))
    masks = removed_inputs(model, removed)
    modules = {layer: output_projection(module) for layer, module in attention_modules(model).items() if layer in masks}
    projections: dict[int, Projection] = {}
    if how == "refit":
        with parameters_restored([*modules.values()]):
            for layer, found in walk_layers(model, fitting, masks, progress=progress):
                projections[layer] = _refitted(modules[layer], masks[layer], found, fitting.ridge)
                put_projection(modules[layer], projections[layer])
    elif how == "mean":
        means = head_output_statistics(model, fitting, Mean, layers=masks, progress=progress)
        projections = {layer: without_inputs(modules[layer], gone, means[layer].mean) for layer, gone in masks.items()}
    else:
        projections = {layer: without_inputs(modules[layer], gone) for layer, gone in masks.items()}
    return Replacement(removed=removed, how=how, projections=projections, fitting=fitting)


def removed_inputs(model: PreTrainedModel, removed: UnitSet) -> dict[int, Tensor]:
    """For each layer that loses heads, in order: bool ``[head · head_dim]``, True for inputs of removed heads."""
    masks = {}
    for layer in units_of(model).heads:
        going = [head for of_layer, head in removed if of_layer == layer.index]
        if going:
            mask = torch.zeros(layer.num_attention_heads, layer.head_dim, dtype=torch.bool)
            mask[going] = True
            masks[layer.index] = mask.flatten()
    return masks


@contextmanager
def parameters_restored(projections: Sequence[nn.Module]) -> Iterator[None]:
    """On exit the projections have the weights and biases that they had on entry, the same tensors."""
    before: list[tuple[Any, Any, Any]] = [
        (projection, projection.weight, getattr(projection, "bias", None)) for projection in projections
    ]
    try:
        yield
    finally:
        for projection, weight, bias in before:
            projection.weight = weight
            projection.bias = bias


def read_projection(projection: nn.Module) -> tuple[Tensor, Tensor | None]:
    """A projection's weight ``[output, input]`` and bias in float32, on the CPU."""
    weight, bias = projection.weight, getattr(projection, "bias", None)
    assert isinstance(weight, Tensor)
    weight = weight.detach().T if isinstance(projection, Conv1D) else weight.detach()
    return weight.float().cpu(), None if bias is None else bias.detach().float().cpu()


def put_projection(projection: nn.Module, new: Projection) -> None:
    """Give a projection new parameters, in its own dtype and place; the old tensors are left as they are."""
    old = projection.weight
    assert isinstance(old, Tensor)
    weight = new.weight.T.contiguous() if isinstance(projection, Conv1D) else new.weight
    projection.weight = nn.Parameter(weight.to(old.device, old.dtype), requires_grad=False)
    if new.bias is not None:
        projection.bias = nn.Parameter(new.bias.to(old.device, old.dtype), requires_grad=False)


def without_inputs(projection: nn.Module, gone: Tensor, mean: Tensor | None = None) -> Projection:
    """Without the inputs that are ``gone``, and with what their ``mean`` [input] gives in the bias, if there is one."""
    weight, bias = read_projection(projection)
    if mean is not None:
        bias = _added(weight[:, gone].double() @ mean.cpu()[gone], bias)
    return Projection(weight=weight.masked_fill(gone, 0), bias=bias)


def _refitted(projection: nn.Module, gone: Tensor, found: Covariance, ridge: float) -> Projection:
    """The W' and b' that minimise E‖W' x_kept + b' − (W x + b)‖² + ridge · (mean variance) · ‖W' − W_kept‖²."""
    (weight, bias), mean, covariance = read_projection(projection), found.mean.cpu(), found.covariance.cpu()
    if not bool(torch.isfinite(covariance).all()):
        raise InputError(
            "The head outputs on the calibration texts are not finite. Load the model in float32 or bfloat16."
        )
    kept = ~gone
    exact = weight.double()
    fitted = torch.zeros_like(exact)
    if bool(kept.any()):
        among_kept = covariance[kept][:, kept]
        among_kept = among_kept + ridge * covariance.diagonal().mean() * torch.eye(int(kept.sum()), dtype=torch.float64)
        # The ridge draws towards the weights as they are: what the kept heads do needs no evidence to stay.
        change = torch.linalg.solve(among_kept, covariance[kept][:, gone] @ exact[:, gone].T)
        fitted[:, kept] = exact[:, kept] + change.T
    return Projection(weight=fitted.float(), bias=_added((exact - fitted) @ mean, bias))


def _added(constant: Tensor, bias: Tensor | None) -> Tensor:
    return constant.float() if bias is None else (bias + constant).float()
