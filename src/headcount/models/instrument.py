"""Measure and intervene while a model runs: register an attention function, switch to it, restore the model."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from headcount.attention.attend import attend
from headcount.attention.inputs import AttentionInputs, Positions
from headcount.attention.measurements import extended, is_first
from headcount.calibration import Calibration
from headcount.errors import InputError, ModelError, seed_of
from headcount.models.act import Act, Needs
from headcount.models.calibrated import calibration_for
from headcount.models.context import ForwardContext
from headcount.models.continued import Caches, Continued, Decided
from headcount.models.mlp_site import MlpSite
from headcount.models.observe import scores_of, units_of
from headcount.models.probe import Examples, Probe
from headcount.models.prompts import prompts_read_whole
from headcount.models.sites import AttentionSite, site_of
from headcount.models.state import refuse_training
from headcount.models.switch import attention_replaced
from headcount.outputs import Outputs
from headcount.policies import Policy, check_policy
from headcount.replacements import replaced
from headcount.scores import Score
from headcount.units import KINDS, KindId, UnitMap, checked_kind

#: When generation decides which heads are off.
DECIDE = ("prompt", "running", "every-pass")


@contextmanager
def instrument(
    model: PreTrainedModel,
    *,
    policy: Policy | Mapping[KindId, Policy] | None = None,
    scores: str | Iterable[str] = (),
    seed: int = 0,
    decide: str = "prompt",
    calibration: Calibration | None = None,
    unit: KindId = "head",
) -> Iterator[Probe]:
    """Measure scores and switch units off in every forward pass of ``model`` inside the ``with`` block.

    Each layer measures what it sees, the policy decides per example or per token, and the outputs of inactive heads are
    set to 0, or to what else the policy puts there, before they are concatenated and projected: the same as in the
    matching columns of ``o_proj``'s input; an MLP's neurons are columns of its ``down_proj``'s input. Real tokens are those
    of the 2-D ``attention_mask`` given to the model (all, if none is given). On exit the model is as it was.

    One block at a time is open on a model, and the model runs in the thread or task that opened it. Several caches may
    take turns, each with the heads of its own prompt. ``docs/evaluation.md`` has all rules.

    Args:
        model: any transformers causal language model whose attention goes through the attention interface.
        policy: which units are off; None is none. Of heads and neurons at once one each, by kind: ``{"head": …, "neuron": …}``.
        scores: ids to record, or ``"all"``.
        seed: of the ``random`` score.
        decide: what happens in passes that continue a cache (generation). ``prompt``: the heads decided on the prompt
            stay so for the answer. ``running``: heads are decided anew in each pass, by measurements averaged over all
            real tokens of the prompt and the answer so far (``last_output_norm`` is that of the newest token; random
            heads stay those of the prompt). ``every-pass``: such passes are refused, so that every pass reads and
            decides on the whole text; generate with ``use_cache=False``. A policy that decides per token decides on
            each as it comes, and so takes ``prompt`` or ``every-pass`` to the same numbers.
        calibration: for scores that need one; None for the policy's.
        unit: what is measured and off: ``head``, ``group`` of heads with one key-value head, a layer's ``attention``, MLP
            ``neuron``, or a layer's ``mlp``.

    Yields:
        The Probe that records; those of the other kinds in ``policy`` are its ``beside``.

    Raises:
        ModelError: the model cannot be measured (named, with the reason), or a block is open on it already.
        InputError: unknown score, an unknown way to decide, no seed, a policy that names heads or layers the model lacks, or
            a calibration that is missing, or of another model.
    """
    refuse_training(model, model.modules())
    if decide not in DECIDE:
        raise InputError(f"decide is one of {', '.join(DECIDE)}, not {decide!r}.")
    given = policy if isinstance(policy, Mapping) else {} if policy is None else {unit: policy}
    policies: dict[KindId, Policy] = {checked_kind(kind): of_kind for kind, of_kind in given.items()}
    if not scores and unit not in policies and policies:
        unit = next(iter(policies))
    kinds: list[KindId] = list(dict.fromkeys([checked_kind(unit), *policies]))
    if len({KINDS[kind].site for kind in kinds}) < len(kinds):
        raise InputError(f"{' and '.join(kinds)} are units of one place, of which one kind is off at a time. Give one.")
    num_attention, known = len(units_of(model).layers), []
    for kind in kinds:
        chosen = scores_of(model, scores, kind) if scores and kind == unit else []
        known.append(_recorder(model, kind, policies.get(kind), chosen, seed, decide, calibration, num_attention))
    by_site = {KINDS[kind].site: recorder for kind, recorder in zip(kinds, known, strict=True)}
    main = known[0]
    main.probe.beside = {kind: recorder.probe for kind, recorder in zip(kinds[1:], known[1:], strict=True)}

    def start(context: ForwardContext) -> None:
        for recorder in known:
            recorder.start(context)

    def finish(context: ForwardContext, output: Any) -> None:
        for recorder in known:
            recorder.finish(context, output)

    attention = by_site["attention"].attention if "attention" in by_site else _attend
    with ExitStack() as stack:
        stack.enter_context(attention_replaced(model, attention, start=start, finish=finish))
        for recorder in known:
            stack.enter_context(recorder.watching(model))
        if any(recorder.reads_prompts for recorder in known):
            stack.enter_context(prompts_read_whole(model))
        yield main.probe


def _attend(module: nn.Module, layer: int, inputs: AttentionInputs, context: ForwardContext) -> Tensor:
    return attend(inputs, context.positions)[0]


def _recorder(
    model: PreTrainedModel,
    kind: KindId,
    policy: Policy | None,
    scores: list[Score],
    seed: int,
    decide: str,
    calibration: Calibration | None,
    num_attention: int,
) -> "_Recorder":
    """Of one kind of unit. Raises InputError for what does not fit it."""
    units = units_of(model, kind)
    if policy is not None:
        check_policy(policy, units)
    if of_tokens := next((score.id for score in scores if score.per == "token"), None):
        raise InputError(f"{of_tokens} has a value for every token: `headcount.summarise_heads` measures it.")
    if policy is not None and policy.per == "token" and decide == "running":
        raise InputError("A policy that decides per token decides anew on each: leave decide as it is.")
    policies = [] if policy is None else [policy]
    site = site_of(model, kind, calibration_for(model, policies, scores, calibration))
    return _Recorder(site, units, policy, scores, seed_of(seed), decide, num_attention)


class _Recorder:
    """What stands in every layer of one instrumented model, and what it gathers for the probe."""

    def __init__(
        self,
        site: AttentionSite | MlpSite,
        units: UnitMap,
        policy: Policy | None,
        scores: list[Score],
        seed: int,
        decide: str,
        num_attention: int,
    ) -> None:
        self.probe, self.site = Probe(units, scores), site
        self._units, self._policy, self._scores, self._seed, self._decide = units, policy, scores, seed, decide
        self._num_attention = num_attention
        self._per_token = policy is not None and policy.per == "token"
        readers = [*scores, *([policy] if policy and not self._per_token else [])]
        self._draws_from_tokens = any("uniform" in reader.needs for reader in readers)
        self._running = decide == "running" and policy is not None and bool(policy.needs - {"uniform"})
        fixed = policy is not None and (self._per_token or not policy.needs)
        self._caches = Caches(fixed=fixed, running=self._running)
        self._act: Act | None = None  # of the pass that runs, where it decides
        self._decided: dict[int, Decided] = {}
        self._before: Continued | None = None  # the texts that it continues
        self._context: ForwardContext | None = None
        self._num_ran = 0  # MLPs of the pass

    def watching(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """Inside, the site hands over what is read."""
        policies = [self._policy] if self._policy else []
        return self.site.watching(model, Needs.of(policies, self._scores), self.mlp)

    @property
    def reads_prompts(self) -> bool:
        """Whether a prompt has to be read as a whole."""
        return bool(self._scores) or (self._policy is not None and bool(self._policy.needs) and not self._per_token)

    def start(self, context: ForwardContext) -> None:
        """Before a pass: what its cache was known to hold."""
        self._act, self._decided, self._before, self._context = None, {}, None, context
        self._num_ran = 0
        self.site.begin()
        if context.continues and self._decide == "every-pass":
            raise InputError("decide='every-pass' reads the whole text in every pass. Generate with use_cache=False.")
        if self._policy is not None and context.cache is not None:
            if context.continues:
                anew = self._running or self._per_token
                if anew and context.new_mask is not None and not bool(context.new_mask.all()):
                    what = "A policy that decides per token" if self._per_token else "decide='running'"
                    raise InputError(f"{what} counts every token that continues a text: pass none that is padding.")
                self._before = self._caches.find(context)
            self._caches.forget(context.cache)
        if not context.continues or ((self._running or self._per_token) and self._before is not None):
            self._act = Act(
                self._units, [self._policy] if self._policy else [], scores=() if context.continues else self._scores,
                rows=context.batch, draws=lambda seed: self._draws(seed, context), seed=self._seed,
                obeyed=0 if self._policy else None,
            )  # fmt: skip
            if self._draws_from_tokens:
                context.fetch_texts()

    def attention(self, module: nn.Module, layer: int, inputs: AttentionInputs, context: ForwardContext) -> Tensor:
        """Attend, and act. Returns the output ``[batch, head, query, head_dim]``."""
        outputs = partial(self.site.outputs, module, layer, inputs)
        return self._layer(layer, inputs.query, inputs.key.shape[2], outputs, context)

    def mlp(self, layer: int, values: Tensor) -> Tensor:
        """Act on what an MLP's units put out, ``[…, neuron or hidden]``. Returns what goes on."""
        site, context = self.site, self._context
        assert isinstance(site, MlpSite)
        if context is None:
            raise ModelError("An MLP ran outside its model's forward pass. Call the model itself.")

        self._num_ran += 1

        def rows(values: Tensor) -> Tensor:
            return values.view(context.batch, context.length, -1)

        outputs = partial(site.outputs, layer, rows(values), rows=rows)
        going_on = self._layer(layer, values, context.num_past + context.length, outputs, context)
        return site.joined(going_on).reshape(values.shape)

    def _layer(
        self, layer: int, like: Tensor, num_keys: int, outputs_of: Callable[..., Outputs], context: ForwardContext
    ) -> Tensor:
        """Measure and act; ``outputs_of`` as the site's, of this layer. Returns ``[row, unit, token, width]``."""
        policy = self._policy if self._policy and layer not in self._policy.exclude_layers else None
        positions = context.positions.to(like.device)
        if context.continues:
            return self._continue(layer, num_keys, outputs_of, context, policy)
        assert self._act is not None
        outputs = outputs_of(positions, self._act.needs(layer), tokens=context.tokens, places=context.places)
        going_on = self._act(outputs)
        if policy is not None:
            measured = dict(outputs.measured)
            of_first = {name: values for name, values in measured.items() if is_first(name)}
            self._decided[layer] = Decided(
                off=self._act.off(layer),
                first=positions.first,
                num_tokens=positions.num_tokens,
                measured=measured if self._running else of_first if self._per_token else None,
            )
        return going_on

    def _continue(
        self,
        layer: int,
        num_keys: int,
        outputs_of: Callable[..., Outputs],
        context: ForwardContext,
        policy: Policy | None,
    ) -> Tensor:
        """A pass that continues a cache: with the units of its prompt, or decided anew on averages that run on."""
        if policy is None or self._before is None:
            return outputs_of(context.positions, starts=False).values
        before, num_new = self._before.layers[layer], context.length
        if before.measured is None or self._act is None:
            outputs = outputs_of(context.positions, Needs(shown=policy.instead.needs), starts=False)
            return replaced(outputs, before.off, policy.instead)
        own = torch.full_like(before.num_tokens, num_new)
        dropped = max(0, context.num_past + num_new - num_keys)  # a window's cache forgets the oldest tokens
        positions = Positions(real=None, first=(before.first - dropped).clamp(min=0), last=own - 1)
        num_before = before.num_tokens.minimum(context.num_past - before.first)  # a cache may have been cut back
        outputs = outputs_of(
            positions, self._act.needs(layer), earlier=before.measured, starts=False, tokens=context.tokens,
            past=min(context.num_past, num_keys - num_new),
            places=num_before[:, None] + torch.arange(num_new, device=own.device),
        )  # fmt: skip
        seen = {**outputs.measured}, {**outputs.by_token}
        for measured in seen:
            if "first_token_weight" in measured:
                there = (before.first >= dropped)[:, None]
                weight = measured["first_token_weight"]
                measured["first_token_weight"] = weight * (there if weight.dim() == 2 else there[..., None])
        measured = before.measured
        if self._running:
            measured = extended(before.measured, before.num_tokens, seen[0], own)
        going_on = self._act(replace(outputs, measured={**seen[0], **measured}, by_token=seen[1]))
        self._decided[layer] = replace(before, off=self._act.off(layer), num_tokens=num_before + own, measured=measured)
        return going_on

    def finish(self, context: ForwardContext, output: Any) -> None:
        """Hand a completed forward pass to the probe, and remember what its cache may keep."""
        self._context = None
        if isinstance(self.site, MlpSite) and self._num_ran != len(self._units.layers):
            raise ModelError(
                f"A pass ran {self._num_ran} of the model's {len(self._units.layers)} MLPs as they were when the block was "
                "opened, so not all were seen. Exchange modules before the block, not inside it."
            )
        if context.num_layers != self._num_attention:
            raise ModelError(
                f"A pass ran {context.num_layers} of the model's {self._num_attention} attention layers through "
                "headcount's attention, so its heads were not all seen. Leave the attention implementation as it is inside "
                "a block, and generate without leaving out layers (assistant_early_exit)."
            )
        examples = self._record(context)
        cache = context.cache if context.cache is not None else _cache_of(output)
        if self._policy is not None and cache is not None:
            self._caches.keep(cache, context, self._decided, before=self._before, examples=examples)

    def _record(self, context: ForwardContext) -> Examples | None:
        if self._act is None:
            return None
        off = self._act.decided()[0] if self._policy else np.zeros((context.batch, *self._units.exists().shape), bool)
        pairs = self._act.pairs_off()[0] if self._per_token else None
        if context.continues:
            assert self._before is not None
            self.probe._continue(self._before.examples, self._before.rows.numpy(), pairs, context.length, off)
            return None
        real = context.positions.real
        length = int(context.positions.last[0]) + 1
        num_tokens = np.full(context.batch, length) if real is None else real.sum(1).cpu().numpy()
        return self.probe._add(self._act.values(), off, pairs, num_tokens)

    def _draws(self, seed: int | None, context: ForwardContext) -> Tensor:
        return context.uniform(self._seed if seed is None else seed, len(self._units.layers), self._units.most_units)


def _cache_of(output: Any) -> Any:
    """The cache that a pass made and returned, if any."""
    if isinstance(output, tuple):
        return next((part for part in output if isinstance(part, Cache)), None)
    return getattr(output, "past_key_values", None)
