"""Token-id lists in batches of similar length, and what to do when a batch does not fit in memory."""

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from headcount.devices import moved, out_of_memory
from headcount.errors import InputError, ModelError, whole
from headcount.models.loading import max_positions
from headcount.models.state import input_device

Result = TypeVar("Result")

#: Tokens of an automatic batch on a processor: more give no larger matrix products that would be faster.
_CPU_BATCH_TOKENS = 2048
#: How many times its tokens a packed batch may have in attention, padding included.
_PADDED = 4
#: Part of a GPU's memory beside the weights that a batch may take, and the most tokens that still make it faster.
_GPU_SHARE, _MAX_BATCH_TOKENS = 0.25, 65_536

#: Called with (examples done, examples in all).
Progress = Callable[[int, int], None]


def no_progress(done: int, total: int) -> None:
    """Report nothing."""


def batches_by_tokens(lengths: Sequence[int], batch_tokens: int, *, packed: bool = False) -> Iterator[list[int]]:
    """Indices in batches of at most ``batch_tokens`` tokens, padding included; longest first, at least one a batch.

    Where rows are ``packed``, padding counts in attention alone: there may be a few times as much of it.

    >>> list(batches_by_tokens([3, 9, 2, 4], batch_tokens=8))
    [[1], [3, 0], [2]]
    """
    if batch_tokens < 1:
        raise InputError(f"batch_tokens is the number of tokens in a batch, at least 1; got {batch_tokens}.")
    batch: list[int] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        padded = lengths[batch[0]] * (len(batch) + 1) if batch else 0
        if padded > batch_tokens and (
            not packed or tokens + lengths[index] > batch_tokens or padded > _PADDED * batch_tokens
        ):
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += lengths[index]
    if batch:
        yield batch


def pad(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows padded on the right: token ids and 0/1 mask, both int64 ``[batch, position]``."""
    width = max(map(len, rows))
    tokens = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[i, : len(row)] = 1
    return moved(tokens, device), moved(mask, device)


def batches(
    sizes: Sequence[int], batch_tokens: int, run: Callable[[list[int]], Result], *, packed: bool = False
) -> Iterator[tuple[list[int], Result]]:
    """The indices of each batch with what ``run`` made of it; a batch that does not fit in memory is halved, with a warning.

    ``run`` must leave nothing behind when it raises.

    Raises:
        ModelError: a single example does not fit in memory.
    """
    warned = False
    waiting = list(batches_by_tokens(sizes, batch_tokens, packed=packed))[::-1]
    while waiting:
        batch = waiting.pop()
        try:
            result = run(batch)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
        else:
            yield batch, result
            del result
            continue
        # Only here: the error's traceback holds everything that the failed pass had made.
        if len(batch) == 1:
            raise ModelError(
                f"One example of {sizes[batch[0]]} tokens does not fit in memory. Shorten the inputs (--max-length), use a "
                "smaller dtype, or spread the model over devices (--device-map auto)."
            )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not warned:
            warnings.warn(
                "A batch does not fit in memory and was halved; a smaller batch_tokens (--batch-tokens) spares the attempt.",
                stacklevel=2,
            )
            warned = True
        half = len(batch) // 2
        waiting += [batch[half:], batch[:half]]


def run_in_batches(
    lengths: Sequence[int], batch_tokens: int, run: Callable[[list[int]], None], progress: Progress = no_progress
) -> None:
    """Call ``run`` with the indices of each batch, as ``batches`` does, and report progress."""
    done = 0
    for batch, _ in batches(lengths, batch_tokens, run):
        done += len(batch)
        progress(done, len(lengths))


def batch_tokens_for(model: PreTrainedModel, given: int | None = None) -> int:
    """Tokens in a batch: as ``given``, or as many as suit the memory (a processor's caches, a part of a GPU's memory).

    A GPU's memory less the weights on it, of the fullest where there are several: not what is free at the moment, so that one
    model on one machine is always read in the same batches.
    """
    if given is not None:
        return whole(given, "batch_tokens is the number of tokens in a batch, at least 1", least=1)
    if input_device(model).type != "cuda":
        return _CPU_BATCH_TOKENS
    held = {input_device(model): 0}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_cuda:
            held[tensor.device] = held.get(tensor.device, 0) + tensor.numel() * tensor.element_size()
    beside = min(torch.cuda.mem_get_info(device)[1] - weights for device, weights in held.items())
    config = model.config.get_text_config()
    # A token takes its hidden states in every layer (kept to restart there), keys and values, and a layer's work.
    numbers = config.num_hidden_layers * 3 * config.hidden_size + 16 * config.hidden_size
    tokens = int(beside * _GPU_SHARE / (numbers * model.dtype.itemsize))
    return max(256, min(tokens, _MAX_BATCH_TOKENS))


def check_lengths(
    rows: Sequence[Sequence[int]], model: PreTrainedModel, *, too_long: str = "refuse"
) -> tuple[list[list[int]], int]:
    """Rows that fit the model's positions, and how many were cut.

    Args:
        rows: token ids.
        model: whose positions bound the length.
        too_long: ``refuse``, or ``cut`` to keep the first tokens of rows that are longer.

    Raises:
        InputError: a row is longer than the model's positions and ``too_long`` is ``refuse``, or an id is none of the model's.
    """
    check_tokens(rows, model)
    if too_long not in ("refuse", "cut"):
        raise InputError(f"too_long is 'refuse' or 'cut', not {too_long!r}.")
    bound = max_positions(model)
    longer = [i for i, row in enumerate(rows) if bound is not None and len(row) > bound]
    if longer and too_long == "refuse":
        raise InputError(
            f"{len(longer)} of {len(rows)} inputs are longer than the model's {bound} positions (input {longer[0]} has "
            f"{len(rows[longer[0]])} tokens). Cut them with --too-long cut (too_long='cut'), or split them."
        )
    if longer:
        warnings.warn(
            f"{len(longer)} of {len(rows)} inputs were longer than the model's {bound} positions: their ends were cut off.",
            stacklevel=2,
        )
    return [list(row[:bound]) for row in rows], len(longer)


def check_tokens(rows: Iterable[Sequence[int]], model: PreTrainedModel) -> None:
    """Refuse token ids that the model has no embedding for.

    Embeddings that are larger than the tokenizer's vocabulary are usual, and so are tokenizers with a few tokens more that no
    text holds: what counts is the ids that are there.

    Raises:
        InputError: an id that is negative or beyond the embedding.
    """
    size = num_embeddings(model)
    for i, row in enumerate(rows):
        if row and (min(row) < 0 or max(row) >= size):
            raise beyond_embedding(f"Input {i}", min(row) if min(row) < 0 else max(row), size)


def num_embeddings(model: PreTrainedModel) -> int:
    """How many token ids the model knows, padding of its embedding included."""
    embedding = model.get_input_embeddings()
    assert isinstance(embedding.weight, Tensor)
    return int(getattr(embedding, "num_embeddings", len(embedding.weight)))


def beyond_embedding(what: str, token: int, size: int) -> InputError:
    """That ``what`` has a token id that is none of the model's."""
    return InputError(
        f"{what} has the token id {token}, and the model knows 0…{size - 1}. Use the tokenizer that belongs to this model."
    )


def data_fingerprint(rows: Sequence[Sequence[int]]) -> str:
    """Identifies inputs: 16 hex digits over their token ids, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(np.asarray([len(row), *row], dtype="<i8").tobytes())
    return digest.hexdigest()[:16]
