"""Read the attention layers of a model one after the other, while each may be changed before the next is read."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from headcount.errors import ModelError
from headcount.models.batching import Progress, batches_by_tokens, no_progress, pad
from headcount.models.decoder import forward_replaced
from headcount.models.observe import attention_modules
from headcount.models.projection import output_projection
from headcount.models.state import input_device
from headcount.removal.moments import Moments


class _Enough(Exception):
    """The layer that was asked for has been read."""


def walk_layers(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    layers: Sequence[int],
    *,
    batch_tokens: int = 4096,
    progress: Progress = no_progress,
) -> Iterator[tuple[int, Moments]]:
    """Each of ``layers``, in the model's order, with the moments of what its output projection is given.

    Between one layer and the next the caller may change the model up to the layer just given; later layers are read on the
    changed model. The blocks passed so far are not computed again: what enters the block of the last layer read is kept,
    one hidden state a token, and from there the walk goes on. Tokens are those of ``read_head_outputs``.

    Args:
        model: whose decoder blocks are called once each, one after the other.
        rows: token ids of each text; those of a single token are skipped.
        layers: attention layers by index.
        batch_tokens: tokens in a batch, padding included.
        progress: called with (layers · texts done, in all).

    Raises:
        ModelError: a batch does not fit in memory.
    """
    rows = [row for row in rows if len(row) > 1]
    modules = attention_modules(model)
    order = [layer for layer in modules if layer in set(layers)]
    blocks = _blocks(model)
    block_of = {
        layer: place
        for layer in order
        for place, (block, _) in enumerate(blocks)
        if any(module is modules[layer] for module in block.modules())
    }
    batches = list(batches_by_tokens([len(row) for row in rows], batch_tokens))
    kept: list[Tensor] | None = None  # for each batch, what enters block `start`
    start, done = 0, 0
    for layer in order:
        moments = Moments()
        entering: list[Tensor] = []
        for number, batch in enumerate(batches):
            tokens, mask = pad([rows[i] for i in batch], input_device(model))
            counted = mask.bool()
            counted[:, 0] = False
            with ExitStack() as stack:
                if kept is not None:
                    for block, width in blocks[:start]:
                        stack.enter_context(forward_replaced(block, _pass_through(width)))
                    stack.enter_context(_entered_by(blocks[start][0], lambda _, k=number, of=kept: of[k]))
                if layer in block_of:
                    stack.enter_context(_entered_by(blocks[block_of[layer]][0], _noting(entering)))
                stack.enter_context(torch.inference_mode())
                stack.enter_context(_ends_at(output_projection(modules[layer]), counted, moments))
                try:
                    model.base_model(input_ids=tokens, attention_mask=mask, use_cache=False)
                except torch.OutOfMemoryError as error:
                    raise ModelError(
                        f"A batch of {tokens.numel()} tokens does not fit in memory. Use a smaller --batch-tokens (batch_tokens)."
                    ) from error
            done += len(batch)
            progress(done, len(order) * len(rows))
        if layer in block_of:
            kept, start = entering, block_of[layer]
        yield layer, moments


def _noting(into: list[Tensor]) -> Callable[[Tensor], Tensor]:
    def note(hidden: Tensor) -> Tensor:
        into.append(hidden)
        return hidden

    return note


def _blocks(model: PreTrainedModel) -> list[tuple[Any, int]]:
    """The decoder blocks in the order in which they are called, and how many values each returns (0: a bare tensor)."""
    found: list[tuple[Any, int]] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        found.append((module, len(output) if isinstance(output, tuple) else 0))

    kinds = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    handles = [module.register_forward_hook(note) for module in kinds]
    try:
        with torch.inference_mode():
            model.base_model(input_ids=torch.arange(1, 5, device=input_device(model))[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _pass_through(width: int) -> Callable[..., Any]:
    """A block's forward that hands its hidden states on as they are."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden, *[None] * (width - 1)) if width else hidden

    return forward


@contextmanager
def _entered_by(block: nn.Module, instead: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, the block is given ``instead`` of its hidden states."""

    def hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (instead(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": instead(kwargs["hidden_states"])}

    handle = block.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _ends_at(projection: nn.Module, counted: Tensor, moments: Moments) -> Iterator[None]:
    """Inside, a pass that reaches the projection adds to ``moments`` what it is given there, and ends."""

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        moments.add(args[0].flatten(0, -2)[counted.flatten().to(args[0].device)])
        raise _Enough

    handle = projection.register_forward_pre_hook(hook)
    try:
        with suppress(_Enough):
            yield
    finally:
        handle.remove()
