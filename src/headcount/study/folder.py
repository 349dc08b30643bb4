"""A study on disk: its manifest, and a run in a folder of its own for each model and data."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from headcount.errors import InputError, RunError
from headcount.store import Run, environment, is_run, open_run, write_atomically
from headcount.store.described import noted_facts
from headcount.store.files import leftovers
from headcount.store.lock import claimed, holder
from headcount.store.names import slug
from headcount.study.spec import ModelSpec, Study, Tasks, Texts

_MANIFEST = "study.json"
TABLES, TABLES_INDEX = "tables", "index.json"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class StudyFolder:
    """A study on disk: ``study.json``, a run in ``runs/MODEL/DATA`` for each model and data, and ``tables``.

    Attributes:
        path: the folder.
        study: what was asked for.
        manifest: what ``study.json`` says.
    """

    path: Path
    study: Study
    manifest: dict[str, Any]

    def run_path(self, model: ModelSpec, data: Tasks | Texts) -> Path:
        return self.path / "runs" / slug(model.label) / slug(data.label)

    def runs(self) -> dict[tuple[str, str], Run]:
        """The runs that were begun, by the labels of model and data."""
        paths = {(model.label, data.label): self.run_path(model, data) for model, data in self.study.cells()}
        return {labels: open_run(path) for labels, path in paths.items() if is_run(path)}

    def score_ids(self) -> list[str]:
        """Of the scores that were asked for, as they were known then."""
        return list(self.manifest.get("scores") or self.study.score_ids())

    def holder(self) -> dict[str, Any] | None:
        """Who works on the study just now (pid, host, since, command), None if nobody does."""
        return holder(self.path)

    def outcomes(self) -> pd.DataFrame | None:
        """All outcomes, with the columns ``model`` and ``data`` in front; None if there are none."""
        frames = []
        for (model, data), run in self.runs().items():
            if (outcomes := run.outcomes()) is not None:
                outcomes.insert(0, "model", model)
                outcomes.insert(1, "data", data)
                frames.append(outcomes)
        return pd.concat(frames, ignore_index=True) if frames else None

    def tables(self, made_from: str | None = None) -> dict[str, pd.DataFrame]:
        """Every table of the runs, by name, as the study's last stage made them.

        Empty before that; with ``made_from``, also where they were made from other results than it names.
        """
        try:
            known = json.loads((self.path / TABLES / TABLES_INDEX).read_text(encoding="utf-8"))
            if made_from not in (None, known["made_from"]):
                return {}
            names = [name for name in known["tables"] if slug(name) == name]  # files of this folder
            return {name: pd.read_parquet(self.path / TABLES / f"{name}.parquet") for name in names}
        except (OSError, ValueError, LookupError, TypeError):  # gone or damaged: the next command makes them anew
            return {}


@contextmanager
def begin_study(folder: Path, study: Study, command: str) -> Iterator[StudyFolder]:
    """Make a study, or continue the one in the folder if it is the same or part of it, as its only writer.

    Raises:
        RunError: the folder is another study's, holds other things, cannot be written, or another process works on it.
    """
    with claimed(folder, "study", is_study, command):
        for file in leftovers(folder, _MANIFEST):
            file.unlink(missing_ok=True)
        if is_study(folder):
            opened = open_study(folder)
            manifest = opened.manifest
            _check_same(opened, study)
        else:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            manifest = {"format": FORMAT, "created": now, "command": command, "environment": environment()}
        asked = {"study": study.model_dump(mode="json"), "scores": noted_facts(study.score_ids())}
        if any(manifest.get(name) != value for name, value in asked.items()):
            manifest |= asked
            write_atomically(folder / _MANIFEST, json.dumps(manifest, indent=1).encode())
        yield StudyFolder(path=folder, study=study, manifest=manifest)


def _check_same(opened: StudyFolder, study: Study) -> None:
    """Models, data and shares may be added to a study; whatever else differs makes it another one."""
    before, now = opened.study.model_dump(mode="json"), study.model_dump(mode="json")
    differing = []
    for field, there in before.items():
        here = now[field]
        if field in ("models", "data", "shares"):
            differing += [f"{field} {entry!r} is there and not here" for entry in there if entry not in here]
        elif field != "batch_tokens" and here != there:
            differing.append(f"{field} is {there!r} there and {here!r} here")
    if differing:
        raise RunError(f"{str(opened.path)!r} is another study: {'; '.join(differing)}. Choose another folder with -o.")


def open_study(folder: str | os.PathLike[str]) -> StudyFolder:
    """An existing study, to read.

    Raises:
        RunError: no study there, a damaged manifest, or a format of a newer headcount.
    """
    path = Path(folder)
    file = path / _MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        found = manifest["format"]
    except FileNotFoundError:
        raise RunError(
            f"{str(path)!r} holds no study (no {_MANIFEST}). Make one with `headcount study STUDY.yaml -o {path}`."
        ) from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunError(f"{str(file)!r} cannot be read ({error}). Make the study again.") from error
    if found != FORMAT:
        raise RunError(f"{str(path)!r} has format {found}, this headcount reads format {FORMAT}. Upgrade headcount.")
    try:
        return StudyFolder(path=path, study=Study.saved(manifest["study"]), manifest=manifest)
    except (InputError, LookupError, TypeError) as error:
        raise RunError(f"{str(file)!r} cannot be read ({error}). Make the study again.") from error


def is_study(path: str | os.PathLike[str]) -> bool:
    """Whether there is a study in the folder."""
    return (Path(path) / _MANIFEST).is_file()
