"""Texts that are learnt from, as token ids."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from headcount.cli.options import Reading
from headcount.measure import token_ids
from headcount.texts import load_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def first_texts(sources: Sequence[str], reading: Reading) -> list[str]:
    """Up to ``num_texts`` texts, equally many from each source where they have enough.

    Args:
        sources: as of ``load_texts``.
        reading: which column, and how many texts in all.

    Raises:
        InputError: texts that cannot be read.
    """
    column, num_texts = reading.text_column, reading.num_texts
    of_sources = [load_texts([source], column=column, limit=num_texts) for source in sources]
    return [text for turn in zip_longest(*of_sources) for text in turn if text is not None][:num_texts]


def first_tokens(texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", reading: Reading) -> list[list[int]]:
    """The first ``max_length`` tokens of each text."""
    return [row[: reading.max_length] for row in token_ids(texts, tokenizer)]
