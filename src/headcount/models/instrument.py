"""Measure and intervene while a model runs: register an attention function, switch to it, restore the model."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function, sdpa_mask

from headcount.attention.attend import attend
from headcount.attention.inputs import AttentionInputs, Positions
from headcount.attention.measurements import RAW_TENSORS, LayerMeasurements
from headcount.errors import InputError, ModelError
from headcount.heads import HeadGeometry, LayerHeads
from headcount.interventions import Fixed, Policy
from headcount.models.attention_function import read_call
from headcount.models.batching import input_device
from headcount.models.context import ForwardContext
from headcount.models.projection import head_slices, output_projection, projection_factor
from headcount.scores import Score, select_scores

_counter = itertools.count()
_geometries: "WeakKeyDictionary[PreTrainedModel, HeadGeometry]" = WeakKeyDictionary()

LayerFunction = Callable[[nn.Module, int, AttentionInputs, ForwardContext], Tensor]


class Probe:
    """What was seen and done while a model ran under ``instrument``, example by example in the order of the calls.

    Decoding steps (calls that continue a cache) are not recorded: they keep what was decided for their prompt.
    """

    def __init__(self, geometry: HeadGeometry, scores: list[Score]) -> None:
        self.geometry = geometry
        self._score_ids = [score.id for score in scores]
        self._scores: list[np.ndarray] = []  # [score, example, layer, head] a forward pass
        self._zeroed: list[np.ndarray] = []  # [example, layer, head]
        self._num_tokens: list[np.ndarray] = []

    @property
    def scores(self) -> xr.Dataset:
        """One float32 variable per score id, dims (example, layer, head): what each layer saw, zeroing before it included.

        NaN where a layer has fewer heads than the widest, or where a score is not defined.
        """
        shape = (len(self._score_ids), 0, *self._coordinates_shape)
        values = np.concatenate(self._scores or [np.zeros(shape, np.float32)], axis=1)
        return xr.Dataset(
            {id: (("example", "layer", "head"), values[i]) for i, id in enumerate(self._score_ids)},
            coords=self._coordinates,
        )

    @property
    def zeroed(self) -> xr.DataArray:
        """bool, dims (example, layer, head): the heads whose output was set to 0."""
        values = np.concatenate(self._zeroed or [np.zeros((0, *self._coordinates_shape), bool)])
        return xr.DataArray(values, dims=("example", "layer", "head"), coords=self._coordinates, name="zeroed")

    @property
    def share_zeroed(self) -> np.ndarray:
        """float64 [example]: heads zeroed over heads of the model."""
        return self.zeroed.values.sum((1, 2)) / self.geometry.num_heads

    def clear(self) -> None:
        """Forget the examples seen so far."""
        self._scores.clear()
        self._zeroed.clear()
        self._num_tokens.clear()

    @property
    def _coordinates_shape(self) -> tuple[int, int]:
        return len(self.geometry.layers), self.geometry.max_attention_heads

    @property
    def _coordinates(self) -> dict[str, Any]:
        heads = self._coordinates_shape[1]
        num_tokens = np.concatenate(self._num_tokens or [np.zeros(0, np.int64)])
        return {"layer": self.geometry.layer_indices, "head": np.arange(heads), "num_tokens": ("example", num_tokens)}


def head_geometry(model: PreTrainedModel) -> HeadGeometry:
    """Layers and heads of a model, as its attention layers call the attention function on four tokens.

    Raises:
        ModelError: the model's attention does not go through transformers' attention interface.
    """
    if model not in _geometries:
        _geometries[model] = HeadGeometry(layers=tuple(layer for _, layer in _observe(model)))
    return _geometries[model]


def attention_modules(model: PreTrainedModel) -> dict[int, nn.Module]:
    """The attention module of each attention layer, by layer index; found as ``head_geometry`` finds its heads."""
    return {layer.index: module for module, layer in _observe(model)}


def _observe(model: PreTrainedModel) -> list[tuple[nn.Module, LayerHeads]]:
    """Every attention module with its heads, in the order in which four tokens call them."""
    found: list[tuple[nn.Module, LayerHeads]] = []

    def record(module: nn.Module, layer: int, inputs: AttentionInputs, context: ForwardContext) -> Tensor:
        heads = LayerHeads(
            index=layer,
            num_attention_heads=inputs.query.shape[1],
            num_key_value_heads=inputs.key.shape[1],
            head_dim=inputs.value.shape[-1],
        )
        found.append((module, heads))
        return attend(inputs, context.positions)[0]

    with _attention_replaced(model, record), torch.no_grad():
        model(input_ids=torch.arange(1, 5, device=input_device(model))[None], use_cache=False)
    if len({layer.index for _, layer in found}) < len(found):
        raise ModelError(
            f"{type(model).__name__} calls one attention layer more than once a pass, which is not supported."
        )
    return found


@contextmanager
def instrument(
    model: PreTrainedModel,
    *,
    policy: Policy | None = None,
    scores: str | Iterable[str] = (),
    seed: int = 0,
) -> Iterator[Probe]:
    """Measure scores and zero heads in every forward pass of ``model`` inside the ``with`` block.

    Each layer measures what it sees, the policy decides per example, and the outputs of inactive heads are set to 0
    before they are concatenated and projected: the same as zeroing the matching columns of ``o_proj``'s input. Real
    tokens are those of the 2-D ``attention_mask`` given to the model (all, if none is given). On exit the model is
    as it was.

    In generation the heads are decided on the prompt and stay so for the answer.

    Args:
        model: any transformers causal language model whose attention goes through the attention interface.
        policy: which heads to zero; None zeroes nothing.
        scores: ids to record, or ``"all"``.
        seed: of the ``random`` score.

    Yields:
        The Probe that records.

    Raises:
        ModelError: the model cannot be measured (named, with the reason).
        InputError: unknown score, or a policy that names heads or layers the model lacks.
    """
    chosen = select_scores(scores) if scores else []
    geometry = head_geometry(model)
    if policy is not None:
        _check_policy(policy, geometry)
    recorder = _Recorder(geometry, policy, chosen, seed)
    with _attention_replaced(model, recorder.layer, finish=recorder.finish):
        yield recorder.probe


def _check_policy(policy: Policy, geometry: HeadGeometry) -> None:
    if missing := policy.exclude_layers - set(geometry.layer_indices):
        known = geometry.layer_indices
        raise InputError(
            f"exclude_layers names layer {min(missing)}; the model's attention layers are {known[0]}…{known[-1]}."
        )
    if isinstance(policy, Fixed):
        policy.heads.check(geometry)


class _Recorder:
    """The attention of every layer of one instrumented model, and what it gathers for the probe."""

    def __init__(self, geometry: HeadGeometry, policy: Policy | None, scores: list[Score], seed: int) -> None:
        self.probe = Probe(geometry, scores)
        self._geometry, self._policy, self._scores, self._seed = geometry, policy, scores, seed
        self._places = {index: place for place, index in enumerate(geometry.layer_indices)}
        self._score_needs = frozenset().union(*(score.needs for score in scores))
        self._factors: dict[int, Tensor] = {}
        self._seen: dict[int, tuple[list[Tensor], Tensor | None]] = {}  # layer → its scores and zeroed heads
        self._held: dict[int, Tensor | None] = {}  # layer → heads zeroed on the prompt, for decoding steps

    def layer(self, module: nn.Module, layer: int, inputs: AttentionInputs, context: ForwardContext) -> Tensor:
        """Attend, measure, decide, zero. Returns the output ``[batch, head, query, head_dim]``."""
        if context.continues:
            output, _ = attend(inputs, context.positions)
            return _zero(output, self._decided_on_prompt(layer, context.batch))
        policy = self._policy if self._policy and layer not in self._policy.exclude_layers else None
        policy_needs = policy.needs if policy else frozenset()
        positions = context.positions.to(inputs.query.device)
        needs = (self._score_needs | policy_needs) - {"uniform"}
        output, measured = attend(
            inputs,
            positions,
            needs=needs - RAW_TENSORS,
            projection_factor=lambda: self._factor(module, layer, inputs),
        )
        if needs & RAW_TENSORS:
            measured |= self._raw_tensors(needs, module, inputs, positions, output)
        scores = [self._score(score, measured, layer, output, context) for score in self._scores]
        zeroed = None
        if policy is not None:
            seed = self._seed if policy.seed is None else policy.seed
            seen = self._measurements(measured, policy_needs, seed, layer, context)
            zeroed = policy.decide(layer, seen, (output.shape[0], output.shape[1]), output.device)
        self._seen[layer] = scores, zeroed
        return _zero(output, zeroed)

    def finish(self, context: ForwardContext) -> None:
        """Hand a completed forward pass to the probe."""
        seen, self._seen = self._seen, {}
        if context.continues or not seen:
            return
        self._held = {layer: zeroed for layer, (_, zeroed) in seen.items()}
        layers, heads = len(self._places), self._geometry.max_attention_heads
        scores = np.full((len(self._scores), context.batch, layers, heads), np.nan, np.float32)
        zeroed = np.zeros((context.batch, layers, heads), bool)
        for layer, (values, off) in seen.items():
            place = self._places[layer]
            if values:
                stacked = torch.stack(values).float().cpu().numpy()  # [score, batch, head]
                scores[:, :, place, : stacked.shape[-1]] = stacked
            if off is not None:
                zeroed[:, place, : off.shape[-1]] = off.cpu().numpy()
        real = context.positions.real
        length = int(context.positions.last[0]) + 1
        num_tokens = np.full(context.batch, length) if real is None else real.sum(1).cpu().numpy()
        self.probe._scores.append(scores)
        self.probe._zeroed.append(zeroed)
        self.probe._num_tokens.append(num_tokens)

    def _score(
        self, score: Score, measured: dict[str, Tensor], layer: int, output: Tensor, context: ForwardContext
    ) -> Tensor:
        values = score(self._measurements(measured, score.needs, self._seed, layer, context))
        if values.shape != output.shape[:2]:
            raise InputError(
                f"Score {score.id!r} gave shape {tuple(values.shape)}; one number for each example and query head, "
                f"{tuple(output.shape[:2])}, was expected. Average over tokens with m.token_mean(…)."
            )
        return values

    def _raw_tensors(
        self, needs: frozenset[str], module: nn.Module, inputs: AttentionInputs, positions: Positions, output: Tensor
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

    def _measurements(
        self, measured: dict[str, Tensor], needs: frozenset[str], seed: int, layer: int, context: ForwardContext
    ) -> LayerMeasurements:
        wanted = needs | {"real"} if needs & RAW_TENSORS else needs  # token_mean reads `real`
        declared = {name: tensor for name, tensor in measured.items() if name in wanted}
        if "uniform" in needs:
            place = self._places[layer]
            draws = context.uniform(seed, len(self._places), self._geometry.max_attention_heads)
            heads = self._geometry.layers[place].num_attention_heads
            device = next(iter(measured.values())).device if measured else None
            declared["uniform"] = draws[:, place, :heads].to(device)
        return LayerMeasurements(**declared)

    def _factor(self, module: nn.Module, layer: int, inputs: AttentionInputs) -> Tensor:
        if layer not in self._factors:
            heads, head_dim = inputs.query.shape[1], inputs.value.shape[-1]
            self._factors[layer] = projection_factor(output_projection(module), heads, head_dim, like=inputs.value)
        return self._factors[layer]

    def _decided_on_prompt(self, layer: int, batch: int) -> Tensor | None:
        if self._policy is None:
            return None
        zeroed = self._held.get(layer)
        if layer not in self._held or (zeroed is not None and zeroed.shape[0] != batch):
            raise InputError(
                "A pass that continues a cache keeps the heads decided on its prompt, but the prompt did not run in this "
                "`with` block with the same batch. Run prompt and continuation inside one block."
            )
        return zeroed


def _zero(output: Tensor, zeroed: Tensor | None) -> Tensor:
    return output if zeroed is None else output.masked_fill(zeroed.to(output.device)[:, :, None, None], 0)


@contextmanager
def _attention_replaced(
    model: PreTrainedModel, layer_function: LayerFunction, finish: Callable[[ForwardContext], None] = lambda _: None
) -> Iterator[None]:
    """``layer_function`` in the place of every layer's attention; ``finish`` after every forward pass."""
    name = f"headcount_{next(_counter)}"
    current: list[ForwardContext] = []

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        if not current:
            raise ModelError("An attention layer ran outside its model's forward pass. Call the model itself.")
        layer = getattr(module, "layer_idx", None)
        if layer is None:
            raise ModelError(f"{type(module).__name__} does not know its layer's index, so its heads cannot be named.")
        inputs = read_call(module, query, key, value, attention_mask, **kwargs)
        return layer_function(module, int(layer), inputs, current[-1]).transpose(1, 2).contiguous(), None

    def mask(*args: Any, mask_function: Callable[..., Any] = causal_mask_function, **kwargs: Any) -> Tensor | None:
        # Padding on the right is never seen by a real token under a causal mask, so the cheaper causal way serves.
        if (
            current
            and mask_function is causal_mask_function
            and not current[-1].continues
            and current[-1].positions.right_padded
        ):
            kwargs["attention_mask"] = None
        return sdpa_mask(*args, mask_function=mask_function, **kwargs)

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not current:
            current.append(ForwardContext(module, args, kwargs))
            owners.append(module)

    def end(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if owners and owners[-1] is module:
            owners.pop()
            finish_with = current.pop()
            if output is not None:  # None: the pass raised
                finish(finish_with)

    owners: list[nn.Module] = []
    with ExitStack() as stack:
        AttentionInterface.register(name, attention)
        stack.callback(AttentionInterface._global_mapping.pop, name)
        AttentionMaskInterface.register(name, mask)
        stack.callback(AttentionMaskInterface._global_mapping.pop, name)
        # A layer may hold a configuration of its own (models pruned layer by layer), which the switch must reach too.
        found = (getattr(module, "config", None) for module in model.modules())
        configs = {id(config): config for config in found if isinstance(config, PreTrainedConfig)}
        for config in configs.values():
            stack.callback(setattr, config, "_attn_implementation_internal", config._attn_implementation)
        if model._can_set_attn_implementation():
            model.set_attn_implementation(name)
            for config in configs.values():
                config._attn_implementation_internal = name
        if model.config._attn_implementation != name:
            raise ModelError(
                f"{type(model).__name__} computes attention itself instead of calling transformers' attention interface, "
                "which is where headcount measures. Llama, Qwen, OLMo, Mistral, Gemma, Phi, GPT-2, GPT-NeoX and about 150 "
                "other classes work; falcon, bloom, mpt, gptj, codegen, gpt_neo and xglm do not."
            )
        for module in dict.fromkeys((model, model.base_model)):
            stack.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(end, always_call=True).remove)
        yield
