"""Units of work: what is done as a whole or not at all, on any machine that holds the model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pandas as pd
import xarray as xr

from headcount.evaluation.benchmark import Answers
from headcount.measure import measure_heads, summarise_heads
from headcount.models.batching import Progress, no_progress
from headcount.policies import Policy, policy_facts
from headcount.study.subject import Subject
from headcount.summaries import Summary


class Unit(Protocol):
    """Work whose result depends on nothing but the unit and the subject."""

    @property
    def size(self) -> int:
        """How much it is, in the unit that the stage counts in."""
        ...

    def run(self, subject: Subject, progress: Progress) -> Any:
        """Do it; ``progress`` is called with (done, in all), in any unit."""
        ...


#: Hands a finished unit and its result over; called in the process that writes, in any order of units.
Keep = Callable[[Any, Any], object]


class Engine(Protocol):
    """Where units are done."""

    def work(self, units: Sequence[Unit], keep: Keep, progress: Progress = no_progress) -> None:
        """Do every unit; ``progress`` is called with (size done, size of all)."""
        ...


@dataclass(frozen=True, kw_only=True)
class MeasureShard:
    """Measure some inputs; gives their scores, or a summary of them."""

    shard: int
    first: int
    last: int
    scores: tuple[str, ...]
    seed: int
    summarise: bool

    @property
    def size(self) -> int:
        return self.last - self.first

    def run(self, subject: Subject, progress: Progress) -> xr.Dataset | Summary:
        measure = summarise_heads if self.summarise else measure_heads
        return measure(
            subject.model.model, subject.rows[self.first : self.last], scores=self.scores,
            batch_tokens=subject.batch_tokens, seed=self.seed, calibration=subject.model.calibration, unit=subject.unit,
            progress=progress,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AskShard:
    """Ask some questions under some policies; None is the untouched model. ``place``: of the first in the order of asking."""

    policies: tuple[Policy | None, ...]
    questions: tuple[int, ...]
    place: int

    def __getstate__(self) -> dict[str, Any]:
        """Calibrations are large, and who holds the subject has its own."""
        bare = tuple(policy and replace(policy, calibration=None) for policy in self.policies)
        return {**vars(self), "policies": bare}

    @property
    def size(self) -> int:
        return len(self.policies) * len(self.questions)

    @property
    def labels(self) -> list[str]:
        return [policy_facts(policy).policy for policy in self.policies]

    def run(self, subject: Subject, progress: Progress) -> Answers:
        assert subject.benchmark is not None
        return subject.benchmark.ask(self.policies, self.questions, progress=progress)


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """lm-eval's own metrics of saved outcomes, which take the benchmark's tasks."""

    outcomes: pd.DataFrame
    size: int = 1

    def run(self, subject: Subject, progress: Progress) -> pd.DataFrame:
        assert subject.benchmark is not None
        return subject.benchmark.metrics(self.outcomes)


class LocalEngine:
    """Does units one after the other, in this process."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def work(self, units: Sequence[Unit], keep: Keep, progress: Progress = no_progress) -> None:
        done, total = 0, sum(unit.size for unit in units)
        for unit in units:

            def within(part: int, whole: int, done: int = done, size: int = unit.size) -> None:
                progress(done + part * size // max(whole, 1), total)

            result = unit.run(self.subject, within)
            keep(unit, result)
            done += unit.size
            progress(done, total)
