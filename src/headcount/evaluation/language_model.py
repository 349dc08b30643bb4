"""headcount as a model class of lm-evaluation-harness."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from headcount.evaluation.engine import ScoringPlan, run_plan
from headcount.interventions import Policy
from headcount.models.batching import Progress, no_progress
from headcount.models.instrument import instrument
from headcount.models.loading import load
from headcount.tasks import quiet

TokenPair = tuple[list[int], list[int]]


_HFLM: Any = HFLM  # lm-eval's decorator hides the class from type checkers


class HeadcountLM(_HFLM):
    """An lm-eval model that zeroes heads by a policy while it answers.

    Prompts, tokenisation, truncation and post-processing are those of lm-eval's ``HFLM``; log-likelihoods come from
    headcount's engine: one forward pass for each distinct input, true lengths, log-softmax in float32.

    Args:
        model: a loaded model, or anything ``headcount.load`` takes.
        tokenizer: its tokenizer; loaded with the model if the model is given by name.
        policy: which heads to zero.
        batch_tokens: tokens in a batch, padding included.
        seed: of the ``random`` score.
        generation_batch_size: prompts generated from at a time.
    """

    def __init__(
        self,
        model: PreTrainedModel | str,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        policy: Policy | None = None,
        batch_tokens: int = 4096,
        seed: int = 0,
        generation_batch_size: int = 8,
    ) -> None:
        if isinstance(model, str):
            model, loaded_tokenizer = load(model)
            tokenizer = tokenizer or loaded_tokenizer
        with quiet():
            super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=generation_batch_size)
        self.policy = policy
        self.batch_tokens = batch_tokens
        self.seed = seed
        self.record_scores: Sequence[str] = ()
        """Scores to record while log-likelihoods are computed."""
        self.progress: Progress = no_progress
        self.dry_run = False
        """Only find out what would be read (``inputs``); answers are NaN or empty."""
        self.num_truncated = 0
        self.scores: xr.Dataset | None = None
        """What ``record_scores`` asked for, one example an input of ``inputs``, after a log-likelihood call."""
        self.inputs: list[list[int]] = []
        """The distinct inputs of the last log-likelihood call."""
        self.inputs_of: list[list[int]] = []
        """For each request of the last call, its inputs: one, or one a window of a long text."""
        self.share_zeroed = np.zeros(0)
        """float64 [input], of the last call."""
        self._encoded: dict[tuple[str, str], TokenPair] = {}

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        windows: list[list[TokenPair]] = [
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
        nats = iter(self._loglikelihood_tokens([(None, *pair) for pairs in windows for pair in pairs]))
        totals = [sum(next(nats)[0] for _ in pairs) for pairs in windows]
        of_window = iter(self.inputs_of)
        self.inputs_of = [[index for _ in pairs for index in next(of_window)] for pairs in windows]
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        if self.dry_run:
            self.inputs = [self.tok_encode(request.args[0]) for request in requests]
            self.inputs_of, self.share_zeroed = [[i] for i in range(len(requests))], np.zeros(len(requests))
            return [""] * len(requests)
        prompts: dict[tuple[int, ...], int] = {}
        shares: list[float] = []
        self._generated = prompts, shares
        with instrument(self.model, policy=self.policy, seed=self.seed) as self._probe:
            answers = super().generate_until(requests, disable_tqdm=True)
        encoded = [tuple(self.tok_encode(request.args[0])) for request in requests]
        self.inputs = [list(row) for row in prompts]
        # lm-eval may have cut a prompt's start to leave room for the answer; then the prompt ends with what was read.
        self.inputs_of = [[prompts[row] if row in prompts else _suffix(prompts, row)] for row in encoded]
        self.share_zeroed = np.array(shares)
        self.scores = None
        return answers

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **options: Any) -> torch.Tensor:
        prompts, shares = self._generated
        self._probe.clear()
        answer = super()._model_generate(context, max_length, stop, **options)
        mask = options.get("attention_mask")
        for i, row in enumerate(context):
            real = row if mask is None else row[mask[i].bool()]
            if prompts.setdefault(tuple(real.tolist()), len(prompts)) == len(shares):
                shares.append(float(self._probe.share_zeroed[i]))
        self.progress(len(shares), len(shares))
        return answer

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = True,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        plan = ScoringPlan.from_requests(
            [(context, continuation) for _, context, continuation in requests], self.max_length
        )
        self.inputs, self.inputs_of = plan.inputs, [[index] for index in plan.input_of]
        self.num_truncated = plan.num_truncated
        if self.dry_run:
            self.share_zeroed = np.zeros(len(plan.inputs))
            return [(float("nan"), False)] * len(requests)
        scored = run_plan(
            self.model,
            plan,
            policy=self.policy,
            scores=self.record_scores,
            batch_tokens=self.batch_tokens,
            seed=self.seed,
            progress=self.progress,
        )
        self.scores, self.share_zeroed = scored.scores, scored.share_zeroed
        return scored.loglikelihoods

    def _encode_pair(self, context: str, continuation: str) -> TokenPair:
        """Cached: every policy scores the same requests."""
        key = context, continuation
        if key not in self._encoded:
            self._encoded[key] = super()._encode_pair(context, continuation)
        return self._encoded[key]


def _suffix(prompts: dict[tuple[int, ...], int], row: tuple[int, ...]) -> int:
    return next(index for prompt, index in prompts.items() if row[-len(prompt) :] == prompt)


register_model("headcount")(HeadcountLM)
