"""The mean and covariance of what reaches each attention layer's output projection while a model reads texts."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from headcount.devices import out_of_memory
from headcount.errors import ModelError
from headcount.models.batching import Progress, batches_by_tokens, no_progress
from headcount.models.capabilities import can_restart
from headcount.models.observe import attention_modules, decoder_of
from headcount.models.projection import output_projection
from headcount.removal.fitting import Fitting, batch_of


class Mean:
    """The mean of vectors that come a batch at a time."""

    def __init__(self) -> None:
        self.count = 0
        self._sum = torch.zeros((), dtype=torch.float64)  # [feature] from the first vectors on

    def add(self, vectors: Tensor) -> None:
        """``vectors``: ``[token, feature]``."""
        self.count += len(vectors)
        self._sum = self._sum + vectors.sum(0, dtype=torch.float64)

    @property
    def mean(self) -> Tensor:
        """float64 ``[feature]``."""
        return self._sum / self.count


class Covariance(Mean):
    """The mean and the covariance of vectors, in one pass, with none of them kept."""

    def __init__(self) -> None:
        super().__init__()
        self._products = torch.zeros((), dtype=torch.float64)  # [feature, feature] from the first vectors on
        self._origin: Tensor | None = (
            None  # float32 [feature]; products about a point near the mean lose no digits to it
        )

    def add(self, vectors: Tensor) -> None:
        vectors = vectors.float()
        if self._origin is None:
            self._origin = vectors.mean(0)
        vectors = vectors - self._origin
        super().add(vectors)
        self._products = self._products + (vectors.T @ vectors).double()

    @property
    def covariance(self) -> Tensor:
        """float64 ``[feature, feature]``, about the mean, divided by the count."""
        shift = super().mean
        return self._products / self.count - torch.outer(shift, shift)

    @property
    def mean(self) -> Tensor:
        assert self._origin is not None
        return super().mean + self._origin


Statistic = TypeVar("Statistic", bound=Mean)


def head_output_statistics(
    model: PreTrainedModel,
    fitting: Fitting,
    statistic: type[Statistic],
    *,
    layers: Collection[int] | None = None,
    progress: Progress = no_progress,
) -> dict[int, Statistic]:
    """By layer, the ``Mean`` or ``Covariance`` of its concatenated head outputs, over all tokens that count.

    Args:
        model: as it is, changed projections included.
        fitting: the texts.
        statistic: ``Mean`` or ``Covariance``.
        layers: attention layers by index; None for all.
        progress: called with (texts done, texts in all).

    Raises:
        ModelError: a batch does not fit in memory.
    """
    modules, texts = attention_modules(model), fitting.texts
    found = {layer: statistic() for layer in modules if layers is None or layer in layers}
    done = 0
    for batch in batches_by_tokens([len(text) for text in texts], fitting.batch_tokens):
        _read(model, [texts[i] for i in batch], modules, found)
        done += len(batch)
        progress(done, len(texts))
    return found


def walk_layers(
    model: PreTrainedModel, fitting: Fitting, layers: Collection[int], *, progress: Progress = no_progress
) -> Iterator[tuple[int, Covariance]]:
    """Each of ``layers``, in the model's order, with the covariance of its head outputs.

    Between one layer and the next the caller may change the model up to the layer just given; later layers are read on the
    changed model. Where passes can start at a decoder layer, those before it are not computed again: what enters that of
    the last attention layer read is kept, one hidden state a token, and from there the walk goes on.

    Args:
        model: as it is.
        fitting: the texts.
        layers: attention layers by index.
        progress: called with (layers · texts done, in all).

    Raises:
        ModelError: a batch does not fit in memory.
    """
    modules, decoder, texts = attention_modules(model), decoder_of(model), fitting.texts
    order = [layer for layer in modules if layer in layers]
    places = decoder.place_of if can_restart(model) else {}
    batches = list(batches_by_tokens([len(text) for text in texts], fitting.batch_tokens))
    entering: list[Tensor | None] = [None] * len(batches)  # what enters the decoder layer `start` in each of them
    start = done = 0
    for layer in order:
        place, found = places.get(layer), Covariance()
        for number, batch in enumerate(batches):
            with (
                decoder.starting_at(start, entering[number]),
                decoder.inputs_kept([] if place is None else [place]) as kept,
            ):
                _read(model, [texts[i] for i in batch], modules, {layer: found})
            entering[number] = kept[0] if kept else None
            done += len(batch)
            progress(done, len(order) * len(texts))
        start = place or 0
        yield layer, found


class _Enough(Exception):
    """Every layer that was asked for has been read."""


def _read(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], modules: dict[int, nn.Module], to: dict[int, Statistic]
) -> None:
    """A pass that adds what each layer of ``to`` gives its output projection, and ends at the last of them.

    One that fails has added some of it, so a batch is not tried again in parts.
    """
    tokens, mask, counted = batch_of(model, rows)
    last = [*to][-1]

    def adding(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            to[layer].add(args[0].flatten(0, -2)[counted.flatten().to(args[0].device)])
            if layer == last:
                raise _Enough

        return hook

    with ExitStack() as stack:
        for layer in to:
            stack.callback(output_projection(modules[layer]).register_forward_pre_hook(adding(layer)).remove)
        try:
            with torch.inference_mode(), suppress(_Enough):
                model.base_model(input_ids=tokens, attention_mask=mask, use_cache=False)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            raise ModelError(
                f"A batch of {tokens.numel()} tokens does not fit in memory. Use a smaller --batch-tokens (batch_tokens)."
            ) from error
