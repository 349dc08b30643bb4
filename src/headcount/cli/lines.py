"""Progress where there is no terminal: plain lines, so that a log shows what long work does."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Seconds that a step runs before it is worth a line, and between lines.
FIRST, EVERY = 5.0, 25.0


class Lines:
    """Says of the step that runs: what it is, how far, how long still. Short steps say nothing."""

    def __init__(self, say: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        self._due = 0.0
        self._steps: list[_Step] = []

    def start(self, what: str) -> Callable[[int, int], None]:
        """A new step; call what it returns with (done, total)."""
        now = self._clock()
        step = _Step(what, now)
        self._due = min(self._due, now + FIRST) if self._steps else now + FIRST
        self._steps.append(step)

        def update(done: int, total: int) -> None:
            step.update(done, total, self._clock())
            self.tick()
            if step.finished and step in self._steps:
                self._steps.remove(step)

        return update

    def tick(self) -> None:
        """Say how the latest step that is not finished stands, if that is due."""
        now = self._clock()
        running = [step for step in self._steps if not step.finished]
        if running and now >= self._due:
            self._due = now + EVERY
            self._say(running[-1].line(now))

    @contextmanager
    def ticking(self, seconds: float = 1.0) -> Iterator[None]:
        """Inside, lines come also while no step reports: while a model is loaded, say."""
        ended = threading.Event()

        def tick() -> None:
            while not ended.wait(seconds):
                self.tick()

        thread = threading.Thread(target=tick, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


class _Step:
    def __init__(self, what: str, begun: float) -> None:
        self._what, self._begun = what, begun
        self._first: tuple[float, int] | None = (
            None  # when it first reported, and what: an earlier command may have done it
        )
        self._done, self._total = 0, 0

    @property
    def finished(self) -> bool:
        return 0 < self._total <= self._done

    def update(self, done: int, total: int, now: float) -> None:
        if self._first is None:
            self._first = now, done
        self._done, self._total = done, total

    def line(self, now: float) -> str:
        since, before = self._first or (now, 0)
        far = f" {self._done:,} of {self._total:,}," if self._total > 1 else ""
        left = ""
        if (here := self._done - before) > 0:
            left = f", about {_time((now - since) * (self._total - self._done) / here)} left"
        return f"{self._what}:{far} {_time(now - self._begun)} so far{left}"


def _time(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
