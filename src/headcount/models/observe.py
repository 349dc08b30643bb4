"""Which attention layers and heads a model has: seen on four tokens, and seen again once the model has changed."""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from headcount.attention.attend import attend
from headcount.attention.inputs import AttentionInputs
from headcount.errors import ModelError
from headcount.models.context import ForwardContext
from headcount.models.decoder import Decoder, lists_watched
from headcount.models.remembered import Stamp, scalars, structure
from headcount.models.state import evaluating, input_device, measurable
from headcount.models.switch import attention_replaced
from headcount.units import LayerUnits, UnitMap


@dataclass(frozen=True, kw_only=True)
class _Observed:
    units: UnitMap
    decoder: Decoder
    modules: dict[int, nn.Module]  # layer → its attention module
    attributes: list[dict[str, object]]  # of these modules
    stamp: Stamp


_observed: "WeakKeyDictionary[PreTrainedModel, _Observed]" = WeakKeyDictionary()


def units_of(model: PreTrainedModel) -> UnitMap:
    """Layers and heads of a model, as its attention layers call the attention function on four tokens.

    Raises:
        ModelError: the model's attention does not go through transformers' attention interface.
    """
    return _look(model).units


def decoder_of(model: PreTrainedModel) -> Decoder:
    """The model's decoder layers; none where they are not found.

    Raises:
        ModelError: the model's attention does not go through transformers' attention interface.
    """
    return _look(model).decoder


def attention_modules(model: PreTrainedModel) -> dict[int, nn.Module]:
    """The attention module of each attention layer, by layer index; found as ``units_of`` finds its heads."""
    return dict(_look(model).modules)


def _look(model: PreTrainedModel) -> _Observed:
    model = measurable(model)
    known, stamp = _observed.get(model), structure(model)
    if known is None or known.stamp != stamp or known.attributes != [scalars(m) for m in known.modules.values()]:
        with lists_watched(model) as returned:
            found = _observe(model)
        names = {id(module): name for name, module in model.named_modules()}
        modules = {layer.index: module for module, layer in found}
        known = _observed[model] = _Observed(
            units=UnitMap(layers=tuple(layer for _, layer in found)),
            decoder=Decoder(model, {index: names[id(module)] for index, module in modules.items()}, returned),
            modules=modules,
            attributes=[scalars(module) for module in modules.values()],
            stamp=stamp,
        )
    return known


def _observe(model: PreTrainedModel) -> list[tuple[nn.Module, LayerUnits]]:
    """Every attention module with its heads, in the order in which four tokens call them."""
    found: list[tuple[nn.Module, LayerUnits]] = []

    def record(module: nn.Module, layer: int, inputs: AttentionInputs, context: ForwardContext) -> Tensor:
        # A checkpoint pruned unevenly hands over keys and values once for each query head.
        shared = getattr(module, "key_value_index", None)
        heads = LayerUnits(
            index=layer,
            num_attention_heads=inputs.query.shape[1],
            num_key_value_heads=inputs.key.shape[1] if shared is None else len(set(shared)),
            head_dim=inputs.value.shape[-1],
            key_value_index=shared,
        )
        found.append((module, heads))
        return attend(inputs, context.positions)[0]

    with evaluating(model), attention_replaced(model, record), torch.no_grad():
        model(input_ids=torch.arange(1, 5, device=input_device(model))[None], use_cache=False)
    if not found:
        if any(type(module).__module__.startswith("transformer_lens.") for module in model.modules()):
            raise ModelError(
                f"{type(model).__name__} is wrapped by TransformerLens, whose modules in it compute attention themselves. "
                "Measure it before it is wrapped, or load it once more: layers and heads have the same numbers."
            )
        raise ModelError(f"{type(model).__name__} has no attention layers, and so no heads to measure.")
    if len({layer.index for _, layer in found}) < len(found):
        raise ModelError(
            f"{type(model).__name__} calls one attention layer more than once a pass, which is not supported."
        )
    return found
