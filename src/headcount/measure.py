"""Measure every head, or another kind of unit, of a model on a list of inputs."""

import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import xarray as xr

from headcount.calibration import Calibration
from headcount.errors import InputError, seed_of
from headcount.evaluation.engine import ScoredPlan, run_plan
from headcount.evaluation.plan import ScoringPlan
from headcount.models.batching import Progress, check_lengths, data_fingerprint, no_progress
from headcount.models.loading import fingerprint
from headcount.models.observe import scores_of, units_of
from headcount.models.state import check_tokenizer, reads
from headcount.scores import Score
from headcount.summaries import Summary
from headcount.texts import HALF_PAIR
from headcount.units import KINDS, KindId, checked_kind

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Of a table of scores in memory.
MOST_BYTES = 4 << 30


@reads
def measure_heads(
    model: "PreTrainedModel",
    inputs: Sequence[str] | Sequence[Sequence[int]],
    *,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    scores: str | Iterable[str] = "all",
    batch_tokens: int | None = None,
    seed: int = 0,
    calibration: Calibration | None = None,
    too_long: str = "refuse",
    unit: KindId = "head",
    progress: Progress = no_progress,
) -> xr.Dataset:
    """Every score of every query head on every input, with nothing off, in one pass over the inputs.

    Every token of an input counts and padding never does: the numbers do not depend on how inputs are batched,
    beyond rounding. Inputs that begin alike read that beginning once.

    Args:
        model: a causal language model, as from ``load``.
        inputs: texts, or lists of token ids, to which nothing is added.
        tokenizer: needed for texts; adds the special tokens it adds by default.
        scores: ids or aliases, or ``"all"`` that need no calibration.
        batch_tokens: tokens in a batch, padding included; None for as many as suit the memory.
        seed: of the ``random`` score.
        calibration: of the model, for scores that need one.
        too_long: what to do with an input longer than the model's positions: ``refuse``, or ``cut`` its end off.
        unit: what is measured: a ``head``, or another of ``headcount.units.KINDS``; the dimension is called head all the same.
        progress: called with (inputs done, inputs in all).

    Returns:
        Dataset with one float32 variable per score id, dims (example, layer, head), coordinates ``num_tokens``
        (example), ``layer`` (index in the model) and ``head``. NaN where a layer has fewer heads, or where a score is
        not defined (the layer's mean is 0); ``headcount.thresholding.not_finite`` counts the latter, and infinities.
        Attributes name the model, the inputs, the seed and the versions.

    Raises:
        InputError: no or empty inputs, texts without a tokenizer, unknown scores, scores of tokens (which
            ``summarise_heads`` takes), a table of more than 4 GiB, inputs too long, or a score without the calibration that
            it needs.
        ModelError: a model that cannot be measured.
    """
    chosen = scores_of(model, scores, checked_kind(unit))
    if of_tokens := next((score.id for score in chosen if score.per == "token"), None):
        raise InputError(
            f"{of_tokens} has a value for every token, too many for a table. headcount.summarise_heads counts them."
        )
    rows, num_cut = check_lengths(token_ids(inputs, tokenizer), model, too_long=too_long)
    kind, units = KINDS[unit], units_of(model, unit)
    size = 4 * len(rows) * len(chosen) * units.exists().size
    if size > MOST_BYTES:
        raise InputError(
            f"{len(chosen)} score{'s' * (len(chosen) > 1)} of {units.num_units:,} {kind.plural} on {len(rows):,} inputs are a "
            f"table of {size / 2**30:,.1f} GiB; {MOST_BYTES >> 30} is the most. headcount.summarise_heads counts them instead."
        )
    found, place_of = _measured(model, rows, chosen, batch_tokens, seed, calibration, unit, False, progress)
    places = [place_of[tuple(row)] for row in rows]
    return found.scores.isel(example=places).assign_attrs(_facts(model, rows, seed, num_cut, unit))


@reads
def summarise_heads(
    model: "PreTrainedModel",
    inputs: Sequence[str] | Sequence[Sequence[int]],
    *,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    scores: str | Iterable[str] = "all",
    batch_tokens: int | None = None,
    seed: int = 0,
    calibration: Calibration | None = None,
    too_long: str = "refuse",
    unit: KindId = "head",
    progress: Progress = no_progress,
) -> Summary:
    """As ``measure_heads``, with the scores counted instead of kept, batch by batch; those of tokens (``ID/token``) too.

    Every token of every input counts once for the latter, the first ones included.

    Returns:
        The summary, from which ``thresholds`` come as from a table.
    """
    chosen = scores_of(model, scores, checked_kind(unit))
    rows, num_cut = check_lengths(token_ids(inputs, tokenizer), model, too_long=too_long)
    found, _ = _measured(model, rows, chosen, batch_tokens, seed, calibration, unit, True, progress)
    return Summary(
        scores={score.id: found.summaries[score.id] for score in chosen}, layers=found.scores["layer"].values.tolist(),
        num_inputs=len(rows), num_tokens=sum(map(len, rows)),
        attrs=found.scores.attrs | _facts(model, rows, seed, num_cut, unit),
    )  # fmt: skip


def _measured(
    model: "PreTrainedModel",
    rows: Sequence[Sequence[int]],
    scores: Sequence[Score],
    batch_tokens: int | None,
    seed: int,
    calibration: Calibration | None,
    unit: KindId,
    summarise: bool,
    progress: Progress,
) -> tuple[ScoredPlan, dict[tuple[int, ...], int]]:
    """What the untouched model says of distinct rows, and the place of each."""
    times = Counter(map(tuple, rows))
    distinct = ScoringPlan(inputs=[list(row) for row in times], input_of=[], continuations=[], num_truncated=0)
    found = run_plan(
        model, distinct, [], scores=[score.id for score in scores], batch_tokens=batch_tokens, seed=seed_of(seed),
        calibration=calibration, times=[*times.values()], summarise=summarise, unit=unit,
        progress=lambda done, total: progress(done * len(rows) // total, len(rows)),
    )  # fmt: skip
    return found, {row: i for i, row in enumerate(times)}


def _facts(
    model: "PreTrainedModel", rows: Sequence[Sequence[int]], seed: int, num_cut: int, unit: KindId
) -> dict[str, Any]:
    return {
        "model": str(getattr(model.config, "_name_or_path", "")),
        "model_fingerprint": fingerprint(model),
        "data_fingerprint": data_fingerprint(rows),
        "dtype": str(model.dtype).removeprefix("torch."),
        "seed": seed_of(seed),
        "num_cut": num_cut,
        **({} if unit == "head" else {"unit": unit}),
        **versions(),
    }


def token_ids(
    inputs: Sequence[str] | Sequence[Sequence[int]], tokenizer: "PreTrainedTokenizerBase | None"
) -> list[list[int]]:
    """Inputs as lists of token ids. Raises InputError for no inputs, an empty one, or a text without a tokenizer."""
    if isinstance(inputs, str) or not isinstance(inputs, Sequence):
        raise InputError(f"inputs is a list of texts or of token-id lists, not a {type(inputs).__name__}.")
    if not inputs:
        raise InputError("No inputs were given. Give at least one text or list of token ids.")
    rows = []
    for i, given in enumerate(inputs):
        if isinstance(given, str):
            if tokenizer is None:
                raise InputError(f"Input {i} is a text: pass the model's tokenizer, or lists of token ids.")
            if half := HALF_PAIR.search(given):
                raise InputError(
                    f"Input {i} holds half of a surrogate pair ({half[0]!r} at character {half.start()}), which is no text. Take "
                    r"it out, or put U+FFFD there: re.sub('[\ud800-\udfff]', '\ufffd', text)."
                )
            check_tokenizer(tokenizer)
            row = tokenizer(given, verbose=False)["input_ids"]
        else:
            try:
                row = [operator.index(token) for token in given]
            except (TypeError, ValueError):
                raise InputError(
                    f"Input {i} is neither a text nor a list of token ids, but {given!r:.50}. Give one list of ids per input."
                ) from None
        if not row or (isinstance(given, str) and not given.strip()):
            raise InputError(f"Input {i} is empty. Leave empty inputs out.")
        rows.append(list(row))
    return rows


def versions() -> dict[str, Any]:
    """Versions of headcount and of the libraries that its numbers depend on."""
    return {f"{name}_version": version(name) for name in ("headcount", "torch", "transformers")}
