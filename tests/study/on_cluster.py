"""A study on a Ray cluster of two machines, both of them this one, with a driver and a worker that die in the middle.

Run as ``python -m tests.study.on_cluster FOLDER``, where FOLDER holds ``model``, ``tasks`` and ``text.jsonl``: a process
of its own, so that what Ray leaves behind ends with it. Prints ``ready`` when Ray has both nodes, which is before
headcount does anything, and leaves what it found in ``found.json``.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import ray
import torch
from ray.cluster_utils import Cluster

from headcount.errors import HeadcountError
from headcount.store import Run
from headcount.study import cluster as headcount_cluster
from headcount.study.cluster import RayWorkers
from headcount.study.running import run_study
from headcount.study.spec import Study
from tests.runs import contents

NODE = {"num_cpus": 1, "object_store_memory": 80 * 1024**2}
#: Start no worker that nobody asked for, and wait for those that are slow on a busy machine.
CONFIG = {
    "enable_worker_prestart": False, "prestart_worker_first_driver": False, "worker_register_timeout_seconds": 240,
}  # fmt: skip


def study(folder: Path, **changes: object) -> Study:
    fields = {
        "models": [str(folder / "model")], "data": ["sums", {"texts": str(folder / "text.jsonl")}],
        "scores": ["ahon_ln", "random"], "shares": [0, 0.1, 0.3], "include_path": str(folder / "tasks"),
        "offline": True, "shard": 2,
    }  # fmt: skip
    return Study(**(fields | changes))


def wait_for_both(workers: RayWorkers, asked: Study) -> None:
    """Until both workers have loaded the model."""

    class Nap:  # inside a function, so that it travels with its code
        size = 1

        def run(self, subject: object, progress: object) -> None:
            time.sleep(0.1)

    _, engine = workers.open(asked, *next(asked.cells()))
    while len(workers.pids) < 2:
        engine.work([Nap()], lambda unit, result: None)


def refusal(work: object) -> str:
    try:
        work()  # type: ignore[operator]
    except HeadcountError as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def main(folder: Path) -> None:
    cluster = Cluster(
        initialize_head=True, head_node_args=NODE | {"include_dashboard": False, "_system_config": CONFIG}
    )
    cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    print("ready", flush=True)
    workers = RayWorkers(address=cluster.address)
    found: dict[str, object] = {
        "refused": [
            refusal(lambda: RayWorkers(address=cluster.address, cpus=8)),
            refusal(lambda: RayWorkers(address=cluster.address, workers=3)),
            refusal(lambda: RayWorkers(address=cluster.address, gpus=1)),
        ]
    }
    asked = study(folder)
    local = contents(run_study(asked, folder / "local").path)
    wait_for_both(workers, asked)
    found["nodes"] = len(ray.nodes())

    keep, calls = Run.add_outcomes, []

    def kept(self: Run, *args: object) -> None:
        keep(self, *args)  # type: ignore[arg-type]
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        if len(calls) == 7:
            found["killed"] = victim
            os.kill(victim, signal.SIGKILL)

    Run.add_outcomes = kept  # type: ignore[method-assign]
    victim = next(iter(workers.pids.values()))[0]
    try:
        run_study(asked, folder / "cluster", workers=workers)
    except KeyboardInterrupt:
        found["stopped after"] = len(calls)
    done = run_study(asked, folder / "cluster", workers=workers)
    Run.add_outcomes = keep  # type: ignore[method-assign]
    there = contents(done.path)
    found["differing"] = [name for name in {*local, *there} if local.get(name) != there.get(name)]
    found["files"] = len(there)
    wait_for_both(workers, asked)
    found["replaced"] = victim not in {pid for pid, _ in workers.pids.values()}

    found["unknown model"] = refusal(
        lambda: run_study(study(folder, models=["./nowhere"]), folder / "x", workers=workers)
    )

    class Deadly:
        size = 1

        def run(self, subject: object, progress: object) -> None:
            os._exit(1)

    headcount_cluster._TRIES = 1
    _, engine = workers.open(asked, *next(asked.cells()))
    found["deadly"] = refusal(lambda: engine.work([Deadly()], lambda unit, result: None))
    workers.close()
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)  # as each worker has
    main(Path(sys.argv[1]))
