"""Passes that end at the attention layers that were asked for, and hear what goes in and out of each."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from headcount.attention.attend import attend
from headcount.attention.inputs import AttentionInputs
from headcount.devices import out_of_memory
from headcount.errors import ModelError
from headcount.models.batching import Progress, batches_by_tokens, no_progress, pad
from headcount.models.capabilities import can_restart
from headcount.models.context import ForwardContext
from headcount.models.observe import attention_modules, decoder_of
from headcount.models.projection import output_projection
from headcount.models.state import evaluating, input_device, own_settings
from headcount.models.switch import attention_replaced


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What one attention layer was given and gave in a batch, one row a position, padding included."""

    outputs: Tensor  # [token, head · head_dim], as they enter the output projection
    inputs: (
        Tensor | None
    )  # [token, hidden], what the attention module was called with; None where that is not to be seen
    counted: Tensor  # bool [token], True for the tokens of a text but its first
    first: Tensor  # bool [token], True for the first tokens


#: Called with the layer's index and what was heard of it.
Hear = Callable[[int, Heard], None]


def batch_of(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows side by side where the model takes them: their tokens and mask, and bool ``[row, token]``, which ones count.

    The first token of a text does not: attention sinks live there, and its outputs are like no others'.
    """
    tokens, mask = pad(rows, input_device(model))
    counted = mask.bool()
    counted[:, 0] = False
    return tokens, mask, counted


def read_layers(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    groups: Sequence[Sequence[int]],
    batch_tokens: int,
    hear: Hear,
    *,
    progress: Progress = no_progress,
) -> Iterator[Sequence[int]]:
    """Reads all rows once for each group of layers, and gives the group when they have been read.

    A group's pass ends after its last layer. Where passes can start at a decoder layer, those before it are not computed
    again: what enters that of the last layer of a group is kept, one hidden state a token, and from there the next group is
    read. Between one group and the next the caller may change the model up to the last layer of the group just given.

    Args:
        model: as it is, changed projections included.
        rows: token ids.
        groups: attention layers by index, in the model's order.
        batch_tokens: tokens in a batch, padding included.
        hear: called for each layer and batch. A batch that fails has been heard in part, so it is not tried again in parts.
        progress: called with (groups · rows done, in all).

    Raises:
        ModelError: a batch does not fit in memory.
    """
    modules, decoder = attention_modules(model), decoder_of(model)
    places = decoder.place_of if len(groups) > 1 and can_restart(model) else {}
    batches = list(batches_by_tokens([len(row) for row in rows], batch_tokens))
    entering: list[Tensor | None] = [None] * len(batches)  # what enters the decoder layer `start` in each of them
    start = done = 0
    for group in groups:
        place = places.get(group[-1])
        for number, batch in enumerate(batches):
            with (
                decoder.starting_at(start, entering[number]),
                decoder.inputs_kept([] if place is None else [place]) as kept,
            ):
                _read(model, [rows[i] for i in batch], {layer: modules[layer] for layer in group}, hear)
            entering[number] = kept[0] if kept else None
            done += len(batch)
            progress(done, len(groups) * len(rows))
        start = place or 0
        yield group


def block_inputs(model: PreTrainedModel) -> dict[int, tuple[int, ...] | None]:
    """By layer, the shape of what its attention module is called with on one text of four tokens; None where it is not seen."""
    found: dict[int, tuple[int, ...] | None] = {}

    def hear(layer: int, heard: Heard) -> None:
        found[layer] = None if heard.inputs is None else tuple(heard.inputs.shape)

    _read(model, [[1, 2, 3, 4]], attention_modules(model), hear)
    return found


def changed_outputs(model: PreTrainedModel) -> list[int]:
    """Layers whose output projection is not given what their heads put out but something made of it, such as a gate's product.

    Seen on one text of four tokens.
    """
    given: dict[int, Tensor] = {}
    changed: list[int] = []

    def attended(_: nn.Module, layer: int, inputs: AttentionInputs, context: ForwardContext) -> Tensor:
        output = attend(inputs, context.positions)[0]
        given[layer] = output.transpose(1, 2).flatten(2)
        return output

    def projected(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            if not torch.allclose(args[0].reshape_as(given[layer]), given[layer], rtol=0, atol=0, equal_nan=True):
                changed.append(layer)

        return hook

    with ExitStack() as stack:
        for layer, module in attention_modules(model).items():
            stack.callback(output_projection(module).register_forward_pre_hook(projected(layer)).remove)
        stack.enter_context(evaluating(model))
        stack.enter_context(attention_replaced(model, attended))
        stack.enter_context(torch.inference_mode())
        model.base_model(input_ids=torch.arange(1, 5, device=input_device(model))[None], use_cache=False)
    return changed


class _Enough(Exception):
    """Every layer that was asked for has been read."""


def _read(model: PreTrainedModel, rows: Sequence[Sequence[int]], modules: dict[int, nn.Module], hear: Hear) -> None:
    """A pass over one batch that ends at the last of these attention modules."""
    tokens, mask, counted = batch_of(model, rows)
    first = torch.zeros_like(counted)
    first[:, 0] = True
    marks, last = (counted.flatten(), first.flatten()), [*modules][-1]
    given: dict[int, Tensor | None] = {}

    def entered(layer: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states = args[0] if args else kwargs.get("hidden_states")
            fits = isinstance(states, Tensor) and states.dim() == 3 and states.shape[:2] == tokens.shape
            given[layer] = states.flatten(0, 1) if isinstance(states, Tensor) and fits else None

        return hook

    def leaving(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            counts, firsts = (mark.to(args[0].device) for mark in marks)
            outputs, inputs = args[0].flatten(0, -2), given.pop(layer, None)
            with own_settings(outputs.device.type):
                hear(layer, Heard(outputs=outputs, inputs=inputs, counted=counts, first=firsts))
            if layer == last:
                raise _Enough

        return hook

    with ExitStack() as stack:
        for layer, module in modules.items():
            stack.callback(module.register_forward_pre_hook(entered(layer), with_kwargs=True).remove)
            stack.callback(output_projection(module).register_forward_pre_hook(leaving(layer)).remove)
        try:
            with torch.inference_mode(), suppress(_Enough):
                model.base_model(input_ids=tokens, attention_mask=mask, use_cache=False)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            raise ModelError(
                f"A batch of {tokens.numel()} tokens does not fit in memory. Use a smaller --batch-tokens (batch_tokens)."
            ) from error
