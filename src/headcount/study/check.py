"""Check a study before anything starts: what only shows when files, models and benchmarks are looked for."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from headcount.errors import HeadcountError, InputError
from headcount.models.loading import find_source, resolve_device
from headcount.study.spec import Study, Tasks, Texts
from headcount.study.subject import read_texts


def check_study(study: Study) -> None:
    """Look for every model, device, task and text of a study, without loading a model.

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
    for i, data in enumerate(study.data):
        if isinstance(data, Texts):
            yield f"data[{i}].texts", partial(read_texts, data)
        else:
            yield f"data[{i}].tasks", partial(_load, study, data)


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
