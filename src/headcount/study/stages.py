"""The stages of a run: measure and ask. Each does what is not done yet, and keeps each unit as soon as it is done."""

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

import pandas as pd
import xarray as xr

from headcount.analysis import UntilDecided
from headcount.calibration import Calibration
from headcount.errors import RunError
from headcount.evaluation.benchmark import Answers
from headcount.evaluation.outcomes import with_divergences
from headcount.evaluation.workload import Workload
from headcount.models.batching import Progress, no_progress
from headcount.policies import BASELINE, POLICY_COLUMNS, Policy, PolicyFacts, policy_facts
from headcount.policies.policy import calibration_of
from headcount.scores import is_registered, select_scores
from headcount.store import Run
from headcount.store.run import noted_facts
from headcount.study.progress import Announce, silent
from headcount.study.units import Aggregate, AskShard, Engine, MeasureShard
from headcount.summaries import Summary
from headcount.units import KINDS


def measure_inputs(
    run: Run,
    engine: Engine,
    scores: Sequence[str],
    *,
    num_inputs: int,
    calibration: Calibration | None = None,
    announce: Announce = silent,
) -> None:
    """Measure every input that is not measured yet.

    Args:
        run: begun with ``begin_run``; its settings say how large shards are, whether scores are summarised, and the seed.
        engine: where it is done.
        scores: ids.
        num_inputs: inputs in all.
        calibration: that the engine's model has.
        announce: begins a step of progress.

    Raises:
        InputError: a score needs a calibration, and there is none.
        RunError: the run was begun with other scores, or another calibration.
    """
    read = calibration_of((), select_scores(scores, run.manifest.unit), calibration)
    units, plural = run.manifest.units, KINDS[run.manifest.unit].plural
    of = plural if units is None else f"{units.num_units:,} {plural}"
    progress = announce(f"Measuring {len(scores)} score{'s' * (len(scores) != 1)} of {of}")
    known, before = run.manifest.measured, run.scores_measured()
    if before not in (None, list(scores)):
        raise RunError(
            f"{str(run.path)!r} was measured with the scores {', '.join(before or ())}, not {', '.join(scores)}. Measure these "
            "in another folder with -o."
        )
    note_scores(run, scores)
    by = {} if read is None else {"calibration": read.fingerprint}
    if known is not None and run.measured() and known.calibration != by.get("calibration"):
        raise RunError(
            f"{str(run.path)!r} was measured with calibration {known.calibration}, not {by.get('calibration')}. Give that one, "
            "or measure in another folder with -o."
        )
    if known is None or known.num_inputs != num_inputs or known.calibration != by.get("calibration"):
        run.update(measured={"scores": list(scores), "num_inputs": num_inputs, **by})
    units = [
        MeasureShard(
            shard=part.start // run.shard_size, first=part.start, last=part.stop, scores=tuple(scores),
            seed=run.settings.seed, summarise=run.settings.summaries,
        )
        for part in inputs_left(run, num_inputs)
    ]  # fmt: skip

    def keep(unit: MeasureShard, result: xr.Dataset | Summary) -> None:
        if isinstance(result, Summary):
            run.add_summary(unit.shard, result)
        else:
            run.add_scores(unit.shard, result)

    before = num_inputs - sum(unit.size for unit in units)
    progress(before, num_inputs)
    engine.work(units, keep, lambda done, _: progress(before + done, num_inputs))


def inputs_left(run: Run, num_inputs: int) -> list[range]:
    """The inputs that are not measured yet, shard by shard."""
    done, size = run.measured(), run.shard_size
    parts = (range(first, min(first + size, num_inputs)) for first in range(0, num_inputs, size))
    return [part for part in parts if part.start // size not in done]


def ask_run(
    run: Run, engine: Engine, policies: Sequence[Policy], *, workload: Workload, progress: Progress = no_progress
) -> None:
    """Ask every question of the untouched model and under each policy, where that is not done yet.

    Policies of one score are asked together, part by part of the questions: what they share is computed once.

    Args:
        run: begun with ``begin_run``.
        engine: where it is done.
        policies: with labels of their own.
        workload: of the benchmark.
        progress: called with (answers given, answers in all), first with those given before.

    Raises:
        RunError: the run holds a policy of this name with another threshold, or was asked until it was decided.
    """
    note_rule(run, None)
    note_policies(run, [policy_facts(policy) for policy in (None, *policies)])
    questions, answered = range(len(workload.tokens)), run.answered()
    untouched = parts_left([None], questions, answered, workload, most=run.shard_size)
    others = [
        part
        for group in together(policies, workload)
        for part in parts_left(group, questions, answered, workload, most=run.shard_size)
    ]
    total = len(questions) * (1 + len(policies))
    before = total - sum(unit.size for unit in (*untouched, *others))

    def told(done: int, _: int) -> None:
        progress(before + done, total)

    told(0, 0)
    engine.work(untouched, lambda unit, answers: keep_answers(run, unit, answers, None), told)
    if others:
        before += sum(unit.size for unit in untouched)
        baseline = run.outcomes([BASELINE])
        engine.work(others, lambda unit, answers: keep_answers(run, unit, answers, baseline), told)


def aggregate_run(run: Run, engine: Engine) -> None:
    """Keep lm-eval's own metrics of every policy that was answered."""
    if not has_metrics(run) and (outcomes := run.outcomes()) is not None:
        engine.work([Aggregate(outcomes=outcomes)], lambda _, metrics: run.set_metrics(metrics))


def compared(outcomes: pd.DataFrame, baseline: pd.DataFrame) -> pd.DataFrame:
    """Outcomes of policies compared with the untouched model's, which was asked elsewhere.

    A policy under which nothing was off on a question gave the untouched model's answer; in another batch it may have come out
    with another last digit, so the untouched model's is taken.
    """
    untouched = outcomes[["task", "doc_id"]].merge(baseline, on=["task", "doc_id"], how="left")
    own = (*POLICY_COLUMNS, "task", "doc_id", "num_inputs", "num_tokens")
    same = outcomes["share_off"].to_numpy() == 0
    columns = {
        name: [
            theirs if equal else ours for equal, theirs, ours in zip(same, untouched[name], outcomes[name], strict=True)
        ]
        for name in outcomes.columns
        if name not in own and name in untouched
    }
    outcomes = outcomes.assign(**{name: pd.Series(column, outcomes.index) for name, column in columns.items()})
    both = with_divergences(pd.concat([baseline, outcomes], ignore_index=True))
    return outcomes.assign(kl_from_baseline=both["kl_from_baseline"].to_numpy()[len(baseline) :])


def has_metrics(run: Run) -> bool:
    """Whether every policy that was answered is aggregated."""
    metrics = run.metrics()
    return metrics is not None and set(run.policies()) - run.failures().keys() <= set(metrics["policy"])


def keep_answers(run: Run, unit: AskShard, answers: Answers, baseline: pd.DataFrame | None) -> pd.DataFrame:
    """Keep a unit's answers, compared with the untouched model's if they are not that; gives the outcomes kept."""
    outcomes = answers.outcomes
    if baseline is not None and len(outcomes):
        outcomes = compared(outcomes, baseline)
    run.add_outcomes(unit.labels, unit.questions, outcomes, answers.failures, unit.place)
    return outcomes


def together(policies: Iterable[Policy], workload: Workload) -> list[list[Policy]]:
    """Policies in groups of one score, which share most; one without a score, or that generates, is a group of its own."""
    groups: dict[Any, list[Policy]] = defaultdict(list)
    for policy in policies:
        apart = workload.together > 1  # generation shares nothing
        groups[policy.label if apart else policy_facts(policy).curve or policy.label].append(policy)
    return list(groups.values())


def parts_left(
    policies: Sequence[Policy | None],
    questions: Sequence[int],
    answered: Mapping[str, Container[int]],
    workload: Workload,
    *,
    most: int,
    place: int = 0,
) -> list[AskShard]:
    """What some policies have not answered of some questions, in parts.

    The parts depend on what is asked, not on what is left of it, so those that an interruption left are done as they
    would have been. Where a command asks otherwise than the one before, a part is what is left of it.

    Args:
        policies: that are asked together.
        questions: in the order of asking.
        answered: for each policy's label, the questions that it has answered.
        workload: of the benchmark.
        most: questions of a part.
        place: of the first question in the order of asking.
    """
    by_label = {policy_facts(policy).policy: policy for policy in policies}

    def waiting(i: int) -> tuple[str, ...]:
        return tuple(label for label in by_label if questions[i] not in answered.get(label, ()))

    return [
        AskShard(
            policies=tuple(by_label[label] for label in missing), questions=tuple(questions[i] for i in places),
            place=place + places[0],
        )
        for part in workload.parts(questions, policies=len(policies), most=most)
        for missing, places in ((missing, list(same)) for missing, same in groupby(part, key=waiting))
        if missing
    ]  # fmt: skip


def note_rule(run: Run, rule: UntilDecided | None) -> None:
    """Note in the manifest when to stop asking under a policy; None asks every question.

    Raises:
        RunError: the run was asked by another rule.
    """
    wanted = rule and {name: value for name, value in asdict(rule).items() if value is not None}
    noted = run.manifest.until_decided
    if (noted and noted.facts()) == wanted:
        return
    known = run.rule()
    if run.answered() and (known and known.facts()) != wanted:
        ways = {"there": known and known.facts(), "here": wanted}
        said = ", ".join(
            f"{where} {'every question is asked' if way is None else f'until it is decided by {way}'}"
            for where, way in ways.items()
        )
        raise RunError(f"{str(run.path)!r} is asked in another way: {said}. Choose another folder with -o.")
    run.update(until_decided=wanted)


def note_scores(run: Run, ids: Iterable[str]) -> None:
    """Note in the manifest what the scores are, so that they can be shown where nobody has the file that they came from."""
    known = {id: noted.facts() for id, noted in run.manifest.scores.items()}
    if (now := known | noted_facts(ids)) != known:
        run.update(scores=now)


def note_policies(run: Run, policies: Iterable[PolicyFacts]) -> None:
    """Note in the manifest what is asked for: the columns by which outcomes name their policy, thresholds included.

    Raises:
        RunError: the run holds a policy of this name that decides otherwise.
    """
    wanted = [dict(vars(policy)) for policy in policies]
    note_scores(run, [score for policy in wanted if is_registered(score := policy["score"] or "")])
    before = [entry.facts() for entry in run.manifest.policies]
    planned = {entry["policy"]: entry for entry in before}
    held = _held(run, [entry["policy"] for entry in wanted if entry["policy"] not in planned])
    for entry in wanted:
        planned.setdefault(entry["policy"], entry)
        known = held.get(entry["policy"], planned[entry["policy"]])
        for name in (name for name in entry if known.get(name, entry[name]) != entry[name]):
            what = "decisions by" if name == "decides" else name
            raise RunError(
                f"{str(run.path)!r} holds {entry['policy']} with {what} {known[name]}; this command gives "
                f"{entry[name]}. Choose another folder with -o."
            )
    if before != list(planned.values()):
        run.update(policies=list(planned.values()))


def _held(run: Run, policies: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Policies that were answered and are not in the manifest, since that was made anew: as their answers name them."""
    if not (known := run.answered().keys() & set(policies)):
        return {}
    rows = run.outcomes(list(known), POLICY_COLUMNS)
    found = [] if rows is None else rows.drop_duplicates("policy").to_dict("records")
    return {
        str(entry["policy"]): {str(name): value if value == value else None for name, value in entry.items()}  # no NaN
        for entry in found
    }
