"""How far runs and studies are, and what is decided of a run whose questions are asked until it is."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from headcount.analysis import SequentialTest, UntilDecided, asking_order
from headcount.errors import InputError
from headcount.metrics import DIRECTIONS
from headcount.policies import BASELINE
from headcount.store import Manifest, Run
from headcount.study.folder import StudyFolder

#: Begins a step with a name; what it returns is called with (done, in all).
Announce = Callable[[str], Callable[[int, int], None]]


def silent(step: str) -> Callable[[int, int], None]:
    """Announce nothing."""
    return lambda done, total: None


@contextmanager
def announced(announce: Announce, step: str) -> Iterator[None]:
    """The block is a step of which nothing is known but that it is done in the end."""
    told = announce(step)
    yield
    told(1, 1)


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """How far a run is.

    Attributes:
        num_policies: policies to ask under, the untouched model among them: all that were asked for so far, or of a study.
        num_inputs: inputs to measure; None before that was known.
        inputs_done: of them, how many are measured.
        num_questions: questions of the benchmark; 0 for texts.
        answers_done: that were given, those of the untouched model among them.
        stopped: policies that are asked no more since it was decided, with how many questions that took.
        searching: scores whose removable share is not found yet.
        answers_left: to be given; where questions are asked until it is decided, at most.
        num_thresholds: shares at which thresholds are known.
        failures: policies that were given up, with the reason.
        undecidable: why nothing is decided of what was asked until it is, in a sentence; empty where it can be.
    """

    num_inputs: int | None
    inputs_done: int
    num_questions: int
    num_policies: int
    answers_done: int
    stopped: dict[str, int]
    searching: list[str]
    answers_left: int
    num_thresholds: int
    failures: dict[str, str]
    undecidable: str = ""

    @property
    def inputs_left(self) -> int:
        return max(0, (self.num_inputs or 0) - self.inputs_done)


def rule_of(manifest: Manifest, higher_is_better: bool | None = None) -> UntilDecided | None:
    """By which rule a run is asked; None where every question is.

    Which way its metric is better is what was said when it was asked, or else ``higher_is_better``.
    """
    rule = manifest.until_decided
    return rule and UntilDecided(
        metric=rule.metric, margin=rule.margin, confidence=rule.confidence, questions_a_look=rule.questions_a_look,
        higher_is_better=higher_is_better if rule.higher_is_better is None else rule.higher_is_better,
    )  # fmt: skip


def run_tests(run: Run) -> dict[str, SequentialTest]:
    """The test of each policy that was asked, as far as it is; empty where every question is asked.

    Raises:
        InputError: nothing can be decided by the rule's metric, such as one of which nobody says which way it is better.
    """
    if (rule := rule_of(run.manifest)) is None:
        return {}
    values = run.values(rule.metric)
    total = run.manifest.data.num_questions
    order = asking_order(total, run.settings.seed)
    before = values.pop(BASELINE, {})
    untouched = run.outcomes([BASELINE], ["policy", "task", "doc_id", DIRECTIONS, rule.metric])
    if untouched is None:
        return {}
    sign, tests = rule.judged(untouched).sign, {}
    for label, after in values.items():
        test = tests[label] = rule.test(total)
        both = [number for number in order if number in after and number in before]
        test.update(sign * np.array([after[number] - before[number] for number in both]))
    return tests


def run_progress(run: Run, num_policies: int = 0, searched: Sequence[str] = ()) -> RunProgress:
    """How far a run is, from its manifest and its files; answers are read only where they say when to stop.

    Args:
        run: the run.
        num_policies: to be asked under, if it is known.
        searched: scores whose removable share is to be found.
    """
    manifest, size, done = run.manifest, run.shard_size, run.measured()
    planned = manifest.measured and manifest.measured.num_inputs
    inputs = sum(max(0, min(size, (planned or 0) - shard * size)) for shard in done)
    answered = run.answered()
    labels = dict.fromkeys([*(entry.policy for entry in manifest.policies), *answered])
    policies = {label: len(answered.get(label, ())) for label in labels}
    questions = manifest.data.num_questions
    failures = run.failures()
    tests: dict[str, SequentialTest] = {}
    undecidable = ""
    try:
        tests = run_tests(run)
    except InputError as error:  # of numbers that are there: they are listed all the same
        undecidable = str(error)
    stopped = {label: test.num_asked for label, test in tests.items() if test.verdict is not None}
    left = {label: max(0, questions - given) for label, given in policies.items() if label not in stopped}
    if rule_of(manifest) is not None:
        left = {label: count for label, count in left.items() if label not in failures}
        if not left.keys() - {BASELINE}:
            left = {}  # the untouched model is asked what the others are
    found = manifest.searched.scores if manifest.searched else {}
    return RunProgress(
        num_inputs=planned, inputs_done=inputs, num_questions=questions, num_policies=max(num_policies, len(labels)),
        answers_done=sum(policies.values()), stopped=stopped,
        searching=[score for score in searched if score not in found],
        answers_left=sum(left.values()) + max(0, num_policies - len(labels)) * questions,
        num_thresholds=len(manifest.thresholds.share) if manifest.thresholds else 0, failures=failures,
        undecidable=undecidable,
    )  # fmt: skip


def whats_left(run: Run) -> str:
    """How much is not there of what was asked for, and of what was there, in a sentence; empty if nothing is lacking."""
    known = run_progress(run)
    asked = known.num_questions * known.num_policies
    left = [
        f"{known.inputs_left:,} of {known.num_inputs:,} inputs are not measured" if known.inputs_left else "",
        f"{known.answers_left:,} of {asked:,} answers are not given" if known.answers_left else "",
    ]
    said = f"Not complete: {' and '.join(filter(None, left))} yet." if any(left) else ""
    gone = f"{lost} files that were there are gone." if (lost := len(run.missing())) else ""
    return " ".join(filter(None, (said, gone)))


def study_progress(folder: StudyFolder) -> dict[tuple[str, str], RunProgress | None]:
    """How far each run of a study is, by the labels of model and data; None for one not begun."""
    runs, study = folder.runs(), folder.study
    searched = folder.score_ids() if study.search else []
    num_policies = 0 if searched else study.num_policies(folder.score_ids())
    return {
        labels: run_progress(runs[labels], num_policies, searched) if labels in runs else None
        for labels in ((model.label, data.label) for model, data in folder.study.cells())
    }
