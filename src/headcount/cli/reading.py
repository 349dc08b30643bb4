"""Texts that are learnt from, as token ids."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from headcount.cli.options import Reading
from headcount.measure import token_ids
from headcount.texts import load_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def first_tokens(sources: Sequence[str], tokenizer: "PreTrainedTokenizerBase", reading: Reading) -> list[list[int]]:
    """The first tokens of up to ``num_texts`` texts, equally many from each source where they have enough.

    Args:
        sources: as of ``load_texts``.
        tokenizer: the model's.
        reading: which column, how many texts in all, and how many tokens of each.

    Raises:
        InputError: texts that cannot be read.
    """
    column, num_texts, max_length = reading.text_column, reading.num_texts, reading.max_length
    of_sources = [load_texts([source], column=column, limit=num_texts) for source in sources]
    taken = [text for turn in zip_longest(*of_sources) for text in turn if text is not None]
    return [row[:max_length] for row in token_ids(taken[:num_texts], tokenizer)]
