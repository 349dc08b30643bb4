"""Thresholds from the scores' own distribution."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headcount.errors import InputError
from headcount.scores import inactive_when, of_tokens
from headcount.summaries import Summary

#: The shares the paper evaluates.
SHARES = (0.0, 0.05, 0.10, 0.15, 0.20, 0.25, 0.30)


def thresholds(table: xr.Dataset | Summary, shares: Sequence[float] = SHARES) -> xr.Dataset:
    """For each score the threshold beyond which a share of all (example, layer, head) scores lies.

    The M scores are sorted, the cumulative share of the k-th is k/M, and the threshold at share p is the linear
    interpolation between the two points that bracket p, clamped to the smallest and largest score; for scores
    inactive when high it is taken at 1 − p. A head is inactive strictly beyond it, so at share 0 none is.

    Source: arXiv 2504.03889, Section 4, and the authors' code.

    Values that are not finite are left out: M counts the others, and how many there were goes with each score as the
    attributes of ``not_finite``.

    Args:
        table: scores, as from ``measure_heads``, or their summary. From a summary a threshold is off
            by less than 0.05% of its value.
        shares: between 0 and 1.

    Returns:
        Dataset with one float64 variable per score, dim (share,).

    Raises:
        InputError: a share outside 0…1, an empty table, or a score that was nowhere measured.
    """
    if not isinstance(table, xr.Dataset | Summary):
        raise InputError(f"Thresholds come from a table of measure_heads or a summary of it, not {table!r:.60}.")
    try:
        wanted = [float(share) for share in np.atleast_1d(np.asarray(shares))]
    except (TypeError, ValueError):
        raise InputError(f"shares are numbers between 0 and 1, not {shares!r:.60}.") from None
    if wrong := [share for share in wanted if not 0 <= share <= 1]:
        raise InputError(f"A share lies between 0 and 1, not {wrong[0]}; write 10% as 0.10.")
    names = [str(name) for name in (table.scores if isinstance(table, Summary) else table.data_vars)]
    if not wanted or not names:
        raise InputError("Thresholds need at least one share and one measured score.")
    cuts, left_out = {}, not_finite(table)
    for name in names:
        at = wanted if inactive_when(name, table) == "low" else [1 - share for share in wanted]
        found = table.scores[name].quantiles(at) if isinstance(table, Summary) else quantiles(table[name].values, at)
        if np.isnan(found).any():
            raise InputError(
                f"Score {name} has no value in this table that is finite, so it has no threshold. Measure it on "
                "longer inputs, or the model in float32 or bfloat16."
            )
        cuts[name] = ("share", found, left_out.get(name, {}))
    return xr.Dataset(cuts, coords={"share": wanted}, attrs=table.attrs)


def quantiles(values: NDArray[np.floating], at: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """The values below which these shares of the finite ones lie, as ``thresholds`` takes them; NaN where there are none."""
    finite = values[np.isfinite(values)].astype(np.float64)
    return np.quantile(finite, at, method="interpolated_inverted_cdf") if finite.size else np.full(np.shape(at), np.nan)


def not_finite(table: xr.Dataset | Summary) -> dict[str, dict[str, Any]]:
    """How many values of each score are not finite: infinite, or NaN, as where the score is not defined for a head.

    The places of heads that a layer does not have are no values: those that no score was ever measured at, unless the
    table says how many heads its layers have.

    Returns:
        Score → ``not_finite`` (how many), ``of`` (how many values there are in all) and ``layers`` (where they are); only of
        scores that have some.
    """
    if isinstance(table, Summary):
        counts = {name: of_score.moments.count for name, of_score in table.scores.items()}
        num_inputs, num_tokens, layers = table.num_inputs, table.num_tokens, table.layers
    else:
        counts = {
            str(name): np.isfinite(values.transpose("example", "layer", "head").values).sum(axis=0)
            for name, values in table.data_vars.items()
        }
        num_inputs = num_tokens = table.sizes["example"]
        layers = table["layer"].values.tolist()
    known = np.stack(list(counts.values())).max(axis=0) > 0  # [layer, head]
    counts_of = table.attrs.get("num_units", table.attrs.get("num_attention_heads", ()))  # as older runs call it
    if len(counts_of) == len(layers):
        known = np.arange(known.shape[1]) < np.array(counts_of)[:, None]
    found = {}
    for name, count in counts.items():
        rows = num_tokens if of_tokens([name]) else num_inputs
        missing = np.where(known, rows - count, 0)
        if missing.any():
            where = [int(layers[place]) for place in np.flatnonzero(missing.any(axis=1))]
            found[name] = {"not_finite": int(missing.sum()), "of": int(known.sum()) * rows, "layers": where}
    return found


def said_not_finite(name: str, facts: Mapping[str, Any]) -> str:
    """Of one score, what ``not_finite`` found, in a sentence.

    >>> said_not_finite("awft", {"not_finite": 3, "of": 100, "layers": [7, 8, 9, 12]})
    'awft: 3 of 100 values are not finite or not defined, in layers 7 to 9, 12; thresholds are of the other 97.'
    """
    spans: list[list[int]] = []
    for layer in facts["layers"]:
        if spans and layer == spans[-1][-1] + 1:
            spans[-1].append(layer)
        else:
            spans.append([layer])
    where = ", ".join(f"{span[0]} to {span[-1]}" if len(span) > 1 else str(span[0]) for span in spans)
    return (
        f"{name}: {facts['not_finite']:,} of {facts['of']:,} values are not finite or not defined, in "
        f"layer{'s' * (len(facts['layers']) > 1)} {where}; thresholds are of the other {facts['of'] - facts['not_finite']:,}."
    )
