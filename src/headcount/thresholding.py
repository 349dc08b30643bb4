"""Thresholds from the scores' own distribution."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from headcount.errors import InputError
from headcount.scores import inactive_when
from headcount.summaries import Summary

#: The shares the paper evaluates.
SHARES = (0.0, 0.05, 0.10, 0.15, 0.20, 0.25, 0.30)


def thresholds(table: xr.Dataset | Summary, shares: Sequence[float] = SHARES) -> xr.Dataset:
    """For each score the threshold beyond which a share of all (example, layer, head) scores lies.

    The M scores are sorted, the cumulative share of the k-th is k/M, and the threshold at share p is the linear
    interpolation between the two points that bracket p, clamped to the smallest and largest score; for scores
    inactive when high it is taken at 1 − p. A head is inactive strictly beyond it, so at share 0 none is.

    Source: arXiv 2504.03889, Section 4, and the authors' code.

    Args:
        table: scores, as from ``measure_heads``, or their summary; NaN is left out. From a summary a threshold is off
            by less than 0.05% of its value.
        shares: between 0 and 1.

    Returns:
        Dataset with one float64 variable per score, dim (share,).

    Raises:
        InputError: a share outside 0…1, an empty table, or a score that was nowhere measured.
    """
    wanted = [float(share) for share in shares]
    if wrong := [share for share in wanted if not 0 <= share <= 1]:
        raise InputError(f"A share of heads lies between 0 and 1, not {wrong[0]}; write 10% as 0.10.")
    names = [str(name) for name in (table.scores if isinstance(table, Summary) else table.data_vars)]
    if not wanted or not names:
        raise InputError("Thresholds need at least one share and one measured score.")
    cuts = {}
    for name in names:
        at = wanted if inactive_when(name, table) == "low" else [1 - share for share in wanted]
        if isinstance(table, Summary):
            found = table.scores[name].quantiles(at)
        else:
            values = table[name].values
            measured = values[~np.isnan(values)].astype(np.float64)
            found = (
                np.quantile(measured, at, method="interpolated_inverted_cdf") if measured.size else np.array([np.nan])
            )
        if np.isnan(found).any():
            raise InputError(
                f"Score {name} has no value in this table, so it has no threshold. Measure it on longer inputs."
            )
        cuts[name] = ("share", found)
    return xr.Dataset(cuts, coords={"share": wanted}, attrs=table.attrs)
