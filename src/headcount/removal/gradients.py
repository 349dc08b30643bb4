"""How much the loss would change without a head: first-order scores from one backward pass."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from transformers import PreTrainedModel

from headcount.errors import InputError
from headcount.models.batching import Progress, no_progress, run_in_batches
from headcount.models.gradients import layers_recomputed, not_finite, parameters_frozen, refuse_without_gradients
from headcount.models.observe import attention_modules, units_of
from headcount.models.projection import output_projection
from headcount.models.reading import batch_of
from headcount.models.state import refuse_out_of_reach
from headcount.moments import Covariance, Mean
from headcount.removal.fitting import Fitting
from headcount.removal.head_outputs import head_output_statistics
from headcount.removal.replace import How
from headcount.units import KindId, LayerUnits, UnitSet


def taylor_scores(
    model: PreTrainedModel,
    fitting: Fitting,
    *,
    how: How = "mean",
    kind: KindId = "head",
    removed: UnitSet | None = None,
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
        fitting: the texts, of two tokens or more each.
        how: ``zero``, ``mean`` or ``refit``.
        kind: of unit.
        removed: heads that are out already; they predict nothing, and units of them alone are NaN.
        progress: called with (texts done, texts in all).

    Returns:
        float32, dims (example, layer, unit), NaN where a layer has fewer units.

    Raises:
        InputError: no texts, or one of a single token.
        ModelError: a model whose gradients cannot be had, or are not finite.
    """
    refuse_out_of_reach(model)
    refuse_without_gradients(model, "choose heads by a score that needs no gradient (--score ahon_ln)")
    rows = fitting.rows
    if not rows or min(map(len, rows)) < 2:
        raise InputError("Gradients need texts of two tokens or more, to predict one from the others. Give some.")
    units, modules, removed = units_of(model), attention_modules(model), removed or UnitSet()
    members = [layer.members(kind) for layer in units.layers]
    lost = _lost_parts(model, fitting, how, kind, removed)
    scores = np.full((len(rows), len(members), max(map(len, members))), np.nan, np.float32)
    embed = model.get_input_embeddings()
    current: list[tuple[list[int], Tensor]] = []  # the batch that is read: its texts, and which tokens count

    def run(batch: list[int]) -> None:
        tokens, mask, counted = batch_of(model, [rows[i] for i in batch])
        current[:] = [(batch, counted)]
        embedded = embed(tokens).detach().requires_grad_()
        logits = model(inputs_embeds=embedded, attention_mask=mask, use_cache=False).logits
        targets = tokens[:, 1:].masked_fill(mask[:, 1:] == 0, -100).to(logits.device)
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets.flatten(), reduction="sum")
        loss.backward()

    with ExitStack() as stack:
        stack.enter_context(layers_recomputed(model))
        stack.enter_context(parameters_frozen(model))
        stack.enter_context(torch.enable_grad())
        for place, layer in enumerate(units.heads):
            watch = _watching(layer, len(members[place]), lost[layer.index], current, scores[:, place])
            stack.callback(output_projection(modules[layer.index]).register_forward_pre_hook(watch).remove)
        run_in_batches([len(row) for row in rows], fitting.batch_tokens, run, progress)
    for place, layer in enumerate(units.layers):
        if not np.isfinite(scores[:, place, : len(members[place])]).all():
            raise not_finite(model, layer.index)
        for unit, heads in enumerate(members[place]):
            if all((layer.index, head) in removed for head in heads):
                scores[:, place, unit] = np.nan
    return xr.DataArray(scores, dims=("example", "layer", "unit"), coords={"layer": units.layer_indices}, name="taylor")


@dataclass(frozen=True, kw_only=True)
class _LostPart:
    """What of a layer's head outputs is lost with each unit."""

    mean: Tensor | None = None  # float32 [head · head_dim], stays
    unpredicted: Tensor | None = None  # of what is left, the matrix to what other heads do not predict

    def of(self, outputs: Tensor) -> Tensor:
        lost = outputs.float()
        if self.mean is not None:
            lost = lost - self.mean.to(lost.device)
        if self.unpredicted is not None:
            lost = lost @ self.unpredicted.to(lost.device).T
        return lost


def _lost_parts(
    model: PreTrainedModel, fitting: Fitting, how: How, kind: KindId, removed: UnitSet
) -> dict[int, _LostPart]:
    units = units_of(model)
    if how == "zero":
        return dict.fromkeys(units.layer_indices, _LostPart())
    if how == "mean":
        means = head_output_statistics(model, fitting, Mean)
        return {layer: _LostPart(mean=of_layer.mean.float()) for layer, of_layer in means.items()}
    found = {}
    statistics = head_output_statistics(model, fitting, Covariance)
    for layer in units.heads:
        of_layer = statistics[layer.index]
        staying = [head for head in range(layer.num_attention_heads) if (layer.index, head) not in removed]
        matrix = unpredicted(of_layer.covariance, layer.members(kind), staying, layer.head_dim, fitting.ridge)
        found[layer.index] = _LostPart(mean=of_layer.mean.float(), unpredicted=matrix)
    return found


def _watching(
    layer: LayerUnits, num_units: int, lost: _LostPart, current: list[tuple[list[int], Tensor]], scores: np.ndarray
) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """A hook of the layer's output projection that writes ``scores [text, unit]`` once gradients reach it."""

    def forward(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        outputs = args[0]
        if not outputs.requires_grad:
            return  # the pass that checkpointing makes without gradients
        batch, counted = current[0]
        values = outputs.detach()  # a hook that held `outputs` would keep itself and the layer's activations alive

        def backward(gradient: Tensor) -> None:
            of_heads = (gradient.float() * lost.of(values)).unflatten(-1, (layer.num_attention_heads, -1)).sum(-1)
            of_units = of_heads.unflatten(-1, (num_units, -1)).sum(-1)  # [batch, token, unit]
            real = counted.to(gradient.device)[..., None]
            squared = of_units.square().masked_fill(~real, 0).sum(1) / real.sum(1)
            scores[batch, :num_units] = squared.cpu().numpy()

        outputs.register_hook(backward)

    return forward


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
