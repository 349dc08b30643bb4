"""Which heads to remove: every unit's score on every text, and the order in which units go."""

from collections.abc import Callable, Collection
from contextlib import nullcontext
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from transformers import PreTrainedModel

from headcount.calibration import Calibration
from headcount.errors import InputError
from headcount.models.batching import Progress, data_fingerprint, no_progress, run_in_batches
from headcount.models.instrument import instrument
from headcount.models.observe import units_of
from headcount.models.reading import batch_of
from headcount.models.state import reads
from headcount.policies.policy import calibration_of
from headcount.removal.fitting import Fitting
from headcount.removal.gradients import taylor_scores
from headcount.removal.neurons import NEURON_SCORE, select_neurons
from headcount.removal.replace import How, replace_heads
from headcount.removal.selection import Selection
from headcount.scores import get_score
from headcount.units import KINDS, KindId, UnitSet

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
    fitting: Fitting,
    *,
    share: float,
    score: str | None = None,
    kind: KindId = "head",
    aggregate: Aggregate = "mean",
    quantile: float = 0.9,
    rounds: int = 1,
    how: How = "refit",
    exclude_layers: Collection[int] = (),
    calibration: Calibration | None = None,
    name: str = "",
    progress: Callable[[str], Progress] = lambda _: no_progress,
) -> Selection:
    """The heads, or MLP neurons, that these texts need least, in the order in which they go.

    A unit whose score is not finite on some text has no mean and stays; how many do, ``chosen`` says.

    Args:
        model: in float32 or bfloat16 for ``taylor``; is left as it was.
        fitting: the texts to choose on.
        share: of the model's query heads to select; units are taken while they fit.
        score: ``taylor``, or the id of a registered score. None is ``taylor``, and ``rms_res`` for neurons.
        kind: what goes as a whole: a query ``head``, a key-value ``group`` or a layer's ``attention``. A registered score of
            a unit is the mean of its heads'. MLP neurons (``neuron``) go by the mean of a registered score over texts, in
            one round, ``share`` of each layer's.
        aggregate: ``mean`` over texts; ``max``, the text on which the unit is most needed; ``quantile`` towards that; or
            ``inactive``, the share of texts on which it is inactive at the threshold beyond which ``share`` of all lies.
        quantile: for ``quantile``: 0.9 is a need that 9 of 10 texts do not exceed.
        rounds: remeasure after each of so many equal steps, with what has gone replaced by then.
        how: what replaces heads, in the Taylor score and between rounds: ``zero``, ``mean`` or ``refit``.
        exclude_layers: layers that keep all their heads.
        calibration: of the model, for a score that needs one.
        name: of the model, for people.
        progress: called with the name of each step, gives what to call with (done, total).

    Raises:
        InputError: unusable options, or a share below one unit.
        ModelError: a model that cannot be measured, or whose gradients cannot be had.
    """
    check_share(share)
    score = score or default_score(kind)
    read = check_options(score, aggregate, quantile, rounds, calibration, kind)
    if kind == "neuron":
        if exclude_layers:
            raise InputError("Neurons go in every layer alike, so none can be excluded. Leave the excluded layers out.")
        told = progress("Scoring neurons")
        return select_neurons(model, fitting, share=share, score=score, calibration=read, name=name, progress=told)
    units = units_of(model)
    if missing := set(exclude_layers) - set(units.layer_indices):
        raise InputError(f"Layer {min(missing)} is no attention layer; they are {units.layer_indices}.")
    if any(layer.key_value_index is not None for layer in units.heads):
        raise InputError(
            "This checkpoint was pruned before, and its groups have several sizes, so it cannot be cut again. Select heads of "
            "the original model, and prune that."
        )
    members = {
        (place, unit): [(layer.index, head) for head in heads]
        for place, layer in enumerate(units.layers)
        for unit, heads in enumerate(layer.members(kind))
    }
    needed_when = "high" if score == TAYLOR or get_score(score).inactive_when == "low" else "low"
    target = int(share * units.num_units + 1e-9)
    gone: list[tuple[int, int]] = []
    not_finite: set[tuple[int, int]] = set()
    for number in range(1, rounds + 1):
        replaced: Any = nullcontext()
        if gone:
            told = progress(f"Replacing the heads of round {number - 1}")
            replaced = replace_heads(model, UnitSet(gone), how, fitting, progress=told).applied(model)
        with replaced:
            told = progress("Scoring heads" if rounds == 1 else f"Scoring heads, round {number} of {rounds}")
            if score == TAYLOR:
                table = taylor_scores(model, fitting, how=how, kind=kind, removed=UnitSet(gone), progress=told)
            else:
                table = _unit_scores(model, fitting, score, kind, read, progress=told)
        order = order_by_need(table, needed_when, aggregate, quantile=quantile, share=share)
        not_finite |= {unit for unit in members.keys() - set(order) if members[unit][0] not in gone}
        if not order:
            raise InputError(
                f"No {kind} has a finite {score} score on every text, so none can be chosen. Choose by another score, on "
                "longer texts, or load the model in float32 or bfloat16."
            )
        limit = target * number // rounds
        for unit in order:
            heads = members[unit]
            if heads[0][0] not in exclude_layers and heads[0] not in gone and len(gone) + len(heads) <= limit:
                gone += heads
    if not gone:
        raise InputError(
            f"A share of {share:g} is {target} of {units.num_units} heads, less than one {KINDS[kind].noun}. "
            "Ask for a larger share."
        )
    chosen: dict[str, Any] = {"score": score, "share": share, "aggregate": aggregate, "rounds": rounds}
    if aggregate == "quantile":
        chosen["quantile"] = quantile
    if score == TAYLOR or rounds > 1:
        chosen["replaced by"] = how
        if how == "refit":
            chosen["ridge"] = fitting.ridge
    if read is not None:
        chosen["calibration"] = read.fingerprint
    if exclude_layers:
        chosen["excluded layers"] = sorted(exclude_layers)
    if not_finite:
        chosen[NOT_FINITE] = len(not_finite)
    return Selection.of(model, gone, name=name, kind=kind, chosen=chosen | _read(model, fitting))


def default_score(kind: KindId) -> str:
    """The score that units of a kind are chosen by where none is named."""
    return NEURON_SCORE if kind == "neuron" else TAYLOR


def check_options(
    score: str,
    aggregate: str,
    quantile: float,
    rounds: int,
    calibration: Calibration | None = None,
    kind: KindId = "head",
) -> Calibration | None:
    """The calibration that the score reads, None where it reads none.

    Raises:
        InputError: unusable options of ``select_heads``, or a score that lacks its calibration.
    """
    if rounds < 1:
        raise InputError(f"rounds is at least 1, not {rounds}.")
    if not 0 <= quantile <= 1:
        raise InputError(f"quantile lies between 0 and 1, not {quantile}.")
    if aggregate not in ("mean", "max", "quantile", "inactive"):
        raise InputError(f"Scores are aggregated by 'mean', 'max', 'quantile' or 'inactive', not {aggregate!r}.")
    if kind == "mlp":
        raise InputError("Whole MLPs are not removed. Choose heads, groups, attention or neurons.")
    if kind == "neuron" and (score == TAYLOR or aggregate != "mean" or rounds > 1):
        raise InputError(
            "Neurons are chosen by the mean of a registered score over texts, in one round: leave the aggregate and the rounds "
            f"as they are, and name a score such as {NEURON_SCORE}, not taylor."
        )
    if score == TAYLOR and aggregate == "inactive":
        raise InputError(
            "The Taylor score has no side on which heads are inactive. Use --aggregate mean, max or quantile."
        )
    read = calibration_of((), [] if score == TAYLOR else [get_score(score)], calibration)
    if read is not None and rounds > 1:
        raise InputError(
            f"{score} is measured against a calibration of the whole model, and between rounds heads are replaced. Choose in "
            "one round, or by another score."
        )
    return read


def _read(model: PreTrainedModel, fitting: Fitting) -> dict[str, Any]:
    """What was read, and in which precision."""
    return {
        "texts": len(fitting.rows),
        "tokens": sum(map(len, fitting.rows)),
        "texts' fingerprint": data_fingerprint(fitting.rows),
        "dtype": str(model.dtype).removeprefix("torch."),
        "seed": fitting.seed,
    }


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
    fitting: Fitting,
    score: str,
    kind: KindId,
    calibration: Calibration | None = None,
    *,
    progress: Progress,
) -> xr.DataArray:
    """A registered score, dims (example, layer, unit): the mean over each unit's heads."""
    units, rows, score = units_of(model), fitting.rows, get_score(score).id
    order: list[int] = []
    measuring = instrument(model, scores=[score], seed=fitting.seed, calibration=calibration)
    with measuring as probe, torch.inference_mode():

        def run(batch: list[int]) -> None:
            tokens, mask, _ = batch_of(model, [rows[i] for i in batch])
            model.base_model(input_ids=tokens, attention_mask=mask, use_cache=False)
            order.extend(batch)

        run_in_batches([len(row) for row in rows], fitting.batch_tokens, run, progress)
        heads = probe.scores[score].values[np.argsort(order)]
    return xr.DataArray(
        units.reduce(heads, kind), dims=("example", "layer", "unit"), coords={"layer": units.layer_indices}
    )
