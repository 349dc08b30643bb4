"""Measure every head of a model on a list of inputs."""

import operator
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import xarray as xr

from headcount.errors import InputError, seed_of
from headcount.evaluation.engine import run_plan
from headcount.evaluation.plan import ScoringPlan
from headcount.models.batching import Progress, check_lengths, data_fingerprint, no_progress
from headcount.models.loading import fingerprint
from headcount.models.state import check_tokenizer, reads
from headcount.scores import select_scores
from headcount.texts import HALF_PAIR

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@reads
def measure_heads(
    model: "PreTrainedModel",
    inputs: Sequence[str] | Sequence[Sequence[int]],
    *,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    scores: str | Iterable[str] = "all",
    batch_tokens: int | None = None,
    seed: int = 0,
    too_long: str = "refuse",
    progress: Progress = no_progress,
) -> xr.Dataset:
    """Every score of every query head on every input, with nothing zeroed, in one pass over the inputs.

    Every token of an input counts and padding never does: the numbers do not depend on how inputs are batched,
    beyond rounding. Inputs that begin alike read that beginning once.

    Args:
        model: a causal language model, as from ``load``.
        inputs: texts, or lists of token ids, to which nothing is added.
        tokenizer: needed for texts; adds the special tokens it adds by default.
        scores: ids or aliases, or ``"all"``.
        batch_tokens: tokens in a batch, padding included; None for as many as suit the memory.
        seed: of the ``random`` score.
        too_long: what to do with an input longer than the model's positions: ``refuse``, or ``cut`` its end off.
        progress: called with (inputs done, inputs in all).

    Returns:
        Dataset with one float32 variable per score id, dims (example, layer, head), coordinates ``num_tokens``
        (example), ``layer`` (index in the model) and ``head``. NaN where a layer has fewer heads, or where a score is
        not defined (the layer's mean is 0); ``headcount.thresholding.not_finite`` counts the latter, and infinities.
        Attributes name the model, the inputs, the seed and the versions.

    Raises:
        InputError: no or empty inputs, texts without a tokenizer, unknown scores, inputs too long.
        ModelError: a model that cannot be measured.
    """
    rows, num_cut = check_lengths(token_ids(inputs, tokenizer), model, too_long=too_long)
    chosen, seed = [score.id for score in select_scores(scores)], seed_of(seed)
    place_of = {row: i for i, row in enumerate(dict.fromkeys(map(tuple, rows)))}
    distinct = ScoringPlan(inputs=[list(row) for row in place_of], input_of=[], continuations=[], num_truncated=0)
    table = run_plan(
        model, distinct, [], scores=chosen, batch_tokens=batch_tokens, seed=seed,
        progress=lambda done, total: progress(done * len(rows) // total, len(rows)),
    ).scores  # fmt: skip
    return table.isel(example=[place_of[tuple(row)] for row in rows]).assign_attrs(
        model=str(getattr(model.config, "_name_or_path", "")),
        model_fingerprint=fingerprint(model),
        data_fingerprint=data_fingerprint(rows),
        dtype=str(model.dtype).removeprefix("torch."),
        seed=seed,
        num_cut=num_cut,
        **versions(),
    )


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
