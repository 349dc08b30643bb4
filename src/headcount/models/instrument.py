"""Measure and intervene while a model runs: register an attention function, switch to it, restore the model."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from transformers import PreTrainedModel

from headcount.attention.attend import attend
from headcount.attention.inputs import AttentionInputs, Positions
from headcount.attention.measurements import RAW_TENSORS, extended
from headcount.errors import InputError, ModelError
from headcount.heads import HeadGeometry, LayerHeads
from headcount.interventions import Fixed, Policy
from headcount.models.batching import input_device
from headcount.models.context import ForwardContext
from headcount.models.decoder import Decoder
from headcount.models.measuring import LayerMeter, declared, needs_of, scored
from headcount.models.switch import attention_replaced
from headcount.scores import Score, select_scores

#: When generation decides which heads to zero.
DECIDE = ("prompt", "running", "every-pass")

_seen_models: "WeakKeyDictionary[PreTrainedModel, tuple[HeadGeometry, Decoder]]" = WeakKeyDictionary()


class Probe:
    """What was seen and done while a model ran under ``instrument``, example by example in the order of the calls.

    Decoding steps (calls that continue a cache) are no examples of their own. Where they decide anew
    (``decide="running"``), ``zeroed`` holds the heads that were off on the prompt and at every step since, and
    ``share_zeroed`` the mean over prompt and steps.
    """

    def __init__(self, geometry: HeadGeometry, scores: list[Score]) -> None:
        self.geometry = geometry
        self._score_ids = [score.id for score in scores]
        self._scores: list[np.ndarray] = []  # [score, example, layer, head] a forward pass
        self._zeroed: list[np.ndarray] = []  # [example, layer, head]
        self._num_tokens: list[np.ndarray] = []
        self._shares: list[list[np.ndarray]] = []  # [example] for the prompt and each step that decided anew

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
        return np.concatenate([np.mean(of_pass, axis=0) for of_pass in self._shares] or [np.zeros(0)])

    def clear(self) -> None:
        """Forget the examples seen so far."""
        for seen in (self._scores, self._zeroed, self._num_tokens, self._shares):
            seen.clear()

    def _add(self, scores: np.ndarray, zeroed: np.ndarray, num_tokens: np.ndarray) -> None:
        self._scores.append(scores)
        self._zeroed.append(zeroed)
        self._num_tokens.append(num_tokens)
        self._shares.append([zeroed.sum((1, 2)) / self.geometry.num_heads])

    def _continue(self, zeroed: np.ndarray) -> None:
        self._zeroed[-1] = self._zeroed[-1] & zeroed
        self._shares[-1].append(zeroed.sum((1, 2)) / self.geometry.num_heads)

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
    return _look(model)[0]


def decoder_of(model: PreTrainedModel) -> Decoder:
    """The model's decoder layers; none where they are not found.

    Raises:
        ModelError: the model's attention does not go through transformers' attention interface.
    """
    return _look(model)[1]


def _look(model: PreTrainedModel) -> tuple[HeadGeometry, Decoder]:
    if model not in _seen_models:
        observed = _observe(model)
        names = {id(module): name for name, module in model.named_modules()}
        decoder = Decoder(model, {layer.index: names[id(module)] for module, layer in observed})
        _seen_models[model] = HeadGeometry(layers=tuple(layer for _, layer in observed)), decoder
    return _seen_models[model]


def attention_modules(model: PreTrainedModel) -> dict[int, nn.Module]:
    """The attention module of each attention layer, by layer index; found as ``head_geometry`` finds its heads."""
    return {layer.index: module for module, layer in _observe(model)}


def _observe(model: PreTrainedModel) -> list[tuple[nn.Module, LayerHeads]]:
    """Every attention module with its heads, in the order in which four tokens call them."""
    found: list[tuple[nn.Module, LayerHeads]] = []

    def record(module: nn.Module, layer: int, inputs: AttentionInputs, context: ForwardContext) -> Tensor:
        # A checkpoint pruned unevenly hands over keys and values once for each query head.
        shared = getattr(module, "key_value_index", None)
        heads = LayerHeads(
            index=layer,
            num_attention_heads=inputs.query.shape[1],
            num_key_value_heads=inputs.key.shape[1] if shared is None else len(set(shared)),
            head_dim=inputs.value.shape[-1],
            key_value_index=shared,
        )
        found.append((module, heads))
        return attend(inputs, context.positions)[0]

    with attention_replaced(model, record), torch.no_grad():
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
    decide: str = "prompt",
) -> Iterator[Probe]:
    """Measure scores and zero heads in every forward pass of ``model`` inside the ``with`` block.

    Each layer measures what it sees, the policy decides per example, and the outputs of inactive heads are set to 0
    before they are concatenated and projected: the same as zeroing the matching columns of ``o_proj``'s input. Real
    tokens are those of the 2-D ``attention_mask`` given to the model (all, if none is given). On exit the model is
    as it was.

    Args:
        model: any transformers causal language model whose attention goes through the attention interface.
        policy: which heads to zero; None zeroes nothing.
        scores: ids to record, or ``"all"``.
        seed: of the ``random`` score.
        decide: what happens in passes that continue a cache (generation). ``prompt``: the heads decided on the prompt
            stay so for the answer. ``running``: heads are decided anew in each pass, by measurements averaged over all
            real tokens of the prompt and the answer so far (``last_output_norm`` is that of the newest token; random
            heads stay those of the prompt). ``every-pass``: such passes are refused, so that every pass reads and
            decides on the whole text; generate with ``use_cache=False``.

    Yields:
        The Probe that records.

    Raises:
        ModelError: the model cannot be measured (named, with the reason).
        InputError: unknown score, an unknown way to decide, or a policy that names heads or layers the model lacks.
    """
    chosen = select_scores(scores) if scores else []
    geometry = head_geometry(model)
    if policy is not None:
        check_policy(policy, geometry)
    if decide not in DECIDE:
        raise InputError(f"decide is one of {', '.join(DECIDE)}, not {decide!r}.")
    recorder = _Recorder(geometry, policy, chosen, seed, decide)
    with attention_replaced(model, recorder.layer, finish=recorder.finish):
        yield recorder.probe


def check_policy(policy: Policy, geometry: HeadGeometry) -> None:
    """Raise InputError if a policy names layers or heads that the model lacks."""
    if missing := policy.exclude_layers - set(geometry.layer_indices):
        known = geometry.layer_indices
        raise InputError(
            f"exclude_layers names layer {min(missing)}; the model's attention layers are {known[0]}…{known[-1]}."
        )
    if isinstance(policy, Fixed):
        policy.heads.check(geometry)


class _Recorder:
    """The attention of every layer of one instrumented model, and what it gathers for the probe."""

    def __init__(
        self, geometry: HeadGeometry, policy: Policy | None, scores: list[Score], seed: int, decide: str
    ) -> None:
        self.probe = Probe(geometry, scores)
        self._geometry, self._policy, self._scores, self._seed, self._decide = geometry, policy, scores, seed, decide
        self._meter = LayerMeter(geometry)
        self._score_needs = needs_of(scores)
        # layer → measurements that scores read, scores that read whole tensors, zeroed heads
        self._seen: dict[int, tuple[dict[str, Tensor], dict[str, Tensor], Tensor | None]] = {}
        self._prompt: dict[int, _Decided] = {}  # layer → what was decided on the text whose cache is continued

    def layer(self, module: nn.Module, layer: int, inputs: AttentionInputs, context: ForwardContext) -> Tensor:
        """Attend, measure, decide, zero. Returns the output ``[batch, head, query, head_dim]``."""
        policy = self._policy if self._policy and layer not in self._policy.exclude_layers else None
        if context.continues:
            return self._continue(module, layer, inputs, context, policy)
        policy_needs = policy.needs if policy else frozenset()
        positions = context.positions.to(inputs.query.device)
        output, measured = self._meter.measure(module, layer, inputs, positions, self._score_needs | policy_needs)
        shape = output.shape[:2]
        scores: dict[str, Tensor] = {}
        for score in self._scores:
            if score.needs & RAW_TENSORS:  # now, since the tensors are gone after the layer; the others in `finish`
                uniform = self._uniform(self._seed, layer, context) if "uniform" in score.needs else None
                scores[score.id] = scored(score, declared(measured, score.needs, uniform), shape)
        kept = {name: tensor for name, tensor in measured.items() if name in self._score_needs - RAW_TENSORS}
        if "uniform" in self._score_needs:
            kept["uniform"] = self._uniform(self._seed, layer, context)
        zeroed = None
        if policy is not None:
            uniform = self._uniform(policy.seed, layer, context) if "uniform" in policy_needs else None
            zeroed = policy.decide(
                layer, declared(measured, policy_needs, uniform), (shape[0], shape[1]), output.device
            )
            running = self._decide == "running" and bool(policy_needs - {"uniform"})
            self._prompt[layer] = _Decided(zeroed, positions, measured if running else None)
        self._seen[layer] = kept, scores, zeroed
        return zero_heads(output, zeroed)

    def _continue(
        self, module: nn.Module, layer: int, inputs: AttentionInputs, context: ForwardContext, policy: Policy | None
    ) -> Tensor:
        """A pass that continues a cache: with the heads of its prompt, or decided anew on averages that run on."""
        if self._decide == "every-pass":
            raise InputError("decide='every-pass' reads the whole text in every pass. Generate with use_cache=False.")
        if policy is None:
            return attend(inputs, context.positions)[0]
        decided = self._prompt.get(layer)
        if decided is None or decided.zeroed.shape[0] != context.batch:
            raise InputError(
                "A pass that continues a cache keeps the heads decided on its prompt, but the prompt did not run in this "
                "`with` block with the same batch. Run prompt and continuation inside one block."
            )
        if decided.measured is None:
            return zero_heads(attend(inputs, context.positions)[0], decided.zeroed)
        num_new, num_keys = inputs.query.shape[2], inputs.key.shape[2]
        own = torch.full_like(decided.num_tokens, num_new)
        dropped = max(0, context.num_past + num_new - num_keys)  # a window's cache forgets the oldest tokens
        positions = Positions(real=None, first=(decided.first - dropped).clamp(min=0), last=own - 1)
        inputs = replace(inputs, past=min(context.num_past, num_keys - num_new))
        output, measured = self._meter.measure(module, layer, inputs, positions, policy.needs)
        if "first_token_weight" in measured:
            measured["first_token_weight"] *= (decided.first >= dropped)[:, None]
        measured = extended(decided.measured, decided.num_tokens, measured, own)
        zeroed = policy.decide(
            layer, declared(measured, policy.needs), (output.shape[0], output.shape[1]), output.device
        )
        decided.measured, decided.num_tokens, decided.zeroed = measured, decided.num_tokens + own, zeroed
        self._seen[layer] = {}, {}, zeroed
        return zero_heads(output, zeroed)

    def finish(self, context: ForwardContext) -> None:
        """Hand a completed forward pass to the probe."""
        seen, self._seen = self._seen, {}
        if not seen:
            return
        layers, heads = len(self._geometry.layers), self._geometry.max_attention_heads
        zeroed = np.zeros((context.batch, layers, heads), bool)
        for layer, (_, _, off) in seen.items():
            if off is not None:
                zeroed[:, self._meter.places[layer], : off.shape[-1]] = off.cpu().numpy()
        if context.continues:
            self.probe._continue(zeroed)
            return
        real = context.positions.real
        length = int(context.positions.last[0]) + 1
        num_tokens = np.full(context.batch, length) if real is None else real.sum(1).cpu().numpy()
        self.probe._add(self._scores_of(seen, context.batch), zeroed, num_tokens)

    def _scores_of(
        self, seen: dict[int, tuple[dict[str, Tensor], dict[str, Tensor], Tensor | None]], batch: int
    ) -> np.ndarray:
        """float32 [score, example, layer, head]. A score sees layers as it sees examples, so one call does for all layers."""
        layers, heads = len(self._geometry.layers), self._geometry.max_attention_heads
        found = np.full((len(self._scores), batch, layers, heads), np.nan, np.float32)
        alike: dict[int, list[int]] = {}  # number of heads → layers
        for layer in seen:
            alike.setdefault(self._geometry.layers[self._meter.places[layer]].num_attention_heads, []).append(layer)
        for num_heads, of in alike.items():
            places = [self._meter.places[layer] for layer in of]
            stacked = {name: _rows([seen[layer][0][name] for layer in of]) for name in seen[of[0]][0]}
            for i, score in enumerate(self._scores):
                if score.needs & RAW_TENSORS:
                    values = _rows([seen[layer][1][score.id] for layer in of])
                else:
                    values = scored(
                        score, declared(stacked, score.needs, stacked.get("uniform")), (len(of) * batch, num_heads)
                    )
                by_layer = values.float().view(len(of), batch, num_heads).transpose(0, 1)
                found[i][:, places, :num_heads] = by_layer.numpy()
        return found

    def _uniform(self, seed: int | None, layer: int, context: ForwardContext) -> Tensor:
        place = self._meter.places[layer]
        draws = context.uniform(
            self._seed if seed is None else seed, len(self._geometry.layers), self._geometry.max_attention_heads
        )
        return draws[:, place, : self._geometry.layers[place].num_attention_heads]


def _rows(layers: list[Tensor]) -> Tensor:
    """``[example, head]`` of each layer → float32 ``[layer · example, head]`` in main memory, fetched at once."""
    return torch.cat([tensor.to(layers[0].device) for tensor in layers]).float().cpu()


class _Decided:
    """What a layer decided on a prompt, and the averages that run on from there."""

    def __init__(self, zeroed: Tensor, positions: Positions, measured: dict[str, Tensor] | None) -> None:
        self.zeroed = zeroed  # bool [batch, head]
        self.first = positions.first
        self.num_tokens = positions.num_tokens
        self.measured = measured


def zero_heads(output: Tensor, zeroed: Tensor | None) -> Tensor:
    """Head outputs ``[batch, head, query, head_dim]`` with those of the heads ``zeroed [batch, head]`` set to 0."""
    return output if zeroed is None else output.masked_fill(zeroed.to(output.device)[:, :, None, None], 0)
