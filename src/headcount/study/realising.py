"""Thresholds at which the share that was asked for comes about: found while heads are off, not on the untouched model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from headcount.errors import RunError
from headcount.evaluation.engine import run_plan
from headcount.evaluation.plan import ScoringPlan
from headcount.models.batching import Progress
from headcount.policies import Policy, Threshold
from headcount.store import Run
from headcount.study.progress import Announce
from headcount.study.subject import Subject
from headcount.study.units import Engine
from headcount.summaries import Summary
from headcount.thresholding import thresholds

#: Shares of the untouched model's scores whose thresholds are tried, and those between them.
_GRID = np.linspace(0, 1, 401)
#: Inputs that are read for it, evenly spaced, how near the share has to come, and how often it is tried.
INPUTS, NEAR, TRIES = 64, 0.005, 10


@dataclass(frozen=True, kw_only=True)
class Realise:
    """Find the threshold at which a policy switches off the share that it names; gives it with the share it came to."""

    policy: Threshold
    cuts: tuple[float, ...]  # the untouched model's, at _GRID
    seed: int  # of random numbers that the score reads

    @property
    def size(self) -> int:
        return TRIES

    def run(self, subject: Subject, progress: Progress) -> tuple[float, float]:
        rows = [list(row) for row in dict.fromkeys(map(tuple, subject.rows))]
        rows = [
            rows[i] for i in dict.fromkeys(np.linspace(0, len(rows) - 1, min(INPUTS, len(rows))).round().astype(int))
        ]
        plan = ScoringPlan(inputs=rows, input_of=[], continuations=[], num_truncated=0)
        policy = self.policy.calibrated(subject.model.calibration)
        wanted = policy.share
        assert wanted is not None

        def at(share: float) -> tuple[float, float]:
            cut = float(np.interp(share, _GRID, self.cuts))
            tried = replace(policy, threshold=cut)
            given = run_plan(
                subject.model.model, plan, [tried], batch_tokens=subject.batch_tokens, seed=self.seed, unit=subject.unit
            )
            return cut, float(given.of_policies[0].share_off.mean())

        low, high = (0.0, 0.0), (1.0, 1.0)  # (share of the untouched model's scores, share that it came to)
        share, best = wanted, (float("nan"), float("inf"))
        for number in range(TRIES):
            cut, off = at(share)
            if abs(off - wanted) < abs(best[1] - wanted):
                best = cut, off
            progress(number + 1, TRIES)
            if abs(off - wanted) <= NEAR:
                break
            low, high = ((share, off), high) if off < wanted else (low, (share, off))
            between = (wanted - low[1]) / (high[1] - low[1]) if high[1] > low[1] else 0.5
            share = low[0] + (high[0] - low[0]) * min(max(between, 0.1), 0.9)
        return best


def realise(
    run: Run, engine: Engine, policies: Sequence[Policy], measured: xr.Dataset | Summary | None, announce: Announce
) -> list[Policy]:
    """Policies with the thresholds that are to be found under the intervention; those that the run knows are not sought again.

    Raises:
        RunError: no scores are measured, or the share does not come about within a point at any threshold.
    """
    known = {entry.policy: entry.threshold for entry in run.manifest.policies}
    found: list[Policy] = []
    for policy in policies:
        if not (isinstance(policy, Threshold) and policy.realised and policy.threshold is None):
            found.append(policy)
            continue
        cut = known.get(policy.label)
        if cut is None:
            if measured is None:
                raise RunError(f"{policy.label} needs measured scores. Measure {policy.score} first.")
            cuts = thresholds(measured[[policy.score]], _GRID.tolist())[policy.score].values
            unit = Realise(policy=replace(policy, calibration=None), cuts=tuple(cuts.tolist()), seed=run.settings.seed)
            cut, off = _result(engine, unit, announce(f"Finding the threshold of {policy.label}"))
            if abs(off - (policy.share or 0)) > 0.01:
                raise RunError(
                    f"{policy.label} cannot be had: the nearest threshold switches {100 * off:.1f}% off. Ask for another share, "
                    f"or rank units within each layer ({policy.score}:rank:{policy.share:g})."
                )
        found.append(replace(policy, threshold=cut))
    return found


def _result(engine: Engine, unit: Realise, told: Progress) -> tuple[float, float]:
    results: list[tuple[float, float]] = []
    engine.work([unit], lambda _, result: results.append(result), told)
    return results[0]
