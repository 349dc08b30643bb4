"""Which heads and MLPs a model has: seen on four tokens, and seen again once the model has changed."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from headcount.attention.attend import attend
from headcount.attention.inputs import AttentionInputs
from headcount.errors import ModelError
from headcount.models.context import ForwardContext
from headcount.models.decoder import Decoder, lists_watched
from headcount.models.mlps import Mlp, find_mlps
from headcount.models.remembered import Stamp, scalars, structure
from headcount.models.state import evaluating, input_device, measurable
from headcount.models.switch import attention_replaced
from headcount.scores import Score, select_scores
from headcount.units import KINDS, KindId, LayerUnits, MlpUnits, UnitMap


@dataclass(kw_only=True)
class _Observed:
    units: UnitMap
    decoder: Decoder
    modules: dict[int, nn.Module]  # layer → its attention module
    attributes: list[dict[str, object]]  # of these modules
    stamp: Stamp
    mlps: tuple[list[dict[str, object]], dict[int, Mlp]] | None = None  # once asked for; with their layers' attributes


_observed: "WeakKeyDictionary[PreTrainedModel, _Observed]" = WeakKeyDictionary()


def units_of(model: PreTrainedModel, kind: KindId = "head") -> UnitMap:
    """A model's units of a kind: its heads, as attention layers call the attention function on four tokens, or its MLPs'.

    Raises:
        ModelError: the model's attention does not go through transformers' attention interface, or its MLPs are not found.
    """
    if KINDS[kind].site == "attention":
        return replace(_look(model).units, kind=kind)
    layers = tuple(MlpUnits(index=i, num_neurons=mlp.num_neurons) for i, mlp in mlps_of(model).items())
    return UnitMap(layers=layers, kind=kind)


def mlps_of(model: PreTrainedModel) -> dict[int, Mlp]:
    """The MLP of each decoder layer, by the layer's place. Raises ModelError as ``find_mlps``, and as ``units_of``."""
    known = _look(model)
    attributes = [scalars(module) for layer in known.decoder.layers for module in layer.modules()]
    if known.mlps is None or known.mlps[0] != attributes:  # a layer may scale what it adds by one
        known.mlps = attributes, find_mlps(measurable(model), known.decoder, {*known.modules.values()})
    return dict(known.mlps[1])


def decoder_of(model: PreTrainedModel) -> Decoder:
    """The model's decoder layers; none where they are not found.

    Raises:
        ModelError: the model's attention does not go through transformers' attention interface.
    """
    return _look(model).decoder


def scores_of(model: PreTrainedModel, scores: str | Iterable[str], kind: KindId = "head") -> list[Score]:
    """As ``select_scores``; ``"all"`` are those that a model's units of the kind have.

    Raises:
        ModelError: a score reads what this model's MLPs do not give.
    """
    chosen = select_scores(scores, kind)
    if KINDS[kind].site == "attention":
        return chosen
    lacks = {name: why for mlp in mlps_of(model).values() for name, why in mlp.lacks.items()}
    if scores == "all":
        return [score for score in chosen if not score.needs & lacks.keys()]
    for score in chosen:
        for name in score.needs & lacks.keys():
            raise ModelError(f"{type(model).__name__} {lacks[name]}, so it has no {score.id}. Leave it out.")
    return chosen


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
