"""What is given to ``measure_run`` and ``evaluate_run``, made sense of: names, kinds of units, models and calibrations."""

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headcount.calibration import Calibration
from headcount.errors import InputError
from headcount.policies import read_curve
from headcount.scores import select_scores
from headcount.store import is_run, open_run
from headcount.store.files import Damaged
from headcount.study.progress import Announce, announced, silent
from headcount.study.spec import ModelSpec, Tasks, Texts
from headcount.study.subject import LoadedModel, load_model, read_calibration, read_texts
from headcount.tasks import check_tasks
from headcount.units import KindId, checked_kind

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def named_tasks(
    tasks: str | Sequence[str],
    *,
    num_fewshot: int | None,
    limit: float | None,
    include_path: str | Path | None,
    announce: Announce = silent,
) -> Tasks:
    """Questions by the names of their tasks. What is wrong with names and number is said before a model is loaded."""
    names = tuple(several(tasks))
    with announced(announce, "Looking up the tasks"):
        check_tasks(names, limit=limit, include_path=include_path)
    return Tasks.model_construct(tasks=names, num_fewshot=num_fewshot, limit=None if limit is None else float(limit))


def named_texts(
    texts: str | Sequence[str],
    *,
    limit: float | None,
    text_column: str = "text",
    max_length: int | None = None,
    too_long: str = "refuse",
) -> Texts:
    """Texts by the names of their files or data sets. What is wrong with them is said before a model is loaded."""
    if limit is not None and not float(limit).is_integer():
        raise InputError(f"--limit is a whole number of texts, not {limit}.")
    data = Texts.model_construct(
        texts=tuple(map(os.fspath, several(texts))), text_column=text_column,
        limit=None if limit is None else int(limit), max_length=max_length, too_long=too_long,
    )  # fmt: skip
    read_texts(data)
    return data


def several(given: Any) -> Iterable[Any]:
    """One name or path stands for a list of one, and None for none."""
    if given is None or given == "":
        return ()
    if isinstance(given, str | os.PathLike):
        return (given,)
    if not isinstance(given, Iterable):
        raise InputError(f"A name, a path or a list of them is needed, not {given!r:.60}.")
    return given


def unit_asked(given: str | None, *folders: str | os.PathLike[str] | None) -> KindId:
    """The kind of unit that is said, or else that of the first folder with a run."""
    if given is not None:
        return checked_kind(given)
    for folder in folders:
        with suppress(Damaged):  # which says more about itself where it is opened
            if folder is not None and is_run(Path(folder)):
                return open_run(folder).manifest.unit
    return "head"


def searched_scores(search: Iterable[str], unit: KindId) -> tuple[str, ...]:
    names = [*several(search)]
    curves = dict.fromkeys(read_curve(name) for name in names if name != "all")
    return tuple(score.id for score in select_scores("all", unit)) if "all" in names else tuple(curves)


def described(model: "str | ModelSpec | PreTrainedModel") -> ModelSpec:
    """What the model is called, and how it is loaded; one that is loaded is called by where it came from."""
    if isinstance(model, ModelSpec):
        return model
    name = model if isinstance(model, str) else getattr(model, "name_or_path", "") or ""
    return ModelSpec.model_construct(model=name)


def given_calibration(given: Calibration | str | os.PathLike[str] | None, spec: ModelSpec) -> Calibration | None:
    """The calibration that is given, or that the model's specification names."""
    return given if isinstance(given, Calibration) else read_calibration(given or spec.calibration)


def loaded_model(
    model: "str | ModelSpec | PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase | None",
    calibration: Calibration | None,
    announce: Announce,
) -> LoadedModel:
    spec = described(model)
    if isinstance(model, str | ModelSpec):
        return replace(load_model(spec, announce=announce), calibration=calibration)
    if tokenizer is None:
        raise InputError("A model that is loaded goes with its tokenizer: pass both that `load` gave.")
    return LoadedModel(spec=spec, model=model, tokenizer=tokenizer, calibration=calibration)
