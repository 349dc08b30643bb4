"""Policies written as text or as a score at a share, with thresholds that were published or that a run measured."""

from collections.abc import Iterable
from pathlib import Path

import xarray as xr

from headcount.calibration import Calibration
from headcount.errors import InputError, RunError
from headcount.policies import Policy, Written, parse_policy
from headcount.policies.threshold import REALISED
from headcount.published import published_threshold
from headcount.store import open_run
from headcount.summaries import Summary
from headcount.thresholding import thresholds


def policy_at(
    score: str,
    share: float,
    measured: xr.Dataset | Summary | None = None,
    *,
    seed: int = 0,
    exclude_layers: Iterable[int] = (),
    calibration: Calibration | None = None,
) -> Written:
    """The policy of a curve (``ahon_ln``, ``ahon_ln/token+mean``) at a share of heads; with its threshold, if it takes one
    and ``measured`` scores are given, and with the calibration if it needs one."""
    policy = parse_policy(f"{score}:{share}", seed=seed, exclude_layers=exclude_layers).calibrated(calibration)
    return policy if measured is None else _found_in(policy, measured)


def _found_in(policy: Written, measured: xr.Dataset | Summary) -> Written:
    if policy.wants is None:
        return policy
    score, share, _ = policy.wants
    return policy.found(thresholds(measured[[score]], [share]))


def read_policy(text: str, *, exclude_layers: Iterable[int] = (), seed: int = 0, model: str = "") -> Written:
    """As ``parse_policy``, and with the threshold published for ``model`` (hub id) if the text asks for that one.

    Raises:
        InputError: as ``parse_policy``, or a threshold that was not published: on MMLU, or on TASK.
    """
    policy = parse_policy(text, exclude_layers=exclude_layers, seed=seed)
    if policy.wants is None or policy.wants.source in ("", REALISED):
        return policy
    score, share, source = policy.wants
    published = published_threshold(model, score, share, task=source.partition("/")[2] or "mmlu")
    return policy.found(xr.Dataset({score: ("share", [published])}, coords={"share": [share]}))


def resolve_policy(
    text: str, *, thresholds_from: str | Path | None = None, seed: int = 0, calibration: Calibration | None = None
) -> Policy:
    """The policy that ``text`` names, as ``parse_policy`` reads it, with its threshold from a run's scores if it needs one,
    and with the calibration.

    Raises:
        InputError: text that is not understood, or a share of a score without a run to take its threshold from.
        RunError: no run there, or one without that score.
    """
    policy = read_policy(text, seed=seed).calibrated(calibration)
    if policy.wants is None:
        return policy
    score = policy.wants.score
    if policy.wants.source == REALISED:
        raise InputError(
            f"The threshold of {policy.label} is sought while heads are off: `headcount evaluate` or hc.evaluate_run does it, "
            f"and keeps it in its run. Here give {score}@NUMBER."
        )
    if thresholds_from is None:
        raise InputError(
            f"Policy {text!r} names a share, so its threshold comes from measured scores: give thresholds_from=RUN "
            f"(a folder made by `headcount measure`), or name the threshold, {score}@NUMBER."
        )
    scores = open_run(thresholds_from).measurements()
    if scores is None or score not in scores:
        raise RunError(f"{str(thresholds_from)!r} has no scores for {score}. Measure them with `headcount measure`.")
    return _found_in(policy, scores)
