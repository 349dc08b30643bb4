"""Measure and intervene while a model runs: register an attention function, switch to it, restore the model."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from headcount.attention.attend import attend
from headcount.attention.inputs import AttentionInputs, Positions
from headcount.attention.measurements import RAW_TENSORS, extended
from headcount.errors import InputError, ModelError, seed_of
from headcount.heads import HeadGeometry
from headcount.interventions import Fixed, Policy, check_is_policy
from headcount.models.context import ForwardContext
from headcount.models.continued import Caches, Continued, Decided
from headcount.models.measuring import LayerMeter, declared, needs_of
from headcount.models.observe import head_geometry
from headcount.models.probe import Examples, Probe
from headcount.models.prompts import prompts_read_whole
from headcount.models.state import refuse_training
from headcount.models.switch import attention_replaced
from headcount.scores import Score, select_scores

#: When generation decides which heads to zero.
DECIDE = ("prompt", "running", "every-pass")


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

    One block at a time is open on a model, and the model runs in the thread or task that opened it. Several caches may
    take turns, each with the heads of its own prompt. ``docs/evaluation.md`` has all rules.

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
        ModelError: the model cannot be measured (named, with the reason), or a block is open on it already.
        InputError: unknown score, an unknown way to decide, no seed, or a policy that names heads or layers the model lacks.
    """
    chosen = select_scores(scores) if scores else []
    geometry = head_geometry(model)
    refuse_training(model, model.modules())
    if policy is not None:
        check_policy(policy, geometry)
    if decide not in DECIDE:
        raise InputError(f"decide is one of {', '.join(DECIDE)}, not {decide!r}.")
    recorder = _Recorder(geometry, policy, chosen, seed_of(seed), decide)
    with ExitStack() as stack:
        stack.enter_context(attention_replaced(model, recorder.layer, start=recorder.start, finish=recorder.finish))
        if chosen or not (policy is None or isinstance(policy, Fixed)):
            stack.enter_context(prompts_read_whole(model))
        yield recorder.probe


def check_policy(policy: Policy, geometry: HeadGeometry) -> None:
    """Raise InputError if a policy names layers or heads that the model lacks, or is none."""
    check_is_policy(policy)
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
        self._running = decide == "running" and policy is not None and bool(policy.needs - {"uniform"})
        self._caches = Caches(fixed=isinstance(policy, Fixed), running=self._running)
        # Of the pass that runs: layer → measurements that scores read, scores that read whole tensors, zeroed heads
        self._seen: dict[int, tuple[dict[str, Tensor], dict[str, Tensor], Tensor | None]] = {}
        self._decided: dict[int, Decided] = {}
        self._before: Continued | None = None  # the texts that it continues

    def start(self, context: ForwardContext) -> None:
        """Before a pass: what its cache was known to hold."""
        self._seen, self._decided, self._before = {}, {}, None
        if context.continues and self._decide == "every-pass":
            raise InputError("decide='every-pass' reads the whole text in every pass. Generate with use_cache=False.")
        if self._policy is None or context.cache is None:
            return
        if context.continues:
            if self._running and context.new_mask is not None and not bool(context.new_mask.all()):
                raise InputError(
                    "decide='running' counts every token that continues a text: pass none that is padding."
                )
            self._before = self._caches.find(context)
        self._caches.forget(context.cache)

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
                scores[score.id] = score.values(declared(measured, score.needs, uniform), shape)
        kept = {name: tensor for name, tensor in measured.items() if name in self._score_needs - RAW_TENSORS}
        if "uniform" in self._score_needs:
            kept["uniform"] = self._uniform(self._seed, layer, context)
        zeroed = None
        if policy is not None:
            uniform = self._uniform(policy.seed, layer, context) if "uniform" in policy_needs else None
            zeroed = policy.decide(
                layer, declared(measured, policy_needs, uniform), (shape[0], shape[1]), output.device
            )
            self._decided[layer] = Decided(
                zeroed=zeroed,
                first=positions.first,
                num_tokens=positions.num_tokens,
                measured=measured if self._running else None,
            )
        self._seen[layer] = kept, scores, zeroed
        return zero_heads(output, zeroed)

    def _continue(
        self, module: nn.Module, layer: int, inputs: AttentionInputs, context: ForwardContext, policy: Policy | None
    ) -> Tensor:
        """A pass that continues a cache: with the heads of its prompt, or decided anew on averages that run on."""
        if policy is None or self._before is None:
            return attend(inputs, context.positions)[0]
        before = self._before.layers[layer]
        if before.measured is None:
            return zero_heads(attend(inputs, context.positions)[0], before.zeroed)
        num_new, num_keys = inputs.query.shape[2], inputs.key.shape[2]
        own = torch.full_like(before.num_tokens, num_new)
        dropped = max(0, context.num_past + num_new - num_keys)  # a window's cache forgets the oldest tokens
        positions = Positions(real=None, first=(before.first - dropped).clamp(min=0), last=own - 1)
        inputs = replace(inputs, past=min(context.num_past, num_keys - num_new))
        output, measured = self._meter.measure(module, layer, inputs, positions, policy.needs)
        if "first_token_weight" in measured:
            measured["first_token_weight"] *= (before.first >= dropped)[:, None]
        measured = extended(before.measured, before.num_tokens, measured, own)
        zeroed = policy.decide(
            layer, declared(measured, policy.needs), (output.shape[0], output.shape[1]), output.device
        )
        self._decided[layer] = replace(before, zeroed=zeroed, num_tokens=before.num_tokens + own, measured=measured)
        self._seen[layer] = {}, {}, zeroed
        return zero_heads(output, zeroed)

    def finish(self, context: ForwardContext, output: Any) -> None:
        """Hand a completed forward pass to the probe, and remember what its cache may keep."""
        if context.num_layers != len(self._geometry.layers):
            raise ModelError(
                f"A pass ran {context.num_layers} of the model's {len(self._geometry.layers)} attention layers through "
                "headcount's attention, so its heads were not all seen. Leave the attention implementation as it is inside "
                "a block, and generate without leaving out layers (assistant_early_exit)."
            )
        examples = self._record(context)
        cache = context.cache if context.cache is not None else _cache_of(output)
        if self._policy is not None and cache is not None:
            self._caches.keep(cache, context, self._decided, before=self._before, examples=examples)

    def _record(self, context: ForwardContext) -> Examples | None:
        layers, heads = len(self._geometry.layers), self._geometry.max_attention_heads
        zeroed = np.zeros((context.batch, layers, heads), bool)
        for layer, (_, _, off) in self._seen.items():
            if off is not None:
                zeroed[:, self._meter.places[layer], : off.shape[-1]] = off.cpu().numpy()
        if context.continues:
            if self._before is not None and self._seen:
                self.probe._continue(self._before.examples, self._before.rows.numpy(), zeroed)
            return None
        real = context.positions.real
        length = int(context.positions.last[0]) + 1
        num_tokens = np.full(context.batch, length) if real is None else real.sum(1).cpu().numpy()
        return self.probe._add(self._scores_of(self._seen, context.batch), zeroed, num_tokens)

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
                    values = score.values(
                        declared(stacked, score.needs, stacked.get("uniform")), (len(of) * batch, num_heads)
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
    return torch.cat([tensor.detach().to(layers[0].device) for tensor in layers]).float().cpu()


def _cache_of(output: Any) -> Any:
    """The cache that a pass made and returned, if any."""
    if isinstance(output, tuple):
        return next((part for part in output if isinstance(part, Cache)), None)
    return getattr(output, "past_key_values", None)


def zero_heads(output: Tensor, zeroed: Tensor | None) -> Tensor:
    """Head outputs ``[batch, head, query, head_dim]`` with those of the heads ``zeroed [batch, head]`` set to 0."""
    return output if zeroed is None else output.masked_fill(zeroed.to(output.device)[:, :, None, None], 0)
