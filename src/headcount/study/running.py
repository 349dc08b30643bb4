"""Check a study, and run it: every model on all data, one stage after the other, from wherever it was left."""

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import xarray as xr

from headcount.analysis import ShareSearch
from headcount.calibration import Calibration
from headcount.errors import HeadcountError, InputError
from headcount.models.loading import find_source, resolve_device
from headcount.policies import Policy, check_policy, score_of
from headcount.policies.policy import calibration_of
from headcount.resolving import policy_at
from headcount.scores import get_score, is_registered
from headcount.store import continue_run, is_run, open_run
from headcount.store.files import Damaged
from headcount.study.analysing import analyse_study
from headcount.study.asking import Asking
from headcount.study.cuts import find_thresholds
from headcount.study.evaluating import ask_policies, begun
from headcount.study.folder import StudyFolder, begin_study
from headcount.study.progress import Announce, announced, run_progress, silent
from headcount.study.spec import ModelSpec, Study, Tasks, Texts
from headcount.study.stages import has_metrics, measure_inputs
from headcount.study.subject import LoadedModel, SubjectFacts, load_model, read_calibration, read_data, read_texts
from headcount.study.units import Engine, LocalEngine


class Workers(Protocol):
    """Who does a study's work."""

    def open(self, study: Study, model: ModelSpec, data: Tasks | Texts) -> tuple[SubjectFacts, Engine]:
        """Get ready for one model and its data."""
        ...


class LocalWorkers:
    """This process alone, with one model loaded at a time."""

    def __init__(self) -> None:
        self._loaded: tuple[ModelSpec, LoadedModel] | None = None

    def open(self, study: Study, model: ModelSpec, data: Tasks | Texts) -> tuple[SubjectFacts, Engine]:
        if self._loaded is None or self._loaded[0] != model:
            self._loaded = None  # the one before goes before the next one comes
            self._loaded = model, load_model(model, dtype=study.dtype)
        subject = read_data(self._loaded[1], data, **data_options(study, model))
        return subject.facts(), LocalEngine(subject)


def data_options(study: Study, model: ModelSpec) -> dict[str, Any]:
    """What ``read_data`` needs to know of a study."""
    return {
        "chat_template": model.chat_template, "offline": study.offline, "include_path": study.include_path,
        "batch_tokens": study.batch_tokens, "seed": study.seeds[0], "unit": study.unit,
    }  # fmt: skip


def check_study(study: Study) -> None:
    """Look for every model, device, calibration, task and text of a study, without loading a model.

    Raises:
        InputError: some cannot be had; each is named with its field.
    """
    wrong = [f"{field}: {complaint}" for field, check in _checks(study) if (complaint := _complaint(check)) is not None]
    if wrong:
        count = "one field" if len(wrong) == 1 else f"{len(wrong)} fields"
        raise InputError(f"The study {study.name!r} cannot start because of {count}. {' '.join(wrong)}")


def _checks(study: Study) -> Iterator[tuple[str, Callable[[], Any]]]:
    for i, model in enumerate(study.models):
        source = model.model, model.revision, model.allow_pickle, model.trust_remote_code
        yield f"models[{i}].model", partial(find_source, *source)
        yield f"models[{i}].device", partial(resolve_device, model.device)
        yield f"models[{i}].calibration", partial(_check_calibration, study, model)
    for i, data in enumerate(study.data):
        if isinstance(data, Texts):
            yield f"data[{i}].texts", partial(read_texts, data)
        else:
            yield f"data[{i}].tasks", partial(_load, study, data)


def _check_calibration(study: Study, model: ModelSpec) -> None:
    calibration = read_calibration(model.calibration)
    curves = [curve for curve in study.curves() if is_registered(score_of(curve))]  # others' files have not run yet
    calibration_of((), [get_score(score_of(curve)) for curve in curves], calibration)
    for curve in curves if study.num_policies() else ():
        check_policy(policy_at(curve, max(study.shares, default=0.1), calibration=calibration))


def _load(study: Study, data: Tasks) -> None:
    from headcount.tasks import load_tasks

    load_tasks(
        data.tasks, num_fewshot=data.num_fewshot, offline=study.offline or None, include_path=study.include_path,
        seed=study.seeds[0],
    )  # fmt: skip


def _complaint(check: Callable[[], Any]) -> str | None:
    try:
        check()
    except HeadcountError as error:
        return str(error)
    return None


def run_study(
    study: Study,
    folder: str | os.PathLike[str],
    *,
    workers: Workers | None = None,
    announce: Announce = silent,
    command: str = "",
) -> StudyFolder:
    """Do what a study asks for and the folder does not hold yet. The same call continues an interrupted one.

    The last stage makes every table of its runs, which ``StudyFolder.tables`` reads.

    Args:
        study: what to do.
        folder: a new folder, or one that holds this study.
        workers: who does it; this process if not given.
        announce: begins a step of progress.
        command: for the history.

    Raises:
        RunError: the folder holds another study, or another process works on it.
        ModelError: a model that cannot be had or measured.
        TaskError: a benchmark that cannot be had.
    """
    study, workers = study.with_own_scores(), workers or LocalWorkers()
    with begin_study(Path(folder), study, command) as opened:
        for model, data in study.cells():
            path = opened.run_path(model, data)
            title = f"{model.label} on {data.label}"
            if _is_finished(path, study, command):
                announce(f"{title} (done before)")(1, 1)
                continue

            def told(step: str, title: str = title) -> Callable[[int, int], None]:
                return announce(f"{title}: {step[:1].lower()}{step[1:]}")

            _run_cell(study, model, data, path, workers, told, command)
        analyse_study(opened, announce=announce)
        return opened


def _run_cell(
    study: Study, model: ModelSpec, data: Tasks | Texts, path: Path, workers: Workers, announce: Announce, command: str
) -> None:
    with announced(announce, "loading"):
        facts, engine = workers.open(study, model, data)
    with begun(path, facts, command=command, **run_settings(study)) as run:
        search, calibration = study.search, read_calibration(model.calibration)
        ids = facts.all_scores if study.scores == ("all",) else study.score_ids()
        measure_inputs(run, engine, ids, num_inputs=facts.num_inputs, calibration=calibration, announce=announce)
        cuts = find_thresholds(run, study.shares) if study.shares else None
        if not study.num_policies() or not facts.num_questions:
            return
        policies = study_policies(study, cuts, calibration) if cuts is not None and search is None else []
        asking = Asking(
            policies=tuple(policies), rule=study.rule() if policies or search else None,
            searched=tuple(study.curves()) if search else (), search=search or ShareSearch(),
            exclude_layers=frozenset(study.exclude_layers), calibration=calibration,
        )  # fmt: skip
        ask_policies(
            run, engine, policies, asking, workload=facts.workload, measured=run.measurements(), announce=announce
        )


def run_settings(study: Study) -> dict[str, Any]:
    """The manifest's ``settings``."""
    return {
        "seed": study.seeds[0], "shard": study.shard, "scores_dtype": study.scores_dtype, "summaries": study.summarised,
        **({} if study.unit == "head" else {"unit": study.unit}),
    }  # fmt: skip


def study_policies(study: Study, cuts: xr.Dataset, calibration: Calibration | None = None) -> list[Policy]:
    """Every policy of a study; share 0 is left out, since the untouched model is asked anyway."""
    excluded = frozenset(study.exclude_layers)
    policies = (
        policy_at(curve, share, seed=seed, exclude_layers=excluded, calibration=calibration).found(cuts)
        for curve in study.curves()
        for share in sorted({share for share in study.shares if share > 0})
        for seed in study.seeds
    )
    return list(dict.fromkeys(policies))  # where nothing is drawn, each seed gives the same


def _is_finished(path: Path, study: Study, command: str) -> bool:
    """Whether a run holds all that the study asks of it, undamaged; then its model need not be loaded again."""
    if not is_run(path):
        return False
    try:
        open_run(path)
    except Damaged:  # to be made anew
        return False
    with continue_run(path, command=command) as run:
        progress = run_progress(run)
        cuts = run.thresholds()
        if (
            run.settings.facts() | {"shard": study.shard} != run_settings(study)
            or progress.inputs_left
            or progress.answers_left
        ):
            return False
        if study.shares and (cuts is None or not set(study.shares) <= set(cuts["share"].values.tolist())):
            return False
        if not study.ask or not progress.num_questions:
            return True
        if search := study.search:
            known = run.manifest.searched
            if known is None or not asdict(search).items() <= known.facts().items():
                return False
            return known.scores.keys() >= set(study.curves()) and has_metrics(run)
        wanted = {policy.label for policy in study_policies(study, cuts)} if cuts is not None else set()
        return wanted <= set(run.answered()) and (not wanted or has_metrics(run))
