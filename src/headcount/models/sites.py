"""The places where a layer writes into the residual stream: what its units give there, and what is measured of them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headcount.attention.attend import attend
from headcount.attention.inputs import AttentionInputs, Positions
from headcount.attention.measurements import RAW_TENSORS
from headcount.models.projection import factors_of, head_slices, output_projection


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Of one layer in one pass: what each of its units hands to the map into the residual stream."""

    layer: int  # index in the model
    values: Tensor  # [row, unit, token, width]
    measured: dict[str, Tensor]  # each [row, unit]; of whole tensors what scores read


class AttentionSite:
    """Attention's output projection: attends and measures, layer by layer."""

    def __init__(self, model: nn.Module) -> None:
        self._factors = factors_of(model)

    def begin(self) -> None:
        """Before passes between which the model's weights may have become others."""
        self._factors.check()

    def outputs(
        self, module: nn.Module, layer: int, inputs: AttentionInputs, positions: Positions, needs: frozenset[str]
    ) -> Outputs:
        """The heads' outputs, with the measurements ``needs`` names, ``uniform`` excepted."""
        needs = needs - {"uniform"}
        output, measured = attend(
            inputs,
            positions,
            needs=needs - RAW_TENSORS,
            projection_factor=lambda: self._factors.of(
                output_projection(module), layer, inputs.query.shape[1], like=inputs.value
            ),
        )
        if needs & RAW_TENSORS:
            measured |= _raw_tensors(needs, module, inputs, positions, output)
        return Outputs(layer=layer, values=output, measured=measured)


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
