"""The stage between measuring and asking: thresholds of what a run measured."""

from collections.abc import Iterable

import xarray as xr

from headcount.errors import RunError
from headcount.store import Run
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
