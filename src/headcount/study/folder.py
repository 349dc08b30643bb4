"""A study on disk: its manifest, and a run in a folder of its own for each model and data."""

import io
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import Field

from headcount.errors import InputError, RunError
from headcount.files import checksum, kind, read_file
from headcount.store import Manifest, Run, environment, is_run, open_run, table_csv, write_atomically
from headcount.store.files import WRITTEN, Damaged, Shard, check_parts, damaged, is_whole, leftovers
from headcount.store.folder import MANIFEST as RUN
from headcount.store.lock import HOLDER, claimed, holder
from headcount.store.manifest import Facts, NotedScore, Sealed
from headcount.store.names import slug
from headcount.store.run import noted_facts
from headcount.study.spec import ModelSpec, Study, Tasks, Texts

MANIFEST, TABLES = "study.json", "tables"
_INDEX = "index.json"  # of tables, in format 1


class _Tables(Facts):
    """What the tables were made from, empty while they are made anew, and each file's checksum."""

    made_from: str
    files: dict[Annotated[str, Field(pattern=r"^\w+\.(csv|parquet)$")], str]


class StudyManifest(Sealed):
    """What was asked for, how it was begun, and which tables were made."""

    formats = (1, 2)
    holds = "study"

    study: dict[str, Any]
    scores: dict[str, NotedScore] = Field(default={})
    tables: _Tables | None = None


@dataclass(kw_only=True)
class StudyFolder:
    """A study on disk: ``study.json``, a run in ``runs/MODEL/DATA`` for each model and data, and ``tables``.

    Attributes:
        path: the folder.
        study: what was asked for.
        manifest: what ``study.json`` says.
    """

    path: Path
    study: Study
    manifest: StudyManifest

    def run_path(self, model: ModelSpec, data: Tasks | Texts) -> Path:
        return self.path / "runs" / slug(model.label) / slug(data.label)

    def runs(self) -> dict[tuple[str, str], Run]:
        """The runs that were begun, by the labels of model and data."""
        paths = {(model.label, data.label): self.run_path(model, data) for model, data in self.study.cells()}
        return {labels: open_run(path) for labels, path in paths.items() if is_run(path)}

    def score_ids(self) -> list[str]:
        """Of the scores that were asked for, as they were known then."""
        return list(self.manifest.scores or self.study.score_ids())

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
        known = self.manifest.tables
        if known is None or not known.made_from or made_from not in (None, known.made_from) or any(self.faults()):
            return {}  # gone or damaged ones the next command makes anew
        names = [name.removesuffix(".parquet") for name in known.files if name.endswith(".parquet")]
        try:
            content = {name: read_file(self.path / TABLES / f"{name}.parquet") for name in names}
            return {name: pd.read_parquet(io.BytesIO(held)) for name, held in content.items()}
        except (OSError, ValueError) as error:
            raise damaged(self.path / TABLES, str(error)) from error

    def write_tables(self, tables: Mapping[str, pd.DataFrame], made_from: str) -> None:
        """Keep each table as CSV for people, and as parquet; those before go.

        Raises:
            RunError: the folder cannot be written.
        """
        folder, before = self.path / TABLES, self.manifest.tables
        if before is not None:
            self.update(
                tables={"made_from": "", "files": before.files}
            )  # whoever dies now leaves none, not damaged ones
        for name in (*(before.files if before else ()), _INDEX):
            if kind(folder / name) == "file":
                (folder / name).unlink()
        for file in leftovers(folder):
            file.unlink()
        files = {}
        for name, frame in tables.items():
            buffer = io.BytesIO()
            frame.to_parquet(buffer, index=False)
            for extension, content in (("csv", table_csv(frame).encode()), ("parquet", buffer.getvalue())):
                write_atomically(folder / f"{name}.{extension}", content)
                files[f"{name}.{extension}"] = checksum(content)
        self.update(tables={"made_from": made_from, "files": files})

    def update(self, **facts: Any) -> None:
        """Write facts into the manifest."""
        manifest = self.manifest.changed(**facts)
        write_atomically(self.path / MANIFEST, manifest.content())
        self.manifest = manifest

    def faults(self) -> tuple[list[Path], list[Path]]:
        """Tables that are damaged, and tables and runs that were there and are gone."""
        known = self.manifest.tables
        if known is None or not known.made_from:
            return [], []
        files = {self.path / TABLES / name: known_as for name, known_as in known.files.items()}
        gone = [file for file in files if kind(file) is None]
        paths = [self.run_path(model, data) for model, data in self.study.cells()]
        gone += [path / RUN for path in paths if not is_run(path)]
        there = (Shard(file, file.stem, known_as) for file, known_as in files.items() if file not in gone)
        return [shard.path for shard in there if not is_whole(shard)], gone


@contextmanager
def begin_study(folder: Path, study: Study, command: str) -> Iterator[StudyFolder]:
    """Make a study, or continue the one in the folder if it is the same or part of it, as its only writer.

    Raises:
        RunError: the folder is another study's, holds other things, cannot be written, or another process works on it.
    """
    with claimed(folder, "study", _is_own, command):
        for name in (MANIFEST, HOLDER):
            for file in leftovers(folder, name):
                file.unlink()
        asked = {"study": study.model_dump(mode="json"), "scores": noted_facts(study.score_ids())}
        opened = None
        if _is_own(folder):
            try:
                opened = open_study(folder)
                _check_same(opened, study)
            except Damaged:
                warnings.warn(f"{str(folder / MANIFEST)!r} was damaged; it is made anew.", stacklevel=3)
        if opened is None:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            facts = {"created": now, "command": command, "environment": environment(), **asked}
            opened = StudyFolder(path=folder, study=study, manifest=StudyManifest.of(facts))
            opened.update()
        elif any(opened.manifest.facts().get(name) != value for name, value in asked.items()):
            tables = opened.manifest.tables  # to be made of other runs
            opened.update(**asked, tables=tables and {"made_from": "", "files": tables.files})
        yield replace(opened, study=study)


def _is_own(folder: Path) -> bool:
    return is_study(folder) or holds_runs(folder)


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
    file = path / MANIFEST
    check_parts(path)
    try:
        manifest = StudyManifest.read(file)
        return StudyFolder(path=path, study=Study.saved(manifest.study), manifest=manifest)
    except FileNotFoundError:
        if holds_runs(path):
            raise damaged(file, "it is gone") from None
        raise RunError(
            f"{str(path)!r} holds no study (no {MANIFEST}). Make one with `headcount study STUDY.yaml -o {path}`."
        ) from None
    except (InputError, LookupError, TypeError) as error:
        raise damaged(file, str(error)) from error


def is_study(path: str | os.PathLike[str]) -> bool:
    """Whether there is a study in the folder."""
    return kind(Path(path) / MANIFEST) is not None


def holds_runs(path: Path) -> bool:
    """Whether there are runs where a study has them, be its manifest gone."""
    return any(map(is_run, run_folders(path)))


def run_folders(study: Path) -> Iterator[Path]:
    """Every folder that can hold a run of the study, whatever the study says."""
    return (path for path in sorted((study / "runs").glob("*/*")) if kind(path) == "folder")


def find_faults(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files that are damaged or altered, and those that are gone. Reads every file; no damage hides another.

    Raises:
        RunError: there is neither a run nor a study, or a part of it is no file or folder of its own.
    """
    altered: list[Path] = []
    missing: list[Path] = []
    if not is_run(folder) and (is_study(folder) or holds_runs(folder)):
        check_parts(folder)
        try:
            for found, kept in zip(open_study(folder).faults(), (altered, missing), strict=True):
                kept += found
        except RunError:
            (altered if kind(folder / MANIFEST) else missing).append(folder / MANIFEST)
        runs = [path for path in run_folders(folder) if is_run(path)]
    else:
        runs = [folder]
    for path in runs:
        check_parts(path)
        try:
            run = open_run(path)
        except RunError:
            if kind(path / RUN) is None and not is_run(path):
                raise
            (altered if kind(path / RUN) else missing).append(path / RUN)
            run = Run(path, Manifest())
        altered += run.damaged()
        try:
            missing += [file for file in run.missing() if file not in missing]
        except Damaged:
            altered.append(path / WRITTEN)
    return altered, missing
