"""How much the loss would change without a head: first-order scores from one backward pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from headcount.errors import InputError, ModelError
from headcount.models.batching import Progress, no_progress, pad, run_in_batches
from headcount.models.decoder import forward_replaced
from headcount.models.observe import attention_modules, units_of
from headcount.models.projection import output_projection
from headcount.models.state import input_device, refuse_out_of_reach
from headcount.removal.moments import Mean, Moments, head_output_statistics
from headcount.removal.replace import How
from headcount.removal.selection import Unit
from headcount.removal.units import heads_of_unit, num_units
from headcount.units import UnitSet


def taylor_scores(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    *,
    how: How = "mean",
    unit: Unit = "query",
    removed: UnitSet | None = None,
    ridge: float = 0.01,
    batch_tokens: int = 2048,
    progress: Progress = no_progress,
) -> xr.DataArray:
    """For each text and unit, the mean over tokens of the squared first-order change of the loss, nats².

    A token's change is ``g · (r − o)``, summed over the heads of the unit before it is squared: ``o`` is the head's output
    as it enters the output projection, ``g`` the gradient there of the text's summed next-token loss, and ``r`` what
    replaces it: 0, the head's mean output over all texts, or its best linear prediction by the layer's other heads, with
    which a refit of the output projection replaces it. Every token but the first of each text counts.

    Memory is that of one layer's backward pass: decoder layers are recomputed one at a time (gradient checkpointing),
    and nothing is kept for weights. ``refit`` also holds the covariance of every layer's head outputs, one pass before.

    Args:
        model: in float32 or bfloat16, of plain weights; is left as it was.
        rows: token ids of each text, two or more.
        how: ``zero``, ``mean`` or ``refit``.
        unit: ``query`` heads, key-value ``group`` or ``layer``.
        removed: heads that are out already; they predict nothing, and units of them alone are NaN.
        ridge: of the prediction, in units of the mean variance of the heads that are in.
        batch_tokens: tokens in a batch, padding included.
        progress: called with (texts done, texts in all).

    Returns:
        float32, dims (example, layer, unit), NaN where a layer has fewer units.

    Raises:
        InputError: no texts, or one of a single token.
        ModelError: a model whose gradients cannot be had, or are not finite.
    """
    refuse_without_gradients(model)
    if not rows or min(map(len, rows)) < 2:
        raise InputError("Gradients need texts of two tokens or more, to predict one from the others. Give some.")
    geometry = units_of(model)
    modules = attention_modules(model)
    removed = removed or UnitSet()
    means: dict[int, Tensor] = {}
    residuals: dict[int, Tensor] = {}
    if how == "mean":
        means = {
            layer: of.mean.float()
            for layer, of in head_output_statistics(model, rows, Mean, batch_tokens=batch_tokens).items()
        }
    elif how == "refit":
        for layer, moments in head_output_statistics(model, rows, Moments, batch_tokens=batch_tokens).items():
            means[layer] = moments.mean.float()
            of_layer = next(heads for heads in geometry.layers if heads.index == layer)
            units = [heads_of_unit(of_layer, unit, number) for number in range(num_units(of_layer, unit))]
            staying = [head for head in range(of_layer.num_attention_heads) if (layer, head) not in removed]
            residuals[layer] = unpredicted(moments.covariance, units, staying, of_layer.head_dim, ridge)
    widest = max(num_units(layer, unit) for layer in geometry.layers)
    scores = np.full((len(rows), len(geometry.layers), widest), np.nan, np.float32)
    device = input_device(model)
    embed = model.get_input_embeddings()
    current: list[tuple[list[int], Tensor]] = []

    def watch(place: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        layer = geometry.layers[place]

        def forward(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            outputs = args[0]
            if not outputs.requires_grad:
                return  # the pass that checkpointing makes without gradients
            batch, counted = current[0]
            values = outputs.detach()  # a hook that held `outputs` would keep itself and the layer's activations alive

            def backward(gradient: Tensor) -> None:
                lost = values.float()
                if layer.index in means:
                    lost = lost - means[layer.index].to(lost.device)
                if layer.index in residuals:
                    lost = lost @ residuals[layer.index].to(lost.device).T
                of_heads = (gradient.float() * lost).unflatten(-1, (layer.num_attention_heads, -1)).sum(-1)
                of_units = of_heads.unflatten(-1, (num_units(layer, unit), -1)).sum(-1)  # [batch, token, unit]
                real = counted.to(gradient.device)[..., None]
                squared = of_units.square().masked_fill(~real, 0).sum(1) / real.sum(1)
                scores[batch, place, : squared.shape[-1]] = squared.cpu().numpy()

            outputs.register_hook(backward)

        return forward

    def run(batch: list[int]) -> None:
        tokens, mask = pad([rows[i] for i in batch], device)
        real = mask.bool()
        counted = real.clone()
        counted[:, 0] = False
        current[:] = [(batch, counted)]
        embedded = embed(tokens).detach().requires_grad_()
        logits = model(inputs_embeds=embedded, attention_mask=mask, use_cache=False).logits
        targets = tokens[:, 1:].masked_fill(~real[:, 1:], -100).to(logits.device)
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets.flatten(), reduction="sum")
        loss.backward()

    with ExitStack() as stack:
        stack.enter_context(layers_recomputed(model))
        stack.enter_context(parameters_frozen(model))
        stack.enter_context(torch.enable_grad())
        for place, layer in enumerate(geometry.layers):
            handle = output_projection(modules[layer.index]).register_forward_pre_hook(watch(place))
            stack.callback(handle.remove)
        run_in_batches([len(row) for row in rows], batch_tokens, run, progress)
    for place, layer in enumerate(geometry.layers):
        if not np.isfinite(scores[:, place, : num_units(layer, unit)]).all():
            raise ModelError(
                f"Gradients of layer {layer.index} are not finite in {str(model.dtype).removeprefix('torch.')}. Load the model "
                "with --dtype float32."
            )
        for number in range(num_units(layer, unit)):
            if all((layer.index, head) in removed for head in heads_of_unit(layer, unit, number)):
                scores[:, place, number] = np.nan
    return xr.DataArray(
        scores, dims=("example", "layer", "unit"), coords={"layer": geometry.layer_indices}, name="taylor"
    )


def unpredicted(
    covariance: Tensor, units: Sequence[Sequence[int]], staying: Sequence[int], head_dim: int, ridge: float
) -> Tensor:
    """The matrix that takes centred head outputs to what of each unit the layer's other staying heads do not predict.

    Args:
        covariance: float64 ``[head · head_dim, head · head_dim]``.
        units: the heads of each unit.
        staying: heads that are in; the others give rows and columns of 0.
        head_dim: size of a head's output.
        ridge: added to the diagonal of the predictors' covariance, in units of the mean variance of the staying heads.

    Returns:
        float32, of the covariance's shape.
    """
    features = torch.zeros(len(covariance) // head_dim, head_dim, dtype=torch.bool)
    features[list(staying)] = True
    into = features.flatten().nonzero()[:, 0]
    result = torch.zeros_like(covariance, device="cpu")
    if not len(into):
        return result.float()
    among = covariance.cpu()[into][:, into]
    precision = torch.linalg.inv(among + ridge * among.diagonal().mean() * torch.eye(len(into), dtype=torch.float64))
    for heads in units:
        own = torch.isin(into // head_dim, torch.tensor(heads))
        # Of a block inverse: x_u − C_ur (C_rr + λ)⁻¹ x_r = P_uu⁻¹ P_u: x, with P = (C + λ)⁻¹.
        rows = torch.linalg.solve(precision[own][:, own], precision[own])
        result[into[own][:, None], into[None, :]] = rows
    return result.float()


def refuse_without_gradients(model: PreTrainedModel) -> None:
    """Raise ModelError, saying what is needed, where gradients cannot be computed well."""
    refuse_out_of_reach(model)
    quantised = getattr(model, "hf_quantizer", None) is not None or getattr(model, "is_quantized", False)
    if quantised or not all(parameter.is_floating_point() for parameter in model.parameters()):
        raise ModelError(
            f"{type(model).__name__} is quantised, and gradients through its weights cannot be relied on. Load the original "
            "checkpoint in float32 or bfloat16, or choose heads by a score that needs no gradient (--score ahon_ln)."
        )
    if model.dtype == torch.float16:
        raise ModelError(
            "Gradients in float16 overflow and vanish. Load the model with --dtype float32 or bfloat16, or choose heads by a "
            "score that needs no gradient (--score ahon_ln)."
        )


@contextmanager
def parameters_frozen(model: PreTrainedModel) -> Iterator[None]:
    """Inside, no parameter that the model has gathers gradients."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


@contextmanager
def layers_recomputed(model: PreTrainedModel) -> Iterator[None]:
    """Inside, decoder layers keep their input alone and are run again for the backward pass, one at a time.

    transformers' own switch for this works in training mode only, where some layers drop out.
    """
    layers: list[Any] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(forward_replaced(layer, _recomputed(layer.forward)))
        yield


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(partial(forward, **kwargs), *args, use_reentrant=True)

    return run
