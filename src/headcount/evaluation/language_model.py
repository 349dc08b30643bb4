"""headcount as a model class of lm-evaluation-harness."""

import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from lm_eval.api.instance import Instance
from lm_eval.api.registry import model_registry, register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from headcount.calibration import Calibration
from headcount.errors import InputError, nearest
from headcount.evaluation.engine import run_plan
from headcount.evaluation.plan import ScoringPlan
from headcount.models.batching import Progress, check_tokens, no_progress
from headcount.models.chat import ChatTemplate
from headcount.models.instrument import DECIDE, instrument
from headcount.models.loading import load
from headcount.models.probe import Probe
from headcount.models.state import check_tokenizer, evaluating, input_device, language_model
from headcount.policies import Policy, policy_list
from headcount.resolving import resolve_policy
from headcount.tasks import quiet
from headcount.units import KindId, checked_kind

TokenPair = tuple[list[int], list[int]]


_HFLM: Any = HFLM  # lm-eval's decorator hides the class from type checkers


@dataclass(frozen=True, kw_only=True)
class OfPolicy:
    """What one policy answered: a response for each request, and what was off on each input.

    ``heads_off`` (generation) lists the [layer, head] pairs that stayed off; ``failure`` says why there are no answers.
    """

    responses: list[Any]
    share_off: np.ndarray
    heads_off: list[list[list[int]]] | None = None
    failure: str | None = None


@dataclass(frozen=True, kw_only=True)
class Responses:
    """Requests of one kind answered under several policies.

    ``inputs`` are the distinct token-id rows that were read, ``inputs_of`` the indices of each request's (several for the
    windows of a long text).
    """

    inputs: list[list[int]]
    inputs_of: list[list[int]]
    of_policies: list[OfPolicy]
    scores: xr.Dataset | None
    num_truncated: int


class HeadcountLM(_HFLM):
    """An lm-eval model whose heads are switched off by a policy while it answers.

    Prompts, tokenisation, truncation and post-processing are those of lm-eval's ``HFLM``; log-likelihoods come from
    headcount's engine: what inputs share is read once, true lengths, log-softmax in float32.

    Args:
        model: a loaded model, or anything ``headcount.load`` takes.
        tokenizer: its tokenizer; loaded with the model if the model is given by name.
        policy: which heads are off, also as text (``ahon_ln@0.4``, ``random:0.1``, ``ahon_ln:0.1`` with
            ``thresholds_from``).
        batch_tokens: tokens in a batch, padding included; None for as many as suit the memory.
        seed: of the ``random`` score.
        generation_batch_size: prompts generated from at a time.
        decide: when generation decides which heads are off. ``prompt``: once, on the prompt, for the whole answer.
            ``running``: at every token anew, by averages over prompt and answer so far. ``every-pass``: at every token
            anew by reading the whole text again, without a cache, as the paper's authors do.
        thresholds_from: folder of a run whose scores give the thresholds of a policy named by share.
        calibration: of the model, or a file with one, for scores and replacements that need it.
        unit: what is off: a ``head``, or another of ``headcount.units.KINDS``.
        pretrained: the same as ``model``, under lm-eval's name for it.
        loading: with a model given by name, options of ``headcount.load`` (``dtype``, ``device``, ``revision``, …).

    Raises:
        InputError: no model, an unknown way to decide, or a policy that cannot be understood.
    """

    def __init__(
        self,
        model: PreTrainedModel | str | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        policy: Policy | str | None = None,
        batch_tokens: int | None = None,
        seed: int = 0,
        generation_batch_size: int = 8,
        decide: str = "prompt",
        thresholds_from: str | None = None,
        calibration: Calibration | str | os.PathLike[str] | None = None,
        unit: str = "head",
        pretrained: PreTrainedModel | str | None = None,
        **loading: Any,
    ) -> None:
        model = pretrained if model is None else model
        if model is None:
            raise InputError("No model was given. Pass a loaded model, or model=NAME (in model_args: pretrained=NAME).")
        if decide not in DECIDE:
            raise InputError(f"decide is {', '.join(map(repr, DECIDE))}, not {decide!r}.")
        # lm-eval's command line passes these whether or not they were asked for.
        options = {k: v for k, v in loading.items() if v is not None and k not in ("batch_size", "max_batch_size")}
        if str(options.get("device", "")).startswith("cuda") and not torch.cuda.is_available():
            del options[
                "device"
            ]  # lm-eval's command line says cuda:0 unless told otherwise; HFLM takes what there is too
        if calibration is not None and not isinstance(calibration, Calibration):
            calibration = Calibration.load(calibration)
        known = {*inspect.signature(load).parameters} - {"model"} if isinstance(model, str) else {"device"}
        if unknown := sorted(options.keys() - known):
            raise InputError(f"Unknown option {unknown[0]!r} of HeadcountLM. {nearest(unknown[0], known)}")
        if isinstance(model, str):
            model, loaded_tokenizer = load(model, **options)
            tokenizer = tokenizer or loaded_tokenizer
        model = language_model(model, to_read=False)  # its first pass says if it cannot be read
        check_tokenizer(tokenizer)
        with quiet(), evaluating(model):
            super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=generation_batch_size)
        self._device = input_device(model)  # lm-eval takes that of the weights, which may be elsewhere
        if isinstance(policy, str):
            policy = resolve_policy(policy, thresholds_from=thresholds_from, seed=seed)
        self.policy, self.calibration = policy, calibration
        self.unit: KindId = checked_kind(unit)
        self.batch_tokens = batch_tokens
        self.seed = seed
        self.decide = decide
        self.chat = ChatTemplate(self.tokenizer)
        self._encoded: dict[tuple[str, str], TokenPair] = {}
        self._generated: dict[tuple[int, ...], tuple[float, list[list[int]]]] = {}
        self._probe: Probe | None = None

    # What lm-eval calls

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return self._answers("loglikelihood", requests)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        return self._answers("loglikelihood_rolling", requests)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        return self._answers("generate_until", requests)

    def _answers(self, kind: str, requests: Sequence[Instance]) -> list[Any]:
        (answered,) = self.respond(kind, requests, [self.policy]).of_policies
        if answered.failure:
            raise InputError(answered.failure)
        return answered.responses

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """As lm-eval does it, within limits of time and memory; a conversation that is refused is tried without its system's
        message."""
        options = {"add_generation_prompt": add_generation_prompt, **self.chat_template_args}
        try:
            return self.chat.render(chat_history, **options)
        except InputError:
            others = [message for message in chat_history if message["role"] != "system"]
            if len(others) == len(chat_history):
                raise
            return self.chat.render(others, **options)

    # What a Benchmark calls

    def respond(
        self,
        kind: str,
        requests: Sequence[Instance],
        policies: Sequence[Policy | None],
        *,
        scores: Sequence[str] = (),
        progress: Progress = no_progress,
    ) -> Responses:
        """Answer requests of one of lm-eval's kinds under several policies, recording ``scores`` of the untouched model."""
        policies = policy_list(policies, self.calibration)
        if kind == "generate_until":
            with evaluating(self.model):
                return self._generate(requests, policies, progress)
        plan, spans = self._plan(kind, requests)
        scored = run_plan(
            self.model, plan, policies, scores=scores, batch_tokens=self.batch_tokens, seed=self.seed,
            calibration=self.calibration, unit=self.unit, progress=progress,
        )  # fmt: skip
        ends = np.cumsum(spans).tolist()
        parts = [range(end - span, end) for span, end in zip(spans, ends, strict=True)]
        of_policies = []
        for of_policy in scored.of_policies:
            nats = of_policy.loglikelihoods
            if kind == "loglikelihood":
                responses: list[Any] = [nats[part[0]] for part in parts]
            else:
                responses = [sum(nats[i][0] for i in part) for part in parts]
            of_policies.append(OfPolicy(responses=responses, share_off=of_policy.share_off, failure=of_policy.failure))
        return Responses(
            inputs=plan.inputs, inputs_of=[[plan.input_of[i] for i in part] for part in parts], of_policies=of_policies,
            scores=scored.scores if scores else None, num_truncated=plan.num_truncated,
        )  # fmt: skip

    def inputs_of(self, kind: str, requests: Sequence[Instance]) -> list[list[int]]:
        """The distinct token-id rows that answering would read."""
        if kind == "generate_until":
            return [list(row) for row in dict.fromkeys(tuple(self.tok_encode(request.args[0])) for request in requests)]
        return self._plan(kind, requests)[0].inputs

    def _plan(self, kind: str, requests: Sequence[Instance]) -> tuple[ScoringPlan, list[int]]:
        """What to read and score, and how many of its entries belong to each request."""
        pairs = [[pair] for pair in self._pairs(requests)] if kind == "loglikelihood" else self._windows(requests)
        plan = ScoringPlan.from_requests([pair for of_request in pairs for pair in of_request], self.max_length)
        return plan, [len(of_request) for of_request in pairs]

    def _pairs(self, requests: Sequence[Instance]) -> list[TokenPair]:
        """(context, continuation) token ids, encoded by lm-eval's own ``loglikelihood``."""
        encoded: list[TokenPair] = []

        def capture(given: Sequence[tuple[Any, list[int], list[int]]], **_: Any) -> list[tuple[float, bool]]:
            encoded.extend((context, continuation) for _, context, continuation in given)
            return []

        self._loglikelihood_tokens = capture
        try:
            super().loglikelihood(list(requests), disable_tqdm=True)
        finally:
            del self._loglikelihood_tokens
        return encoded

    def _windows(self, requests: Sequence[Instance]) -> list[list[TokenPair]]:
        return [
            [
                make_disjoint_window(window)
                for window in get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                )
            ]
            for request in requests
        ]

    def _encode_pair(self, context: str, continuation: str) -> TokenPair:
        """Cached: every shard of questions is planned twice, to be counted and to be asked."""
        key = context, continuation
        if key not in self._encoded:
            self._encoded[key] = super()._encode_pair(context, continuation)
        return self._encoded[key]

    # Generation

    def _generate(
        self, requests: Sequence[Instance], policies: Sequence[Policy | None], progress: Progress
    ) -> Responses:
        encoded = [tuple(self.tok_encode(request.args[0])) for request in requests]
        check_tokens(encoded, self.model)
        answers, of_prompts = [], []
        prompts: dict[tuple[int, ...], int] = {}
        for number, policy in enumerate(policies):
            self._generated = {}
            with instrument(
                self.model, policy=policy, seed=self.seed, decide=self.decide, unit=self.unit
            ) as self._probe:
                self._done = number * len(requests)
                self._told = lambda: progress(self._done, len(policies) * len(requests))
                answers.append(super().generate_until(list(requests), disable_tqdm=True))
            of_prompts.append(self._generated)
            prompts |= dict.fromkeys(self._generated, 0)
        prompts = {prompt: i for i, prompt in enumerate(prompts)}
        return Responses(
            inputs=[list(prompt) for prompt in prompts],
            # lm-eval may have cut a prompt's start to leave room for the answer; then the prompt ends with what was read.
            inputs_of=[[prompts[row] if row in prompts else _suffix(prompts, row)] for row in encoded],
            of_policies=[
                OfPolicy(
                    responses=responses,
                    share_off=np.array([seen[prompt][0] for prompt in prompts]),
                    heads_off=[seen[prompt][1] for prompt in prompts],
                )
                for responses, seen in zip(answers, of_prompts, strict=True)
            ],
            scores=None,
            num_truncated=sum(row not in prompts for row in dict.fromkeys(encoded)),
        )

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **options: Any) -> torch.Tensor:
        """One batch of lm-eval's ``generate_until``, with a note of which heads were off on each prompt."""
        assert self._probe is not None
        self._probe.clear()
        with _without_cache(self.model) if self.decide == "every-pass" else nullcontext():
            answer = super()._model_generate(context, max_length, stop, **options)
        # Without a cache every token is a pass over the whole text: [pass · prompt · beam, layer, head].
        beams = options.get("num_beams") or 1
        passes = self._probe.off.values.reshape(-1, len(context), beams, *self._probe.off.shape[1:])
        shares = self._probe.share_off.reshape(-1, len(context), beams).mean((0, 2))
        layers = self._probe.units.layer_indices
        mask = options.get("attention_mask")
        for i, row in enumerate(context):
            real = row if mask is None else row[mask[i].bool()]
            heads = [[layers[place], int(head)] for place, head in np.argwhere(passes[:, i].all((0, 1)))]
            self._generated.setdefault(tuple(real.tolist()), (float(shares[i]), heads))
        self._done += len(context)
        self._told()
        return answer


@contextmanager
def _without_cache(model: Any) -> Iterator[None]:
    """``model.generate`` reads the whole text anew for every token; lm-eval asks for the cache whatever it is given."""
    generate = model.generate
    model.generate = lambda *args, **options: generate(*args, **(options | {"use_cache": False}))
    try:
        yield
    finally:
        del model.generate


def _suffix(prompts: dict[tuple[int, ...], int], row: tuple[int, ...]) -> int:
    return next(index for prompt, index in prompts.items() if row[-len(prompt) :] == prompt)


if (
    "headcount" not in model_registry
):  # as it is once lm-eval has found the entry point, from which it takes the class itself
    register_model("headcount")(HeadcountLM)
