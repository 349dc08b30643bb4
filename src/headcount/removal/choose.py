"""Which heads to remove: every unit's score on every text, and the order in which units go."""

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from transformers import PreTrainedModel

from headcount.errors import InputError
from headcount.models.batching import Progress, data_fingerprint, no_progress, pad, run_in_batches
from headcount.models.instrument import instrument
from headcount.models.observe import units_of
from headcount.models.state import input_device, reads
from headcount.removal.gradients import taylor_scores
from headcount.removal.replace import How, replace_heads
from headcount.removal.selection import Selection, Unit
from headcount.removal.units import heads_of_unit, num_units
from headcount.scores import get_score
from headcount.units import UnitSet

#: The score that is no registered one: the squared first-order change of the loss (``taylor_scores``).
TAYLOR = "taylor"
#: Of a selection, how many units stay because their score is not finite, or not defined, on some text.
NOT_FINITE = "units without a finite score"
#: How the scores of many texts become one: their mean, the text on which the unit seems most needed, a quantile towards
#: it, or the share of texts on which the unit is inactive.
Aggregate = Literal["mean", "max", "quantile", "inactive"]


@reads
def select_heads(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    *,
    share: float,
    score: str = TAYLOR,
    unit: Unit = "query",
    aggregate: Aggregate = "mean",
    quantile: float = 0.9,
    rounds: int = 1,
    how: How = "refit",
    ridge: float = 0.01,
    exclude_layers: Collection[int] = (),
    batch_tokens: int = 2048,
    seed: int = 0,
    name: str = "",
    progress: Callable[[str], Progress] = lambda _: no_progress,
) -> Selection:
    """The heads that these texts need least, in the order in which they go.

    A unit whose score is not finite on some text has no mean and stays; how many do, ``chosen`` says.

    Args:
        model: in float32 or bfloat16 for ``taylor``; is left as it was.
        rows: token ids of the texts to choose on.
        share: of the model's query heads to select; units are taken while they fit.
        score: ``taylor``, or the id of a registered score.
        unit: what goes as a whole: a ``query`` head, a key-value ``group`` or a ``layer``. A registered score of a unit is
            the mean of its heads'.
        aggregate: ``mean`` over texts; ``max``, the text on which the unit is most needed; ``quantile`` towards that; or
            ``inactive``, the share of texts on which it is inactive at the threshold beyond which ``share`` of all lies.
        quantile: for ``quantile``: 0.9 is a need that 9 of 10 texts do not exceed.
        rounds: remeasure after each of so many equal steps, with what has gone replaced by then.
        how: what replaces heads, in the Taylor score and between rounds: ``zero``, ``mean`` or ``refit``.
        ridge: of the refit.
        exclude_layers: layers that keep all their heads.
        batch_tokens: tokens in a batch, padding included.
        seed: of the ``random`` score.
        name: of the model, for people.
        progress: called with the name of each step, gives what to call with (done, total).

    Raises:
        InputError: unusable options, or a share below one unit.
        ModelError: a model that cannot be measured, or whose gradients cannot be had.
    """
    check_share(share)
    if rounds < 1:
        raise InputError(f"rounds is at least 1, not {rounds}.")
    if not 0 <= quantile <= 1:
        raise InputError(f"quantile lies between 0 and 1, not {quantile}.")
    if aggregate not in ("mean", "max", "quantile", "inactive"):
        raise InputError(f"Scores are aggregated by 'mean', 'max', 'quantile' or 'inactive', not {aggregate!r}.")
    if score == TAYLOR and aggregate == "inactive":
        raise InputError(
            "The Taylor score has no side on which heads are inactive. Use --aggregate mean, max or quantile."
        )
    geometry = units_of(model)
    if missing := set(exclude_layers) - set(geometry.layer_indices):
        raise InputError(f"Layer {min(missing)} is no attention layer; they are {geometry.layer_indices}.")
    if any(layer.key_value_index is not None for layer in geometry.layers):
        raise InputError(
            "This checkpoint was pruned before, and its groups have several sizes, so it cannot be cut again. Select heads of "
            "the original model, and prune that."
        )
    target = int(share * geometry.num_heads + 1e-9)
    gone: list[tuple[int, int]] = []
    not_finite: set[tuple[int, int]] = set()
    for number in range(1, rounds + 1):
        replaced: Any = nullcontext()
        if gone:
            replacement = replace_heads(
                model, UnitSet(gone), how, rows=rows, ridge=ridge, batch_tokens=batch_tokens,
                progress=progress(f"Replacing the heads of round {number - 1}"),
            )  # fmt: skip
            replaced = replacement.applied(model)
        with replaced:
            update = progress("Scoring heads" if rounds == 1 else f"Scoring heads, round {number} of {rounds}")
            if score == TAYLOR:
                table = taylor_scores(
                    model, rows, how=how, unit=unit, removed=UnitSet(gone), ridge=ridge, batch_tokens=batch_tokens,
                    progress=update,
                )  # fmt: skip
                needed_when = "high"
            else:
                table = _unit_scores(model, rows, score, unit, batch_tokens=batch_tokens, seed=seed, progress=update)
                needed_when = "high" if get_score(score).inactive_when == "low" else "low"
        limit = target * number // rounds
        order = order_by_need(table, needed_when, aggregate, quantile=quantile, share=share)
        units = {(place, which) for place, of in enumerate(geometry.layers) for which in range(num_units(of, unit))}
        not_finite |= {
            (place, which)
            for place, which in units - set(order)
            if (geometry.layers[place].index, heads_of_unit(geometry.layers[place], unit, which)[0]) not in gone
        }
        if not order:
            raise InputError(
                f"No {unit} has a finite {score} score on every text, so none can be chosen. Choose by another score, on "
                "longer texts, or load the model in float32 or bfloat16."
            )
        for place, which in order:
            layer = geometry.layers[place]
            heads = [(layer.index, head) for head in heads_of_unit(layer, unit, which)]
            if layer.index not in exclude_layers and heads[0] not in gone and len(gone) + len(heads) <= limit:
                gone += heads
    if not gone:
        raise InputError(
            f"A share of {share:g} is {target} of {geometry.num_heads} heads, less than one {unit}. Ask for a larger share."
        )
    chosen: dict[str, Any] = {"score": score, "share": share, "aggregate": aggregate, "rounds": rounds}
    if aggregate == "quantile":
        chosen["quantile"] = quantile
    if score == TAYLOR or rounds > 1:
        chosen["replaced by"] = how
        if how == "refit":
            chosen["ridge"] = ridge
    if exclude_layers:
        chosen["excluded layers"] = sorted(exclude_layers)
    if not_finite:
        chosen[NOT_FINITE] = len(not_finite)
    chosen |= {
        "texts": len(rows),
        "tokens": sum(map(len, rows)),
        "texts' fingerprint": data_fingerprint(rows),
        "dtype": str(model.dtype).removeprefix("torch."),
        "seed": seed,
    }
    return Selection.of(model, gone, name=name, unit=unit, chosen=chosen)


def check_share(share: float) -> None:
    """Raise InputError for a share of heads that cannot be removed."""
    if not 0 < share < 1:
        raise InputError(f"The share of heads to remove lies between 0 and 1, not {share}; write 20% as 0.20.")


def order_by_need(
    table: xr.DataArray, needed_when: str, aggregate: Aggregate, *, quantile: float = 0.9, share: float = 0.1
) -> list[tuple[int, int]]:
    """(layer's place, unit) of every unit that has a finite score on every text, the least needed first.

    Args:
        table: dims (example, layer, unit).
        needed_when: the side of the score on which units are needed, ``high`` or ``low``.
        aggregate: as in ``select_heads``.
        quantile: for ``quantile``.
        share: for ``inactive``: of all scores, beyond the threshold.
    """
    high = needed_when == "high"
    values = table.values.astype(np.float64)
    values[~np.isfinite(values)] = np.nan
    units = [(int(place), int(unit)) for place, unit in np.argwhere(~np.isnan(values).any(0))]
    mean = values.mean(0)
    if aggregate == "max":
        need = values.max(0) if high else values.min(0)
    elif aggregate == "quantile":
        need = np.quantile(values, quantile if high else 1 - quantile, axis=0)
    else:
        need = mean
    units.sort(key=lambda unit: need[unit], reverse=not high)
    if aggregate == "inactive":
        cut = np.quantile(values[~np.isnan(values)], share if high else 1 - share, method="interpolated_inverted_cdf")
        inactive = ((values < cut) if high else (values > cut)).mean(0)
        units.sort(key=lambda unit: inactive[unit], reverse=True)  # stable: ties go by the mean
    return units


def _unit_scores(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    score: str,
    unit: Unit,
    *,
    batch_tokens: int,
    seed: int,
    progress: Progress,
) -> xr.DataArray:
    """A registered score, dims (example, layer, unit): the mean over each unit's heads."""
    geometry = units_of(model)
    score = get_score(score).id
    order: list[int] = []
    with instrument(model, scores=[score], seed=seed) as probe, torch.inference_mode():

        def run(batch: list[int]) -> None:
            tokens, mask = pad([rows[i] for i in batch], input_device(model))
            model.base_model(input_ids=tokens, attention_mask=mask, use_cache=False)
            order.extend(batch)

        run_in_batches([len(row) for row in rows], batch_tokens, run, progress)
        heads = probe.scores[score].values[np.argsort(order)]
    widest = max(num_units(layer, unit) for layer in geometry.layers)
    values = np.full((len(rows), len(geometry.layers), widest), np.nan, np.float32)
    for place, layer in enumerate(geometry.layers):
        count = num_units(layer, unit)
        of_layer = heads[:, place, : layer.num_attention_heads]
        values[:, place, :count] = of_layer.reshape(len(rows), count, -1).mean(-1)
    return xr.DataArray(values, dims=("example", "layer", "unit"), coords={"layer": geometry.layer_indices})
