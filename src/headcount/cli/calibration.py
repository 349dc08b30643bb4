"""Texts that heads are chosen or replaced on, as token ids."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from headcount.errors import InputError
from headcount.measure import token_ids
from headcount.texts import load_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def calibration_rows(
    sources: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    column: str = "text",
    num_texts: int = 128,
    max_length: int = 512,
) -> list[list[int]]:
    """The first tokens of up to ``num_texts`` texts, equally many from each source where they have enough.

    Args:
        sources: as of ``load_texts``.
        tokenizer: the model's.
        column: that holds the text.
        num_texts: in all.
        max_length: tokens of each text.

    Raises:
        InputError: texts that cannot be read, or an unusable number.
    """
    if num_texts < 1 or max_length < 2:
        raise InputError(f"Give at least 1 text of at least 2 tokens, not {num_texts} of {max_length}.")
    of_sources = [load_texts([source], column=column, limit=num_texts) for source in sources]
    taken: list[str] = []
    place = 0
    while len(taken) < num_texts and any(place < len(texts) for texts in of_sources):
        taken += [texts[place] for texts in of_sources if place < len(texts)]
        place += 1
    return [row[:max_length] for row in token_ids(taken[:num_texts], tokenizer)]
