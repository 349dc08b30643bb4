import json
import os
import signal
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

import headcount
from headcount.errors import InputError
from headcount.study.cluster import RayWorkers

ROOT = Path(__file__).parents[2]
#: Seconds: for Ray to start, which can hang for ever on a machine that is too busy, and for all that follows.
START, WORK = 150, 300


def on_cluster(folder):
    """What ``tests.study.on_cluster`` finds; None if Ray did not start."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",  # a token would be written into the home folder
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(headcount.__file__).parents[1])]),
    }
    said, errors = folder / "said.txt", folder / "errors.txt"
    with said.open("w") as output, errors.open("w") as error_output:
        process = psutil.Popen(
            [sys.executable, "-m", "tests.study.on_cluster", str(folder)],
            cwd=ROOT, env=environment, stdout=output, stderr=error_output,
        )  # fmt: skip
    begun = time.monotonic()
    while process.poll() is None:
        taken = time.monotonic() - begun
        if taken > START + WORK or (taken > START and "ready" not in said.read_text()):
            for part in [*process.children(recursive=True), process]:  # Ray's processes outlive the one that began them
                with suppress(psutil.NoSuchProcess):
                    part.kill()
            process.wait()
        time.sleep(0.2)
    if process.returncode == -signal.SIGKILL and "ready" not in said.read_text():
        return None
    assert process.returncode == 0, errors.read_text()
    return json.loads((folder / "found.json").read_text())


@pytest.mark.skipif(
    "HEADCOUNT_TEST_CLUSTER" not in os.environ,
    reason="starts a Ray cluster of two machines and kills parts of it, which takes minutes: HEADCOUNT_TEST_CLUSTER=1 runs it",
)
@pytest.mark.timeout(900)
def test_a_cluster_gives_the_bytes_of_the_local_engine_though_driver_and_worker_die(subjects, tmp_path):
    for name in ("model", "tasks", "text.jsonl"):
        (tmp_path / name).symlink_to(subjects / name)
    found = on_cluster(tmp_path) or on_cluster(tmp_path)
    if found is None:  # Ray's own doing: nothing of headcount has run by then
        pytest.skip(f"Ray did not start two nodes on this machine, twice in {START} s")
    assert found["nodes"] == 2
    assert found["stopped after"] == 4
    assert found["killed"]
    assert found["differing"] == []
    assert found["files"] > 20
    assert found["replaced"]
    cpus, workers, gpus = found["refused"]
    assert "room for 0 workers of 8 CPUs and 0 GPUs each, not for 1: it has 2 CPUs" in cpus
    assert "room for 2 workers" in workers
    assert "not for 3" in workers
    assert "1 GPUs each" in gpus
    assert found["unknown model"].startswith("ModelError: There is no model folder './nowhere'")
    assert "A worker died 1 times at the same work (process " in found["deadly"]


def test_ray_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'headcount\[ray\]'"):
        RayWorkers()


class Named(SimpleNamespace):
    __hash__ = object.__hash__


def asked_of(function):
    return Named(remote=lambda *args: Named(result=partial(function, *args)))


class PretendedRay:
    """A cluster whose work is done when it is asked for, and whose GPU ``broken`` fails for good."""

    class exceptions:
        class RayActorError(Exception):
            pass

        class RayTaskError(Exception):
            def __init__(self, cause):
                super().__init__(str(cause))
                self.cause = cause

    def __init__(self, error):
        self.error, self.killed, self.num_started = error, [], 0

    def is_initialized(self):
        return True

    def cluster_resources(self):
        return {"CPU": 2, "GPU": 2}

    def remote(self, holder):
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda _: self._start()))

    def _start(self):
        self.num_started += 1
        number = self.num_started

        def do(cell, unit):
            if number == 1:
                raise self.exceptions.RayTaskError(self.error)
            return number, unit

        return Named(number=number, open=asked_of(lambda cell: (self, number, "here")), do=asked_of(do))

    def wait(self, references):
        return references[:1], references[1:]

    def get(self, reference):
        return reference.result()

    def kill(self, worker):
        self.killed.append(worker.number)


def on_pretended_ray(monkeypatch, error):
    ray = PretendedRay(error)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.exceptions", ray.exceptions)
    _, engine = RayWorkers(workers=1).open(None, None, None)
    kept = []
    unit = SimpleNamespace(size=1)
    engine.work([unit], lambda unit, result: kept.append(result[0]))
    return ray, kept


@pytest.mark.parametrize(
    "said", ["CUDA error: an illegal memory access was encountered", "HIP error: unspecified launch failure"]
)
def test_a_worker_whose_gpu_failed_for_good_is_replaced(monkeypatch, said):
    ray, kept = on_pretended_ray(monkeypatch, RuntimeError(said))
    assert ray.killed == [1]
    assert kept == [2]


@pytest.mark.parametrize("said", ["shapes do not fit", "CUDA error: out of memory"])
def test_other_errors_of_a_worker_end_the_work(monkeypatch, said):
    with pytest.raises(PretendedRay.exceptions.RayTaskError, match=said):
        on_pretended_ray(monkeypatch, RuntimeError(said))
