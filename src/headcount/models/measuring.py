"""Measure one layer of a running model: what its heads did, in the form that scores and policies read."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from headcount.attention.attend import attend
from headcount.attention.inputs import AttentionInputs, Positions
from headcount.attention.measurements import RAW_TENSORS, LayerMeasurements
from headcount.heads import HeadGeometry
from headcount.models.projection import head_slices, output_projection, projection_factor, projection_response
from headcount.models.remembered import Stamp, weights
from headcount.scores import Score


class LayerMeter:
    """Attends and measures, layer by layer; keeps each layer's factored output projection as long as it is the same."""

    def __init__(self, geometry: HeadGeometry) -> None:
        self.places = {index: place for place, index in enumerate(geometry.layer_indices)}
        self._factors: dict[int, tuple[Stamp, Tensor, Tensor]] = {}

    def measure(
        self, module: nn.Module, layer: int, inputs: AttentionInputs, positions: Positions, needs: frozenset[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The layer's output ``[batch, head, query, head_dim]`` and the measurements ``needs`` names, ``uniform`` excepted."""
        needs = needs - {"uniform"}
        output, measured = attend(
            inputs,
            positions,
            needs=needs - RAW_TENSORS,
            projection_factor=lambda: self._factor(module, layer, inputs),
        )
        if needs & RAW_TENSORS:
            measured |= _raw_tensors(needs, module, inputs, positions, output)
        return output, measured

    def _factor(self, module: nn.Module, layer: int, inputs: AttentionInputs) -> Tensor:
        projection, heads, head_dim = output_projection(module), inputs.query.shape[1], inputs.value.shape[-1]
        now, response = weights(projection), projection_response(projection, heads * head_dim, like=inputs.value)
        known = self._factors.get(layer)
        if known is None or known[0] != now or not torch.equal(known[1], response):
            factor = projection_factor(projection, heads, head_dim, like=inputs.value)
            known = self._factors[layer] = now, response, factor
        return known[2]


def _raw_tensors(
    needs: frozenset[str], module: nn.Module, inputs: AttentionInputs, positions: Positions, output: Tensor
) -> dict[str, Tensor]:
    batch, heads, length = inputs.query.shape[:3]
    raw = {
        "query": inputs.query,
        "key": inputs.key[:, :, :length],
        "value": inputs.value[:, :, :length],
        "output": output,
        "real": positions.real
        if positions.real is not None
        else torch.ones(batch, length, dtype=torch.bool, device=output.device),
    }
    if "o_proj" in needs:
        raw["o_proj"] = head_slices(output_projection(module), heads, output.shape[-1], like=inputs.value)
    return {name: tensor for name, tensor in raw.items() if name in needs or name == "real"}


def declared(measured: dict[str, Tensor], needs: frozenset[str], uniform: Tensor | None = None) -> LayerMeasurements:
    """The measurements that ``needs`` names and no others; ``uniform`` [batch, head] if it is among them."""
    wanted = needs | {"real"} if needs & RAW_TENSORS else needs  # token_mean reads `real`
    found = {name: tensor for name, tensor in measured.items() if name in wanted}
    if "uniform" in needs:
        assert uniform is not None
        found["uniform"] = uniform.to(next(iter(measured.values())).device if measured else None)
    return LayerMeasurements(**found)


def needs_of(scores: Iterable[Score]) -> frozenset[str]:
    """All measurements that some scores read."""
    return frozenset().union(*(score.needs for score in scores))
