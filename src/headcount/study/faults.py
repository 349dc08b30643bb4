"""Which files of a run or study are not what was written."""

from pathlib import Path

from headcount.errors import RunError
from headcount.store import Manifest, Run, is_run, open_run
from headcount.store.files import WRITTEN, Damaged, check_parts, kind
from headcount.study.folder import MANIFEST, holds_runs, is_study, open_study, run_folders


def find_faults(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files that are damaged or altered, and those that are gone. Reads every file; no damage hides another.

    Raises:
        RunError: there is neither a run nor a study, or a part of it is no file or folder of its own.
    """
    damaged: list[Path] = []
    missing: list[Path] = []
    if not is_run(folder) and (is_study(folder) or holds_runs(folder)):
        check_parts(folder)
        try:
            for found, kept in zip(open_study(folder).faults(), (damaged, missing), strict=True):
                kept += found
        except RunError:
            (damaged if kind(folder / MANIFEST) else missing).append(folder / MANIFEST)
        runs = [path for path in run_folders(folder) if is_run(path)]
    else:
        runs = [folder]
    for path in runs:
        check_parts(path)
        try:
            run = open_run(path)
        except RunError:
            manifest = path / "run.json"
            if kind(manifest) is None and not is_run(path):
                raise
            (damaged if kind(manifest) else missing).append(manifest)
            run = Run(path, Manifest())
        damaged += run.damaged()
        try:
            missing += [file for file in run.missing() if file not in missing]
        except Damaged:
            damaged.append(path / WRITTEN)
    return damaged, missing
