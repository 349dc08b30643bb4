"""The stage between measuring and asking: thresholds of what a run measured."""

import warnings
from collections.abc import Iterable

import numpy as np
import xarray as xr

from headcount.analysis.inactivity import score_names
from headcount.errors import RunError
from headcount.scores import facts_of
from headcount.store import Run
from headcount.summaries import Summary
from headcount.thresholding import thresholds


def find_thresholds(run: Run, shares: Iterable[float]) -> xr.Dataset:
    """Thresholds at ``shares`` of what the run measured, kept in it together with those at other shares.

    Raises:
        RunError: nothing is measured.
    """
    measured = run.measurements()
    if measured is None:
        raise RunError(f"{str(run.path)!r} holds no scores. Measure some with `headcount measure … -o FOLDER`.")
    before = run.thresholds()
    cuts = thresholds(measured, sorted({*shares, *([] if before is None else before["share"].values.tolist())}))
    if before is None or not before.equals(cuts.drop_attrs()):
        run.set_thresholds(cuts)
    return cuts.sel(share=sorted(set(shares)))


def cuts_of(run: Run, measured: xr.Dataset | Summary) -> xr.Dataset | None:
    """The thresholds that a run keeps, or else those at the paper's shares; None where no measured score can have any.

    Scores that a file added which an older headcount did not note have none, and are named in a warning.
    """
    if unknown := sorted(set(score_names(measured)) - set(known_scores(measured))):
        warnings.warn(
            f"{str(run.path)!r} does not say when {', '.join(unknown)} is inactive, so no thresholds of it are shown: an "
            "older headcount made it. Give the file that it came from with --scores-from FILE.",
            stacklevel=3,
        )
    cuts = run.thresholds()
    cuts = None if cuts is None else cuts.drop_vars(unknown, errors="ignore")
    return cuts if cuts else usual_thresholds(measured)


def usual_thresholds(measured: xr.Dataset | Summary) -> xr.Dataset | None:
    """Thresholds at the paper's shares of the scores that can have some."""

    def has_values(name: str) -> bool:
        if isinstance(measured, Summary):
            return bool(measured.scores[name].moments.count.any())
        return bool(np.isfinite(measured[name].to_numpy()).any())

    known = [name for name in known_scores(measured) if has_values(name)]
    return thresholds(measured[known]) if known else None


def known_scores(measured: xr.Dataset | Summary) -> list[str]:
    """The scores of which it is known when they are inactive."""
    return [name for name in score_names(measured) if facts_of(name, measured)]
