"""Measure a model, or evaluate it under policies, into the folder of a run: all that the commands of these names keep."""

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from headcount.analysis import ShareSearch, UntilDecided
from headcount.calibration import Calibration
from headcount.errors import InputError, RunError
from headcount.evaluation.workload import Workload
from headcount.models.observe import scores_of, units_of
from headcount.policies import Policy, Threshold, check_policy, policy_list
from headcount.policies.policy import calibration_of, layer_set
from headcount.resolving import read_policy
from headcount.scores import of_tokens, select_scores
from headcount.store import Run, begin_run, is_run, manifest, open_run
from headcount.store.files import Damaged
from headcount.store.scores import DTYPES
from headcount.study.asking import Asking
from headcount.study.cuts import find_thresholds
from headcount.study.deciding import ask_until_decided, search_run
from headcount.study.given import (
    described,
    given_calibration,
    loaded_model,
    named_tasks,
    named_texts,
    searched_scores,
    several,
    unit_asked,
)
from headcount.study.progress import Announce, silent
from headcount.study.pruned import ask_pruned, check_pruned
from headcount.study.realising import realise
from headcount.study.spec import ModelSpec, Texts
from headcount.study.stages import aggregate_run, ask_run, inputs_left, measure_inputs
from headcount.study.subject import (
    Subject,
    SubjectFacts,
    read_data,
)
from headcount.study.units import Engine, LocalEngine
from headcount.summaries import Summary
from headcount.thresholding import thresholds
from headcount.units import KINDS, KindId

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def evaluate_run(
    folder: str | os.PathLike[str],
    model: "str | ModelSpec | PreTrainedModel",
    tasks: str | Sequence[str],
    policies: Sequence[str | Policy] = (),
    *,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    num_fewshot: int | None = None,
    limit: float | None = None,
    chat_template: bool | None = None,
    batch_tokens: int | None = None,
    seed: int = 0,
    offline: bool = False,
    include_path: str | Path | None = None,
    exclude_layers: Iterable[int] = (),
    thresholds_from: str | os.PathLike[str] | None = None,
    calibration: Calibration | str | os.PathLike[str] | None = None,
    pruned: Iterable[str | os.PathLike[str]] = (),
    unit: KindId | None = None,
    until_decided: UntilDecided | None = None,
    search: Iterable[str] = (),
    search_range: ShareSearch | None = None,
    announce: Announce = silent,
    prepared: Callable[[Subject], object] = lambda _: None,
    command: str = "",
) -> Run:
    """Ask a benchmark's questions untouched and under policies, and keep the answers in a folder, as ``headcount evaluate``.

    What the folder holds already is not done again, so that the same call continues an interrupted one. Scores that
    thresholds come from are measured first.

    Arguments are those of ``evaluate``, and:

    Args:
        folder: a new one, or a run of the same model, questions and seed.
        model: as ``load`` takes it, a ``ModelSpec`` that says how to load it, or one that is loaded, with its ``tokenizer``.
        policies: also as text, such as ``ahon_ln:0.1``, ``awft@0.8``, ``random:0.1``, ``ahon_ln:published:0.1`` or
            ``devg/token+kept+keep-first:0.3``.
        chat_template: None puts prompts into the model's chat template if it is an instruct model.
        offline: use the benchmark package only.
        exclude_layers: of policies that are given as text, and of the search.
        thresholds_from: run whose scores give the thresholds of policies with a share; these questions' own if not given.
        calibration: of the model, or a file with one, for scores and replacements that need it.
        unit: what is measured and off; that of the run in the folder, or of ``thresholds_from``, or else heads, if not given.
        pruned: folders of checkpoints that ``prune_heads`` made from this model, to ask as well.
        search: curves (scores, also as ``ID/token+mean``) whose removable share is searched for, each look until it is
            decided; ``all`` for all scores.
        search_range: where it is searched for; ``ShareSearch()`` if not given.
        announce: called with the name of each step; what it returns is called with (done, in all).
        prepared: called with the model and what it is to read, before anything is kept.
        command: for the run's history.

    Raises:
        InputError, TaskError, ModelError: as ``load`` and ``evaluate``; or a policy was given up because the model's logits are
            NaN under it, when the others are kept.
        RunError: the folder holds another run, or a policy of this name with another threshold, or was asked in another way.
    """
    spec, excluded = described(model), layer_set(exclude_layers)
    calibration, unit = given_calibration(calibration, spec), unit_asked(unit, folder, thresholds_from)
    read = [
        read_policy(policy, exclude_layers=excluded, seed=seed, model=spec.model) if isinstance(policy, str) else policy
        for policy in policy_list(policies)
    ]
    read = policy_list(read, calibration)
    for policy in read:
        check_policy(policy, kind=unit)
        if unit != "head" and isinstance(policy, Threshold) and policy.source.startswith("published"):
            raise InputError(
                f"{policy.label} has a threshold that was published for heads, not for {KINDS[unit].plural}."
            )
    if not isinstance(until_decided, UntilDecided | None):
        raise InputError(
            f"until_decided is an UntilDecided, such as hc.UntilDecided(margin=0.01), not {until_decided!r}."
        )
    searched = searched_scores(search, unit)
    asking = Asking(
        policies=tuple(dict.fromkeys(read)), rule=until_decided or (UntilDecided() if searched else None),
        searched=searched, search=search_range or ShareSearch(), exclude_layers=excluded,
        thresholds_from=thresholds_from, pruned=tuple(map(Path, several(pruned))), calibration=calibration,
    )  # fmt: skip
    select_scores(asking.scores() or "all", unit)
    if unit != "head" and (asking.pruned or calibration is not None):
        raise InputError(
            f"Calibrations and pruned checkpoints are of heads, not of {KINDS[unit].plural}. Leave them out."
        )
    data = named_tasks(tasks, num_fewshot=num_fewshot, limit=limit, include_path=include_path, announce=announce)
    loaded = loaded_model(model, tokenizer, calibration, announce)
    units_of(loaded.model, unit)  # refused before questions are prepared
    for checkpoint in asking.pruned:
        check_pruned(checkpoint, loaded)
    subject = read_data(
        loaded, data, chat_template=chat_template, offline=offline, include_path=include_path,
        batch_tokens=batch_tokens, seed=seed, unit=unit, announce=announce,
    )  # fmt: skip
    prepared(subject)
    with begun(folder, subject.facts(), seed=seed, command=command, **asking.kept(folder)) as run:
        ask(run, subject, asking, announce)
    return run


def measure_run(
    folder: str | os.PathLike[str],
    model: "str | ModelSpec | PreTrainedModel",
    tasks: str | Sequence[str] = (),
    *,
    texts: str | Sequence[str] | Texts = (),
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    scores: str | Iterable[str] = "all",
    num_fewshot: int | None = None,
    limit: float | None = None,
    chat_template: bool | None = None,
    batch_tokens: int | None = None,
    seed: int = 0,
    offline: bool = False,
    include_path: str | Path | None = None,
    calibration: Calibration | str | os.PathLike[str] | None = None,
    scores_dtype: str = "float32",
    summaries: bool = False,
    unit: KindId | None = None,
    announce: Announce = silent,
    prepared: Callable[[Subject], object] = lambda _: None,
    command: str = "",
) -> Run:
    """Measure every head on a benchmark's questions or on texts, and keep the scores in a folder, as ``headcount measure``.

    What the folder holds already is not done again, so that the same call continues an interrupted one.

    Arguments are those of ``evaluate_run`` and ``measure_heads``, and:

    Args:
        texts: what to read instead of tasks: files or hub data sets, or ``Texts`` that say more, as in a study.
        scores_dtype: ``float32``, or ``float16`` for half the disk.
        summaries: keep counts and moments of scores instead of every score, as is always done where one is of tokens, and
            of neurons.
        unit: what is measured: a ``head``, ``group``, ``attention``, ``neuron`` or ``mlp``; that of the run in the folder, or
            else heads, if not given.

    Raises:
        InputError, TaskError, ModelError: as ``load``, ``evaluate`` and ``measure_heads``.
        RunError: the folder holds another run, or one of other scores.
    """
    if bool(tasks) == bool(texts):
        raise InputError("Say what the model should read: either tasks or texts, not both.")
    unit = unit_asked(unit, folder)
    select_scores(scores, unit)
    if scores_dtype not in DTYPES:
        raise InputError(f"Unknown scores_dtype {scores_dtype!r}. Use {' or '.join(DTYPES)}.")
    if tasks:
        data = named_tasks(tasks, num_fewshot=num_fewshot, limit=limit, include_path=include_path, announce=announce)
    else:
        data = texts if isinstance(texts, Texts) else named_texts(texts, limit=limit)
    calibration = given_calibration(calibration, described(model))
    calibration_of((), select_scores(scores, unit), calibration)
    loaded = loaded_model(model, tokenizer, calibration, announce)
    ids = [score.id for score in scores_of(loaded.model, scores, unit)]
    subject = read_data(
        loaded, data, chat_template=chat_template, offline=offline,
        include_path=include_path, batch_tokens=batch_tokens, seed=seed, unit=unit, announce=announce,
    )  # fmt: skip
    prepared(subject)
    chosen = {"scores_dtype": scores_dtype, "summaries": summaries or of_tokens(ids)}
    facts = subject.facts()
    with begun(folder, facts, seed=seed, command=command, **chosen) as run:
        measure_inputs(
            run, LocalEngine(subject), ids, num_inputs=facts.num_inputs, calibration=calibration, announce=announce
        )
    return run


def begun(
    folder: str | os.PathLike[str],
    facts: SubjectFacts,
    *,
    seed: int,
    shard: int | None = None,
    command: str = "",
    **chosen: Any,
) -> AbstractContextManager[Run]:
    """``begin_run`` of a subject, with the settings of the run that is there, if there is one, but for what is ``chosen``."""
    known = manifest.Settings(shard=facts.shard(shard or manifest.SHARD))
    with suppress(Damaged):  # made anew with these
        known = open_run(folder).settings if is_run(Path(folder)) else known
    kept = {"shard": known.shard, "scores_dtype": known.scores_dtype, "summaries": known.summaries}
    kept |= chosen | ({} if facts.unit == "head" else {"unit": facts.unit})
    kept["summaries"] |= KINDS[facts.unit].many
    return begin_run(
        folder, model=facts.model, data=facts.data, settings={"seed": seed} | kept, batch_tokens=facts.batch_tokens,
        command=command,
    )  # fmt: skip


def ask(run: Run, subject: Subject, asking: Asking, announce: Announce = silent) -> None:
    """Ask the questions untouched and as wanted, where that is not done; measures first what thresholds need.

    Raises:
        RunError: the run holds a policy of this name with another threshold, or was asked in another way.
        InputError: a policy was given up because the model's logits are NaN under it; the others are kept.
    """
    engine, facts = LocalEngine(subject), subject.facts()
    measured = _measured(run, engine, facts.num_inputs, asking, announce) if asking.scores() else None
    cuts = None
    if (shares := asking.shares()) and measured is not None:
        cuts = find_thresholds(run, shares) if asking.thresholds_from is None else thresholds(measured, shares)
    policies = [policy.found(cuts) for policy in asking.policies]
    ask_policies(run, engine, policies, asking, workload=facts.workload, measured=measured, announce=announce)
    asked = set(run.policies()) if asking.searched else {policy.label for policy in policies}
    if failures := {label: why for label, why in run.failures().items() if label in asked}:
        raise InputError(" ".join(f"{label} was given up: {why}" for label, why in failures.items()))
    for checkpoint in asking.pruned:
        ask_pruned(run, checkpoint, subject, announce)


def ask_policies(
    run: Run,
    engine: Engine,
    policies: Sequence[Policy],
    asking: Asking,
    *,
    workload: Workload,
    measured: xr.Dataset | Summary | None,
    announce: Announce,
) -> None:
    """Ask under policies, and search, whichever is wanted; thresholds that are still to be found are of ``measured`` scores."""
    policies = realise(run, engine, policies, measured, announce)
    if policies or not asking.searched:
        told = announce(f"Asking under {len(policies) + 1} policies")
        if asking.rule is not None and policies:
            ask_until_decided(run, engine, policies, workload=workload, rule=asking.rule, progress=told)
        else:
            ask_run(run, engine, policies, workload=workload, progress=told)
    if asking.searched and asking.rule is not None:
        search_run(
            run, engine, asking.searched, measured, exclude_layers=asking.exclude_layers, workload=workload,
            rule=asking.rule, search=asking.search, calibration=asking.calibration, announce=announce,
        )  # fmt: skip
    aggregate_run(run, engine)


def _measured(run: Run, engine: Engine, num_inputs: int, asking: Asking, announce: Announce) -> xr.Dataset | Summary:
    """The scores that give thresholds, of this run or of another one."""
    wanted, source = asking.scores(), run
    if asking.thresholds_from is None:
        ids = run.scores_measured() or wanted
        _check_has(wanted, ids, run)
        if inputs_left(run, num_inputs):
            measure_inputs(run, engine, ids, num_inputs=num_inputs, calibration=asking.calibration, announce=announce)
    else:
        source = open_run(asking.thresholds_from)
        if source.manifest.unit != run.manifest.unit:
            of = KINDS[source.manifest.unit].plural, KINDS[run.manifest.unit].plural
            raise RunError(
                f"{str(asking.thresholds_from)!r} measured {of[0]}, and this run is of {of[1]}: give one of {of[1]}."
            )
        theirs, ours = source.manifest.model, run.manifest.model
        if theirs.fingerprint != ours.fingerprint:
            raise RunError(
                f"{str(asking.thresholds_from)!r} measured another model ({theirs.name}, {theirs.fingerprint}) than this "
                f"one ({ours.name}, {ours.fingerprint}). Measure this model, or leave --thresholds-from out."
            )
        _check_has(wanted, source.scores_measured() or (), source)
    measured = source.measurements()
    if measured is None:
        raise RunError(f"{str(source.path)!r} holds no scores. Measure some with `headcount measure … -o FOLDER`.")
    return measured[wanted]


def _check_has(wanted: Sequence[str], measured: Collection[str], source: Run) -> None:
    if missing := [name for name in wanted if name not in measured]:
        raise RunError(
            f"{str(source.path)!r} has no scores for {', '.join(missing)}. Measure them with "
            "`headcount measure` in a new folder and give it with --thresholds-from."
        )
