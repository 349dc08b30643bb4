"""What reaches the output projection of each attention layer, while a model reads texts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from headcount.models.batching import Progress, no_progress, pad, run_in_batches
from headcount.models.observe import attention_modules
from headcount.models.projection import output_projection
from headcount.models.state import input_device

#: Called with a layer's index and its concatenated head outputs ``[token, head · head_dim]``, real tokens alone.
Reader = Callable[[int, Tensor], None]


class _Enough(Exception):
    """Every layer that was asked for has been read."""


def read_head_outputs(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    read: Reader,
    *,
    layers: Sequence[int] | None = None,
    batch_tokens: int = 4096,
    progress: Progress = no_progress,
) -> None:
    """Run the model over ``rows`` and hand over what its attention layers' output projections are given.

    The first token of each text is left out: attention sinks live there, and its outputs are like no other's.

    Args:
        model: as it is, changed projections included.
        rows: token ids of each text; those of a single token are skipped.
        read: called once for each batch and layer.
        layers: the layers to read; None for all.
        batch_tokens: tokens in a batch, padding included.
        progress: called with (texts done, texts in all).
    """
    modules = attention_modules(model)
    wanted = list(modules) if layers is None else [layer for layer in modules if layer in set(layers)]
    rows = [row for row in rows if len(row) > 1]
    device = input_device(model)
    counted: list[Tensor] = []

    def reader(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            outputs = args[0].detach()
            read(layer, outputs.flatten(0, -2)[counted[0].flatten().to(outputs.device)])
            if layer == wanted[-1]:
                raise _Enough

        return hook

    def run(batch: list[int]) -> None:
        tokens, mask = pad([rows[i] for i in batch], device)
        real = mask.bool()
        real[:, 0] = False
        counted[:] = [real]
        with suppress(_Enough):
            model.base_model(input_ids=tokens, attention_mask=mask, use_cache=False)

    handles = [output_projection(modules[layer]).register_forward_pre_hook(reader(layer)) for layer in wanted]
    try:
        with torch.inference_mode():
            run_in_batches([len(row) for row in rows], batch_tokens, run, progress)
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def parameters_restored(projections: Sequence[nn.Module]) -> Iterator[None]:
    """On exit the projections have the weights and biases that they had on entry, the same tensors."""
    before: list[tuple[Any, Any, Any]] = [
        (projection, projection.weight, getattr(projection, "bias", None)) for projection in projections
    ]
    try:
        yield
    finally:
        for projection, weight, bias in before:
            projection.weight = weight
            projection.bias = bias
