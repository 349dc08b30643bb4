"""Kills prune, calibrate and export again and again, and compares what the next one leaves with an uninterrupted one.

Run as ``python -m tests.cli.interrupt FOLDER``, where FOLDER holds ``model``, ``run`` and ``other`` (a run): a process of its
own, so that it can fork children that have everything imported already. Prints what it found as JSON.
"""

import json
import os
import random
import signal
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path

import torch

from headcount.calibrating import calibrate
from headcount.errors import InputError
from headcount.models.loading import load
from headcount.removal.fitting import Fitting
from headcount.removal.prune import prune_heads
from headcount.removal.selection import Selection
from headcount.store import open_run
from headcount.store.export import export_run
from tests.runs import contents
from tests.study.interrupt import child

KILLS = 12  # of each kind
FILE = "calibration.safetensors"
UNFINISHED = ".target.making-", f".{FILE}.calibrating"


def works(folder: Path):
    """What is killed, by name: it writes to the path that it is given."""
    model, tokenizer = load(folder / "model")
    selection = Selection.of(model, [(0, 0), (0, 1), (1, 3)], name="tiny", kind="head", chosen={"score": "by hand"})
    rows = [[5, 6, 7, 8, 9, 10, 11, 12]] * 4

    def prune(target: Path) -> None:
        prune_heads(model, selection, target, Fitting(rows=rows), tokenizer=tokenizer, how="refit")

    def calibration(target: Path) -> None:
        with suppress(InputError):  # it is there, and what was left beside it goes
            calibrate(model, rows, batch_tokens=16, memory=1, gradients=True, into=target / FILE)

    def export(target: Path) -> None:
        export_run(open_run(folder / "run"), target, "csv")

    def replace(target: Path) -> None:
        if not target.exists():
            export_run(open_run(folder / "other"), target, "csv")
        export(target)

    return {"prune": prune, "calibrate": calibration, "export": export, "export over an older one": replace}


def main(folder: Path, seed: int = 0) -> None:
    rng = random.Random(seed)
    found = {}
    for name, work in works(folder).items():
        place = folder / name
        place.mkdir()
        work(place / "warm")  # imports what is imported late
        begun = time.monotonic()
        work(place / "whole")
        lasts = time.monotonic() - begun
        expected = contents(place / "whole")
        assert expected == contents(place / "warm")
        older = {}
        if name == "export over an older one":
            export_run(open_run(folder / "other"), place / "older", "csv")
            older = contents(place / "older")
        tries, killed, left, wrong = 0, 0, 0, []
        while killed < KILLS:
            target = place / f"{tries}/target"
            target.parent.mkdir()
            tries += 1
            if not os.WIFSIGNALED(kill_after(rng.uniform(0, 0.9 * lasts), work, target)):
                continue  # it was done before
            killed += 1
            seen = contents(target)
            seen = {file: seen[file] for file in seen if not any(name in file for name in UNFINISHED)}
            half = [file for file in seen if seen[file] not in (expected.get(file), older.get(file))]
            wrong += [f"{target}/{file} was half made" for file in half]
            left += sum(len(list(target.parent.rglob(f"{name}*"))) for name in UNFINISHED)
            if name != "prune" or not target.exists():
                _, status = os.waitpid(child(lambda w=work, t=target: quiet(w, t)), 0)
                assert status == 0, f"{target} could not be finished"
            wrong += [str(target)] * (contents(target) != expected)
            wrong += [str(path) for path in target.parent.iterdir() if path != target]
        found[name] = {"kills": killed, "leftovers": left, "wrong": wrong, "files": len(expected)}
    print(json.dumps(found))


def quiet(work, target: Path) -> None:
    warnings.simplefilter("ignore")
    work(target)


def kill_after(seconds: float, work, target: Path) -> int:
    """Start the work, kill it, and say how it ended."""
    pid = child(lambda: quiet(work, target))
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
