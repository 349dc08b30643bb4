"""Ask until it is decided: questions in random order, and no more of them under a policy than its verdict takes."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd
import xarray as xr

from headcount.analysis import Look, Search, SequentialTest, ShareSearch, UntilDecided, asking_order
from headcount.calibration import Calibration
from headcount.evaluation.benchmark import Answers
from headcount.evaluation.workload import Workload
from headcount.models.batching import Progress, no_progress
from headcount.policies import BASELINE, Policy, policy_facts
from headcount.resolving import policy_at
from headcount.store import Run
from headcount.study.progress import Announce, silent
from headcount.study.stages import keep_answers, note_policies, note_rule, parts_left, together
from headcount.study.units import AskShard, Engine
from headcount.summaries import Summary


def ask_until_decided(
    run: Run,
    engine: Engine,
    policies: Sequence[Policy],
    *,
    workload: Workload,
    rule: UntilDecided,
    progress: Progress = no_progress,
) -> dict[str, SequentialTest]:
    """Ask a benchmark's questions in random order, each policy until its verdict is known, where that is not done yet.

    Look by look: the untouched model first, then the policies that have no verdict yet, those of one score together.

    Arguments are those of ``ask_run``, and:

    Args:
        rule: when to stop; the run's seed gives the order.
        progress: called with (answers given or not needed, answers to give at most).

    Returns:
        The test of each policy that was not given up, by its label.

    Raises:
        RunError: the run was asked by another rule, or holds a policy of this name with another threshold.
        InputError: a metric that the questions do not have.
    """
    note_rule(run, rule)
    note_policies(run, [policy_facts(policy) for policy in (None, *policies)])
    num_questions = len(workload.tokens)
    asking = _Asking(run, rule, policies, num_questions)
    order = asking_order(num_questions, run.settings.seed)
    for place in range(0, num_questions, rule.questions_a_look):
        look, waiting = order[place : place + rule.questions_a_look], asking.undecided()
        if not waiting:
            break

        def keep(unit: AskShard, answers: Answers) -> None:
            asking.keep(unit, answers)
            progress(*asking.progress())

        for groups in ([[None]], together(waiting, workload)):
            units = [
                part
                for group in groups
                for part in parts_left(group, look, asking.answered, workload, most=len(look), place=place)
            ]
            engine.work(units, keep)
        asking.judge(look)
    progress(*asking.progress())
    return {label: test for label, test in asking.tests.items() if label not in asking.failed}


class _Asking:
    """What is known of each policy while it is asked."""

    def __init__(self, run: Run, rule: UntilDecided, policies: Sequence[Policy], num_questions: int) -> None:
        self._run, self._rule, self._policies, self._num_questions = run, rule, policies, num_questions
        self.tests = {policy.label: rule.test(num_questions) for policy in policies}
        self.failed = set(run.failures())
        #: For each policy's label, the questions that it has answered, with their values.
        self.answered: dict[str, dict[int, float]] = defaultdict(dict, run.values(rule.metric))
        self._baseline = run.outcomes([BASELINE])

    def undecided(self) -> list[Policy]:
        known = {label for label, test in self.tests.items() if test.verdict is not None} | self.failed
        return [policy for policy in self._policies if policy.label not in known]

    def keep(self, unit: AskShard, answers: Answers) -> None:
        untouched = unit.policies == (None,)
        if len(answers.outcomes):
            self._rule.judged(answers.outcomes)  # refuses what cannot be decided by before it is kept
        outcomes = keep_answers(self._run, unit, answers, None if untouched else self._baseline)
        if untouched:
            parts = [part for part in (self._baseline, outcomes) if part is not None]
            self._baseline = pd.concat(parts, ignore_index=True)
        self.failed |= answers.failures.keys()
        for label, rows in outcomes.groupby("policy", sort=False):
            self.answered[str(label)] |= dict(zip(unit.questions, rows[self._rule.metric], strict=True))

    def judge(self, look: Sequence[int]) -> None:
        assert self._baseline is not None
        sign = self._rule.judged(self._baseline).sign
        before = np.array([self.answered[BASELINE][question] for question in look])
        for policy in self.undecided():
            after = np.array([self.answered[policy.label][question] for question in look])
            self.tests[policy.label].update(sign * (after - before))

    def progress(self) -> tuple[int, int]:
        done = sum(
            self._num_questions
            if test.verdict is not None or label in self.failed
            else min(len(self.answered[label]), self._num_questions)
            for label, test in self.tests.items()
        )
        return done, self._num_questions * len(self.tests)


def search_run(
    run: Run,
    engine: Engine,
    scores: Sequence[str],
    measured: xr.Dataset | Summary | None,
    *,
    workload: Workload,
    rule: UntilDecided,
    search: ShareSearch,
    exclude_layers: frozenset[int] = frozenset(),
    calibration: Calibration | None = None,
    announce: Announce = silent,
) -> dict[str, Search]:
    """Find the removable share of each score, asking at one share after the other, each until it is decided.

    The scores take their looks side by side. A search that is continued takes the looks it has taken from the run.

    Arguments are those of ``ask_until_decided``, and:

    Args:
        scores: curves.
        measured: scores that thresholds come from; None where no score takes any.
        search: the largest share and when to stop.
        exclude_layers: layers never touched.
        calibration: of the model, for curves that need one.
        announce: begins a step of progress.

    Returns:
        What was found for each score that was not given up; also kept in the manifest.

    Raises:
        as ``ask_until_decided``.
    """
    looking = {score: search.looks(rule.margin) for score in scores}
    shares = {score: next(steps) for score, steps in looking.items()}
    found: dict[str, Search] = {}
    looks = 0
    while shares:
        looks += 1
        policies = {
            score: policy_at(
                score, share, measured, seed=run.settings.seed, exclude_layers=exclude_layers, calibration=calibration
            )
            for score, share in shares.items()
        }
        tests = ask_until_decided(
            run, engine, list(policies.values()), workload=workload, rule=rule,
            progress=announce(f"look {looks} for {len(policies)} removable share{'s' * (len(policies) > 1)}"),
        )  # fmt: skip
        shares = {}
        off = run.shares_off([policy.label for policy in policies.values()])
        for score, policy in policies.items():
            if policy.label not in tests:
                continue  # given up
            test = tests[policy.label]
            look = Look(change=test.change, verdict=test.verdict, share_realised=off[policy.label])
            try:
                shares[score] = looking[score].send(look)
            except StopIteration as ended:
                found[score] = ended.value
    ends = {score: {"within": found[score].within, "beyond": found[score].beyond} for score in scores if score in found}
    kept = asdict(search) | {"scores": ends}
    if (before := run.manifest.searched) is None or before.facts() != kept:
        run.update(searched=kept)
    return found
