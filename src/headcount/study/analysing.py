"""The last stage of a study: every table that its runs give, from what they saved."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from headcount.analysis import Saved, all_tables
from headcount.models.batching import Progress
from headcount.published import published_curves
from headcount.store import Run, table_csv, write_atomically
from headcount.study.cuts import known_scores, saved_thresholds
from headcount.study.folder import StudyFolder
from headcount.study.verdicts import rule_of
from headcount.thresholding import thresholds


def analyse_runs(
    runs: Sequence[Run], *, metric: str | None = None, higher_is_better: bool | None = None, published: bool = True
) -> dict[str, pd.DataFrame]:
    """Every table that saved runs allow, as ``headcount.analysis.all_tables`` makes them.

    A model is called by its name in the run; where several runs hold the same of it, with each run's folder.

    Args:
        runs: of one or several models, on one or several data each.
        metric: that accuracy is measured by; ``acc`` if not given, or the first that can be judged.
        higher_is_better: which way it is better, where its tasks are not to be asked.
        published: put the paper's 14 models beside them.

    Raises:
        InputError: a metric that cannot be used.
    """
    held = [{(model_name(run), name) for name in (data_name(run), *run.manifest.data.tasks)} for run in runs]
    times = Counter(name for names in held for name in names)
    saved = [
        read_saved(
            run,
            model_name(run) + ("" if all(times[name] == 1 for name in names) else f" ({run.path})"),
            higher_is_better=higher_is_better,
        )
        for run, names in zip(runs, held, strict=True)
    ]
    return _tables(saved, metric, higher_is_better, published)


def analyse_study(study: StudyFolder, *, announce: Callable[[str], Progress] | None = None) -> dict[str, pd.DataFrame]:
    """Every table of a study's runs, kept in its folder; made anew only where a run has changed.

    Models and data are called as in the study.

    Raises:
        RunError: the folder cannot be written.
    """
    runs = study.runs()
    made_from = _made_from(runs.values())
    told = announce("making tables") if announce else None
    if not (kept := study.tables(made_from)):
        kept = _tables(
            [read_saved(run, model, data) for (model, data), run in runs.items()], None, None, published=True
        )
        study.write_tables(kept, made_from)
    if told:
        told(1, 1)
    return kept


def write_tables(folder: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """Each table in full as CSV."""
    for name, frame in tables.items():
        write_atomically(folder / f"{name}.csv", table_csv(frame).encode())


def read_saved(run: Run, model: str, data: str | None = None, higher_is_better: bool | None = None) -> Saved:
    """What a run holds, for ``all_tables``; named ``model`` and, if not by its tasks or texts, ``data``.

    ``higher_is_better`` is for a rule that does not say it.
    """
    scores = run.measurements()
    cuts = None if scores is None else saved_thresholds(run, scores)
    if cuts is None and scores is not None and (known := known_scores(scores)):
        cuts = thresholds(scores[known])
    return Saved(
        model=model,
        data=data or data_name(run),
        tasks=run.manifest.data.tasks,
        outcomes=run.outcomes(),
        until_decided=rule_of(run.manifest, higher_is_better),
        num_questions=run.manifest.data.num_questions,
        scores=scores,
        thresholds=cuts,
        units=run.manifest.model.units,
    )


def model_name(run: Run) -> str:
    return run.manifest.model.name or "unnamed model"


def data_name(run: Run) -> str:
    """Its tasks, or else its texts."""
    data = run.manifest.data
    return "+".join(data.tasks or [Path(text).stem for text in data.texts or ["unnamed data"]])


def _tables(
    saved: Sequence[Saved], metric: str | None, higher_is_better: bool | None, published: bool
) -> dict[str, pd.DataFrame]:
    curves = None
    if published:
        curves = published_curves()
        curves["model"] += " (published)"  # a model of one's own may have the same name
    return all_tables(saved, metric=metric, higher_is_better=higher_is_better, published=curves)


def _made_from(runs: Iterable[Run]) -> str:
    """A fingerprint of all that tables are made from."""
    facts = [version("headcount"), *(run.fingerprint() for run in runs)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
