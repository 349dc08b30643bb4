"""What the page keeps of each head's scores: small enough to inline, exact where the page counts."""

import base64
import gzip
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headcount.analysis.inactivity import values_of
from headcount.report.style import score_style
from headcount.report.wording import shown
from headcount.scores import Table, facts_of
from headcount.summaries import Moments
from headcount.thresholding import quantiles
from headcount.units import LayerUnits

STEPS = 100  # of the slider: one percent of all heads and inputs each
ALWAYS, HALF, NOT_MEASURED = 254, 127, 255


@dataclass(frozen=True, kw_only=True)
class HeadProfile:
    """One score of every head over all inputs.

    ``often`` says on what part of its inputs a head is inactive at each threshold: 0 on none and only then, 254 on all
    and only then, 127 or more on half of them or more and only then, otherwise the nearest of 254 equal parts; 255
    where the head does not exist or was not measured.
    """

    thresholds: NDArray[np.float64]  # [step], at shares 0, 1/STEPS, …, 1
    mean: NDArray[np.float32]  # [layer, head]; NaN where not measured, as in the next three
    low: NDArray[np.float32]  # [layer, head]
    median: NDArray[np.float32]  # [layer, head]
    high: NDArray[np.float32]  # [layer, head]
    deciles: NDArray[np.uint8]  # [layer, head, 9]: where the nine lie between low (0) and high (254); 255 as above
    often: NDArray[np.uint8]  # [layer, head, step]

    def packed(self) -> str:
        """For the page's script: bytes 0, 1, 2 and 3 of all numbers in turn, ``deciles``, ``often`` as differences over steps."""
        numbers = np.stack([self.mean, self.low, self.median, self.high]).astype("<f4")
        planes = numbers.reshape(-1, 1).view(np.uint8).T
        steps = np.diff(self.often, axis=-1, prepend=np.uint8(0))  # modulo 256
        return compressed(planes.tobytes() + self.deciles.tobytes() + steps.tobytes())


def compressed(content: bytes) -> str:
    """gzip in base64, the same for the same content."""
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


def head_profile(table: xr.Dataset, name: str) -> HeadProfile | None:
    """The profile of one score of ``table`` (dims example, layer, head); None if it was measured nowhere."""
    values = values_of(table, name, slice(None)).astype(np.float64)
    measured, moments = ~np.isnan(values), Moments.of(values)
    if not measured.any():
        return None
    inactive_when = score_facts(name, table)["inactive_when"]
    shares = np.arange(STEPS + 1) / STEPS
    cuts = quantiles(values, 1 - shares if inactive_when == "high" else shares)
    side = -1.0 if inactive_when == "high" else 1.0
    # The first step at which a value is strictly beyond the threshold; STEPS + 1 for none.
    first = np.searchsorted(side * cuts, np.where(measured, side * values, np.inf), side="right")
    size = values[0].size
    cells = first.reshape(-1, size) + (STEPS + 2) * np.arange(size)
    arrivals = np.bincount(cells.ravel(), minlength=size * (STEPS + 2)).reshape(size, STEPS + 2)
    count = moments.count  # [layer, head]
    inactive = arrivals.cumsum(axis=1)[:, :-1].reshape(*count.shape, STEPS + 1)
    ordered = np.sort(values, axis=0)  # NaN last

    def at(rank: NDArray[np.intp]) -> NDArray[np.float64]:
        return np.take_along_axis(ordered, np.clip(rank, 0, None)[None], axis=0)[0]

    low, high = at(np.zeros_like(count)), at(count - 1)
    return HeadProfile(
        thresholds=cuts, mean=moments.mean.astype(np.float32), low=low.astype(np.float32),
        median=((at((count - 1) // 2) + at(count // 2 * (count > 0))) / 2).astype(np.float32),
        high=high.astype(np.float32),
        deciles=_places(np.stack([at(tenth * (count - 1) // 10) for tenth in range(1, 10)], axis=-1), low, high),
        often=_parts(inactive, count[..., None]),
    )  # fmt: skip


def _places(values: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.uint8]:
    """``HeadProfile.deciles`` from the deciles, [layer, head, 9]."""
    width = (high - low)[..., None]
    place = np.divide(ALWAYS * (values - low[..., None]), width, out=np.zeros(values.shape), where=width > 0)
    return np.where(np.isnan(width), NOT_MEASURED, np.nan_to_num(place).round()).astype(np.uint8)


def _parts(inactive: NDArray[np.int64], count: NDArray[np.int64]) -> NDArray[np.uint8]:
    """``HeadProfile.often`` from numbers of inputs."""
    part = np.divide(ALWAYS * inactive, count, out=np.zeros(inactive.shape), where=count > 0).round()
    part = np.clip(part, 1, ALWAYS - 1)
    part = np.where(2 * inactive >= count, np.maximum(part, HALF), np.minimum(part, HALF - 1))
    part = np.where(inactive == 0, 0, np.where(inactive == count, ALWAYS, part))
    return np.where(count == 0, NOT_MEASURED, part).astype(np.uint8)


def head_maps(scores: xr.Dataset, layers: Iterable[LayerUnits] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """The head map's facts for JSON, and each score's packed profile.

    Args:
        scores: one variable a score, dims (example, layer, head).
        layers: the model's. Without them no head belongs to a group.
    """
    facts, packed = [], {}
    for name in map(str, scores.data_vars):
        profile = head_profile(scores, name)
        if profile is None:
            continue
        facts.append({
            "score": shown(name, 40), **score_facts(name, scores), "style": vars(score_style(name)),
            "thresholds": [float(f"{cut:.9g}") for cut in profile.thresholds],
        })  # fmt: skip
        packed[name] = profile.packed()
    labels = [int(label) for label in scores["layer"].values]
    known = {layer.index: layer for layer in layers}
    return {
        "scores": facts,
        "layers": labels,
        "heads": int(scores.sizes["head"]),
        "groups": [_groups(known.get(label), int(scores.sizes["head"])) for label in labels],
        "always": ALWAYS,
        "half": HALF,
    }, packed


def _groups(layer: LayerUnits | None, heads: int) -> int | list[int]:
    """Query heads that share one key-value head; or for each its key-value head, where groups have several sizes."""
    if layer is None:
        return 1
    if shared := layer.key_value_index:
        known = shared[:heads]
        return [*known, *[known[-1]] * (heads - len(known))]
    return layer.group_size


def score_facts(name: str, table: Table) -> dict[str, str]:
    """Name, unit and direction of a score in a table; the last two empty where nothing says what it is."""
    if (facts := facts_of(name, table)) is None:
        return {"name": shown(name, 40), "unit": "", "inactive_when": ""}
    unit = "" if facts.unit == "1" else shown(facts.unit, 20)
    return {"name": shown(facts.name, 60), "unit": unit, "inactive_when": facts.inactive_when}
