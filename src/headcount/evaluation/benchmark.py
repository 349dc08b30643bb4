"""A benchmark's questions, asked of one model as it is and under policies."""

import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from headcount.calibration import Calibration
from headcount.errors import InputError, seed_of
from headcount.evaluation.language_model import HeadcountLM, OfPolicy, Responses
from headcount.evaluation.outcomes import add_usage, aggregate, answers, directions, with_divergences
from headcount.evaluation.workload import GENERATED, PART_BATCHES, Workload
from headcount.metrics import directed
from headcount.models.batching import Progress, batch_tokens_for, data_fingerprint, no_progress
from headcount.models.chat import MAX_CHARACTERS
from headcount.policies import Policy, policy_facts
from headcount.tasks import TaskSet, check_limit, load_tasks, quiet
from headcount.units import KindId


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What some questions' answers were.

    Attributes:
        outcomes: one row a policy and question, as ``Evaluation.outcomes``.
        scores: what was asked to be recorded of the untouched model, dims (example, layer, head), one example for each
            distinct input of the questions in the order of ``Benchmark.inputs``; None if nothing was.
        failures: policies that were given up, with the reason; they have no outcomes.
    """

    outcomes: pd.DataFrame
    scores: xr.Dataset | None
    failures: dict[str, str] = field(default_factory=dict)


class Benchmark:
    """The questions of some lm-eval tasks, asked of one model: prompts are built once and serve every policy.

    Args:
        model: from ``headcount.load``.
        tasks: lm-eval task or group names, or a TaskSet already loaded.
        tokenizer: the model's.
        num_fewshot: examples in each prompt; None for the task's own number.
        limit: questions a task (the first ones), or a share of them below 1.
        chat_template: put prompts into the model's chat template, as lm-eval's ``--apply_chat_template`` does, with
            few-shot examples as turns of the conversation.
        batch_tokens: tokens in a batch, padding included; None for as many as suit the memory.
        seed: of few-shot sampling and of the ``random`` score.
        offline: True for the benchmark package only, False for the hub only, None for whichever can be had.
        include_path: folder with task files of your own.
        decide: when generation decides which heads are off, as for ``HeadcountLM``.
        calibration: of the model, for scores, and for policies that need one and have none.
        unit: what is measured and off: a ``head``, or another of ``headcount.units.KINDS``.

    Raises:
        TaskError: an unknown task, or data that cannot be had.
        InputError: a chat template asked for that the tokenizer lacks or that cannot be used, a prompt beyond any size, or no
            questions.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tasks: Sequence[str] | TaskSet,
        *,
        tokenizer: PreTrainedTokenizerBase,
        num_fewshot: int | None = None,
        limit: float | None = None,
        chat_template: bool = False,
        batch_tokens: int | None = None,
        seed: int = 0,
        offline: bool | None = None,
        include_path: str | Path | None = None,
        decide: str = "prompt",
        calibration: Calibration | None = None,
        unit: KindId = "head",
    ) -> None:
        check_limit(limit)
        seed = seed_of(seed)
        if chat_template and not getattr(tokenizer, "chat_template", None):
            raise InputError(
                "The tokenizer has no chat template. Leave it off with --no-chat-template (chat_template=False)."
            )
        if not isinstance(tasks, TaskSet):
            tasks = load_tasks(tasks, num_fewshot=num_fewshot, offline=offline, include_path=include_path, seed=seed)
        self.task_set = tasks
        self.lm = HeadcountLM(
            model, tokenizer=tokenizer, batch_tokens=batch_tokens, seed=seed, decide=decide, calibration=calibration,
            unit=unit,
        )  # fmt: skip
        self._requests: dict[tuple[str, int], list[Any]] = {}
        for name, task in tasks.tasks.items():
            with quiet():
                size = len(task.eval_docs)
                count = None if limit is None else min(size, math.ceil(limit * size) if limit < 1 else int(limit))
                task.build_all_requests(
                    limit=count, rank=0, world_size=1, apply_chat_template=chat_template,
                    fewshot_as_multiturn=chat_template,
                    chat_template=self.lm.apply_chat_template if chat_template else None,
                    tokenizer_name=self.lm.tokenizer_name if chat_template else "",
                )  # fmt: skip
            for request in task.instances:
                _check_size(name, request)
                self._requests.setdefault((name, request.doc_id), []).append(request)
        self.lm.chat.close()  # every prompt is there now
        self.questions: list[tuple[str, int]] = list(self._requests)
        """(task, doc_id) of every question."""
        self.num_truncated = 0
        """Inputs read so far whose start was cut to fit the model's positions."""
        self._inputs: list[list[int]] | None = None
        self._workload: Workload | None = None
        self._facts = {"num_fewshot": num_fewshot, "limit": limit, "chat_template": chat_template}

    def facts(self) -> dict[str, Any]:
        """What identifies the questions, for a run's manifest."""
        return {
            "sources": self.task_set.sources,
            **self._facts,
            "num_questions": self.num_questions,
            "num_inputs": self.num_inputs,
            "fingerprint": data_fingerprint(self.inputs()),
        }

    @property
    def num_inputs(self) -> int:
        return len(self.inputs())

    @property
    def num_questions(self) -> int:
        return len(self.questions)

    def inputs(self) -> list[list[int]]:
        """The distinct token-id rows that the questions make the model read (for generation, the prompts)."""
        if self._inputs is None:
            with quiet():
                kinds = self._of_kinds(self.questions)
                rows = (map(tuple, self.lm.inputs_of(kind, requests)) for kind, requests in kinds.items())
                self._inputs = [list(row) for row in dict.fromkeys(row for of_kind in rows for row in of_kind)]
        return self._inputs

    def workload(self) -> Workload:
        """How much the questions are, to ask them in parts."""
        if self._workload is not None:
            return self._workload
        with quiet():
            tokens = tuple(
                sum(self._tokens_of(kind, requests) for kind, requests in self._of_kinds([question]).items())
                for question in self.questions
            )
        generates = all(request.request_type == "generate_until" for of in self._requests.values() for request in of)
        self._workload = Workload(
            tokens=tokens, at_once=PART_BATCHES * batch_tokens_for(self.lm.model, self.lm.batch_tokens),
            together=int(self.lm.batch_size) if generates else 1,
        )  # fmt: skip
        return self._workload

    def _tokens_of(self, kind: str, requests: Sequence[Any]) -> int:
        read = sum(map(len, self.lm.inputs_of(kind, requests)))
        if kind != "generate_until":
            return read
        longest = (request.args[1].get("max_gen_toks", self.lm.max_gen_toks) for request in requests)
        return read + GENERATED * sum(map(int, longest))

    def ask(
        self,
        policies: Sequence[Policy | None] = (None,),
        questions: Sequence[int] | None = None,
        *,
        scores: Iterable[str] = (),
        progress: Progress = no_progress,
    ) -> Answers:
        """Ask questions under every policy at once; what policies share is computed once.

        Args:
            policies: which heads are off; None asks the untouched model, against which ``kl_from_baseline`` is taken.
            questions: indices into ``questions``; None for all.
            scores: ids to record of the untouched model meanwhile (log-likelihood tasks).
            progress: called with (inputs answered, inputs in all), each input counted once a policy.

        Returns:
            Outcomes policy by policy, each policy's in the order of ``questions``.

        Raises:
            InputError: two policies with one label, an index that is no question, or NaN from the untouched model.
        """
        names = [policy_facts(policy).policy for policy in policies]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"Two policies are called {twice[0]!r}. Give each a name of its own.")
        chosen = self._chosen(questions)
        failures: dict[str, str] = {}
        collected = [_Collected() for _ in policies]
        recorded: list[xr.Dataset] = []
        with quiet():
            for kind, requests in self._of_kinds(chosen).items():
                given = self.lm.respond(kind, requests, policies, scores=list(scores), progress=progress)
                self.num_truncated += given.num_truncated
                if given.scores is not None:
                    recorded.append(given.scores)
                for place, of_policy in enumerate(given.of_policies):
                    if of_policy.failure:
                        failures[names[place]] = of_policy.failure
                    else:
                        collected[place].add(kind, requests, given, of_policy)
            tables = [
                self._rows(chosen, policy, collected[place])
                for place, policy in enumerate(policies)
                if names[place] not in failures
            ]
        outcomes = pd.DataFrame([row for table in tables for row in table])
        if len(outcomes):
            tasks = self.task_set.tasks
            of_tasks = outcomes.groupby("task", sort=False)
            outcomes = directed(outcomes, {str(name): directions(tasks[str(name)], rows) for name, rows in of_tasks})
        return Answers(
            outcomes=with_divergences(outcomes),
            scores=xr.concat(recorded, "example") if recorded else None,
            failures=failures,
        )

    def metrics(self, outcomes: pd.DataFrame) -> pd.DataFrame:
        """lm-eval's own aggregation of outcomes, saved or fresh: columns policy, task (or group), metric, value.

        Warns of what lm-eval cannot aggregate; its value is NaN.
        """
        with quiet():
            table, failed = aggregate(outcomes, self.task_set)
        for said in failed:
            warnings.warn(said, stacklevel=2)
        return table

    def _chosen(self, questions: Sequence[int] | None) -> list[tuple[str, int]]:
        if questions is None:
            return self.questions
        if wrong := [index for index in questions if not 0 <= index < self.num_questions]:
            raise InputError(
                f"There is no question {wrong[0]}; the benchmark has questions 0…{self.num_questions - 1}."
            )
        return [self.questions[index] for index in questions]

    def _of_kinds(self, questions: Iterable[tuple[str, int]]) -> dict[str, list[Any]]:
        """The questions' requests by lm-eval's kind of request, each as often as its task repeats it."""
        kinds: dict[str, list[Any]] = defaultdict(list)
        for question in questions:
            for request in self._requests[question]:
                kinds[request.request_type] += [request] * (request.repeats or 1)
        return kinds

    def _rows(
        self, questions: Sequence[tuple[str, int]], policy: Policy | None, given: "_Collected"
    ) -> list[dict[str, Any]]:
        label, rows = policy_facts(policy).columns(), []
        of_tasks: dict[str, list[Any]] = defaultdict(list)
        for question in questions:
            of_tasks[question[0]] += self._requests[question]
        for name, requests in of_tasks.items():
            for request in requests:
                request.resps = given.responses[id(request)]
            for row in answers(name, self.task_set.tasks[name], requests, lambda text: len(self.lm.tok_encode(text))):
                question = name, row["doc_id"]
                add_usage(row, given.usage[question])
                rows.append(label | row | {"heads_off": given.heads_off.get(question)})
        place = {question: number for number, question in enumerate(questions)}
        return sorted(rows, key=lambda row: place[row["task"], row["doc_id"]])


def _check_size(task: str, request: Any) -> None:
    for text in request.args:
        if isinstance(text, str) and len(text) > MAX_CHARACTERS:
            raise InputError(
                f"Question {request.doc_id} of {task} has a prompt of {len(text):,} characters, more than {MAX_CHARACTERS:,}. "
                "Look at the task's template, or leave it out."
            )


class _Collected:
    """What one policy answered, by request, and what that took and switched off, by question."""

    def __init__(self) -> None:
        self.responses: dict[int, list[Any]] = defaultdict(list)
        self.usage: dict[Any, dict[Any, tuple[float, int]]] = defaultdict(dict)
        self.heads_off: dict[Any, Any] = {}

    def add(self, kind: str, requests: Sequence[Any], given: Responses, of_policy: OfPolicy) -> None:
        for request, response, indices in zip(requests, of_policy.responses, given.inputs_of, strict=True):
            self.responses[id(request)].append(response)
            question = request.task_name, request.doc_id
            for index in indices:
                self.usage[question][kind, index] = float(of_policy.share_off[index]), len(given.inputs[index])
                if of_policy.heads_off is not None:
                    self.heads_off[question] = of_policy.heads_off[index]
