"""A cluster: Ray actors that each hold one loaded model and take units of work."""

import logging
import os
import socket
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headcount.devices import broken_for_good
from headcount.errors import HeadcountError, InputError, RunError
from headcount.models.batching import Progress, no_progress
from headcount.scores import load_scores
from headcount.study.running import LocalWorkers
from headcount.study.spec import ModelSpec, Study, Tasks, Texts
from headcount.study.subject import SubjectFacts
from headcount.study.units import Engine, Keep, Unit

#: How often a unit, or the start of a worker, is tried.
_TRIES = 4


@dataclass(frozen=True)
class _Cell:
    """What a worker holds: a model with its data."""

    study: Study
    model: ModelSpec
    data: Tasks | Texts


class _Holder:
    """The actor: a process that keeps the model of its last cell loaded."""

    def __init__(self, threads: int | None) -> None:
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        self._workers = LocalWorkers()
        self._opened: tuple[_Cell, SubjectFacts, Any] | None = None

    def open(self, cell: _Cell) -> tuple[SubjectFacts, int, str]:
        """Get ready; gives what it holds, and the process and machine that hold it."""
        if self._opened is None or self._opened[0] != cell:
            for file in cell.study.scores_from:
                load_scores(file)
            self._opened = cell, *self._workers.open(cell.study, cell.model, cell.data)
        return self._opened[1], os.getpid(), socket.gethostname()

    def do(self, cell: _Cell, unit: Unit) -> Any:
        self.open(cell)
        assert self._opened is not None
        return unit.run(self._opened[2].subject, no_progress)


class _WorkerLost(Exception):
    """It died, or its GPU is of no use to it any more."""


class RayWorkers:
    """Workers on a Ray cluster.

    A worker that dies, or whose machine or GPU fails, is replaced, and the unit it was at is done by another. The process that
    runs the study alone writes to disk, so it may be stopped and started again like that of the local engine, and the
    machines need no common file system but for models, task files and texts given by their paths.

    Args:
        address: of a running cluster; ``auto`` for the one this machine belongs to; None starts one on this machine.
        workers: how many; None for as many as the cluster has room for.
        gpus: of each worker; None for one where the cluster has GPUs, else none.
        cpus: of each worker, and threads of its arithmetic: with the same number, results are those of the local
            engine, byte for byte.

    Raises:
        InputError: Ray is not installed, or the cluster has no room for a worker.
    """

    def __init__(
        self, *, address: str | None = None, workers: int | None = None, gpus: float | None = None, cpus: int = 1
    ) -> None:
        try:
            import ray
            import ray.exceptions
        except ImportError:
            raise InputError("The engine ray needs Ray. Install it with `pip install 'headcount[ray]'`.") from None
        self._ray: Any = ray
        os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # what matters is raised here
        if not ray.is_initialized():
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=None)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise InputError(
                    f"There is no Ray cluster at {address!r} ({error}). Start one with `ray start --head`, or leave the "
                    "address out."
                ) from error
        room = ray.cluster_resources()
        self._gpus = (1 if room.get("GPU") else 0) if gpus is None else gpus
        self._cpus = cpus
        fit = int(min(room.get("CPU", 0) / cpus, room.get("GPU", 0) / self._gpus if self._gpus else float("inf")))
        if fit < 1 or (workers is not None and workers > fit):
            raise InputError(
                f"The cluster has room for {fit} workers of {cpus} CPUs and {self._gpus:g} GPUs each, not for "
                f"{workers or 1}: it has {room.get('CPU', 0):g} CPUs and {room.get('GPU', 0):g} GPUs."
            )
        self._idle: deque[Any] = deque()
        self._starting: dict[Any, Any] = {}
        self._failed_starts = 0
        self.pids: dict[Any, tuple[int, str]] = {}
        """Process and machine of each worker that has started."""
        self._workers = [self._new() for _ in range(workers or fit)]

    def open(self, study: Study, model: ModelSpec, data: Tasks | Texts) -> tuple[SubjectFacts, Engine]:
        cell = _Cell(study, model, data)
        self._idle.clear()
        self._starting = {worker.open.remote(cell): worker for worker in self._workers}
        self._failed_starts = 0
        facts = None
        while facts is None:
            facts = self._started(cell, None, *self._ray.wait(list(self._starting))[0])
        return facts, _ClusterEngine(self, cell, facts)

    def work(self, cell: _Cell, facts: SubjectFacts, units: Sequence[Unit], keep: Keep, progress: Progress) -> None:
        waiting, running, tries = deque(units), {}, defaultdict(int)
        done, total = 0, sum(unit.size for unit in units)
        while waiting or running:
            while waiting and self._idle:
                worker, unit = self._idle.popleft(), waiting.popleft()
                running[worker.do.remote(cell, unit)] = worker, unit
            (ready, *_), _ = self._ray.wait([*running, *self._starting])
            if ready in self._starting:
                self._started(cell, facts, ready)
                continue
            worker, unit = running.pop(ready)
            try:
                result = self._get(ready)
            except _WorkerLost as error:
                tries[id(unit)] += 1
                if tries[id(unit)] == _TRIES:
                    pid, host = self.pids.get(worker, ("?", "?"))
                    raise RunError(
                        f"A worker died {_TRIES} times at the same work (process {pid} on {host}: {_first_line(error)}). Its "
                        "machine may be out of memory: lower batch_tokens, or give each worker more. What is finished is kept."
                    ) from error
                waiting.appendleft(unit)
                self._replace(worker, cell)
                continue
            self._idle.append(worker)
            keep(unit, result)
            done += unit.size
            progress(done, total)

    def close(self) -> None:
        """Let the workers go."""
        for worker in self._workers:
            self._ray.kill(worker)
        self._workers = []

    def _new(self) -> Any:
        holder = self._ray.remote(_Holder).options(
            num_cpus=self._cpus, num_gpus=self._gpus, max_restarts=0,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(self._cpus)}},
        )  # fmt: skip
        return holder.remote(None if self._gpus else self._cpus)

    def _replace(self, worker: Any, cell: _Cell) -> None:
        self._ray.kill(worker)
        self.pids.pop(worker, None)
        self._workers.remove(worker)
        self._workers.append(self._new())
        self._starting[self._workers[-1].open.remote(cell)] = self._workers[-1]

    def _started(self, cell: _Cell, expected: SubjectFacts | None, reference: Any) -> SubjectFacts | None:
        """A worker is ready, or died before it was: then None, and another is started."""
        worker = self._starting.pop(reference)
        try:
            facts, pid, host = self._get(reference)
        except _WorkerLost as error:
            self._failed_starts += 1
            if self._failed_starts == _TRIES:
                raise RunError(
                    f"Workers died {_TRIES} times while they loaded the model ({_first_line(error)})."
                ) from error
            self._replace(worker, cell)
            return None
        if expected is not None and facts != expected:
            raise RunError(
                f"Process {pid} on {host} holds another model or other data than the first one. Give all machines the same."
            )
        self.pids[worker] = pid, host
        self._idle.append(worker)
        return facts

    def _get(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayActorError as error:
            raise _WorkerLost(str(error)) from error
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, HeadcountError):
                raise error.cause from None
            if broken_for_good(cause := error.cause or error):
                raise _WorkerLost(str(cause)) from error
            raise


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")


class _ClusterEngine:
    """The workers with one cell open."""

    def __init__(self, workers: RayWorkers, cell: _Cell, facts: SubjectFacts) -> None:
        self._workers, self._cell, self._facts = workers, cell, facts

    def work(self, units: Sequence[Unit], keep: Keep, progress: Progress = no_progress) -> None:
        self._workers.work(self._cell, self._facts, units, keep, progress)
