"""Kills a study again and again, and compares what it leaves with an uninterrupted one.

Run as ``python -m tests.study.interrupt FOLDER``, where FOLDER holds ``model`` and ``tasks``: a process of its own, so
that it has a single thread and can fork children that have everything imported already. Prints what it found as JSON.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from headcount.study.running import run_study
from headcount.study.spec import Study
from tests.runs import contents

KILLS = 25


def studies(folder: Path) -> list[Study]:
    """The same study with every score kept, and with summaries; and one of neurons."""
    fields = {
        "models": [str(folder / "model")],
        "data": [{"tasks": "sums", "limit": 6}, {"texts": str(folder / "text.jsonl"), "limit": 5}],
        "scores": ["ahon_ln", "random"], "shares": [0, 0.2], "include_path": str(folder / "tasks"),
        "offline": True, "shard": 2,
    }  # fmt: skip
    of_neurons = fields | {"unit": "neuron", "scores": ["fhon/token", "griffin", "random"]}
    return [Study(**fields), Study(**fields, summaries=True), Study(**of_neurons)]


def child(work: Callable[[], object]) -> int:
    """Start ``work`` in a process of its own."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def stage(folder: Path) -> str:
    """What a study was at."""
    if any(folder.rglob("outcomes/*")):
        return "asking"
    return "measuring" if any(folder.rglob("run.json")) else "beginning"


def main(folder: Path, seed: int = 0) -> None:
    rng = random.Random(seed)
    kinds = studies(folder)
    expected, times = [], []
    for number, study in enumerate(kinds):
        run_study(study, folder / f"warm-{number}")  # imports what is imported late
        begun = time.monotonic()
        _, status = os.waitpid(
            child(lambda study=study, number=number: run_study(study, folder / f"whole-{number}")), 0
        )
        assert status == 0
        times.append(time.monotonic() - begun)
        expected.append(contents(folder / f"whole-{number}"))
        assert expected[-1] == contents(folder / f"warm-{number}")
    stages: list[str] = []
    differing: list[str] = []
    finished = 0
    while len(stages) < KILLS:
        kind = finished % len(kinds)
        path = folder / f"killed-{finished}"
        work = partial(run_study, kinds[kind], path)
        pid = child(work)
        time.sleep(rng.uniform(0, 0.8 * times[kind]))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            stages.append(stage(path))
            if len(stages) % 3 and len(stages) < KILLS:
                continue  # kill the one that continues it, too
            _, status = os.waitpid(child(work), 0)
        assert status == 0, f"{path} could not be finished"
        found = contents(path)
        differing += [
            f"{path.name}/{name}" for name in {*found, *expected[kind]} if found.get(name) != expected[kind].get(name)
        ]
        finished += 1
    print(json.dumps({"stages": stages, "finished": finished, "differing": differing, "files": len(expected[0])}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
