"""The last stage of a study: every table that its runs give, from what they saved."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from headcount.analysis import RunTables, Statistics, all_tables
from headcount.files import checksum
from headcount.published import published_curves
from headcount.store import Run, table_csv, write_atomically
from headcount.study.cuts import cuts_of
from headcount.study.folder import StudyFolder
from headcount.study.progress import Announce, announced, rule_of, silent
from headcount.units import KINDS


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
    tables = [
        read_tables(
            run,
            model_name(run) + ("" if all(times[name] == 1 for name in names) else f" ({run.path})"),
            metric=metric,
            higher_is_better=higher_is_better,
        )
        for run, names in zip(runs, held, strict=True)
    ]
    return _tables(tables, published)


def analyse_study(study: StudyFolder, *, announce: Announce = silent) -> dict[str, pd.DataFrame]:
    """Every table of a study's runs, kept in its folder; made anew only where a run has changed.

    Models and data are called as in the study.

    Raises:
        RunError: the folder cannot be written.
    """
    runs = study.runs()
    made_from = _made_from(runs.values())
    with announced(announce, "making tables"):
        if not (kept := study.tables(made_from)):
            kept = _tables([read_tables(run, model, data) for (model, data), run in runs.items()])
            study.write_tables(kept, made_from)
    return kept


def write_tables(folder: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """Each table in full as CSV."""
    for name, frame in tables.items():
        write_atomically(folder / f"{name}.csv", table_csv(frame).encode())


def read_tables(
    run: Run,
    model: str | None = None,
    data: str | None = None,
    *,
    metric: str | None = None,
    higher_is_better: bool | None = None,
) -> RunTables:
    """The tables of a run, each made when it is asked for.

    Args:
        run: it.
        model: what to call its model; its name in the run if not given.
        data: what to call its data; its tasks or texts if not given.
        metric: that accuracy is measured by; that of the run's settings or else as from ``main_metric`` if not given.
        higher_is_better: which way it is better, where neither the settings nor its tasks are to be asked.
    """
    scores, settings = run.measurements(), run.settings
    return RunTables(
        model=model or model_name(run), data=data or data_name(run), tasks=run.manifest.data.tasks,
        outcomes=run.outcomes(), until_decided=rule_of(run.manifest, higher_is_better),
        num_questions=run.manifest.data.num_questions, scores=scores,
        thresholds=None if scores is None else cuts_of(run, scores), units=run.manifest.units,
        metric=metric or settings.metric,
        higher_is_better=settings.higher_is_better if higher_is_better is None else higher_is_better,
    )  # fmt: skip


def named_units(runs: Iterable[Run]) -> str:
    """What several runs are of, for titles."""
    kinds = {KINDS[run.manifest.unit].short for run in runs}
    return kinds.pop() if len(kinds) == 1 else "units"


def model_name(run: Run) -> str:
    return run.manifest.model.name or "unnamed model"


def data_name(run: Run) -> str:
    """Its tasks, or else its texts."""
    data = run.manifest.data
    return "+".join(data.tasks or [Path(text).stem for text in data.texts or ["unnamed data"]])


def _tables(runs: Sequence[RunTables], published: bool = True) -> dict[str, pd.DataFrame]:
    curves = None
    if published and all(run.kind == "head" for run in runs):
        curves = published_curves()
        curves["model"] += " (published)"  # a model of one's own may have the same name
    return all_tables(runs, published=curves)


def _made_from(runs: Iterable[Run]) -> str:
    """A fingerprint of all that tables are made from."""
    facts = [version("headcount"), vars(Statistics()), *(run.fingerprint() for run in runs)]
    return checksum(json.dumps(facts).encode())
