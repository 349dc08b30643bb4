"""The mean and covariance of what reaches each attention layer's output projection while a model reads texts."""

from collections.abc import Collection, Iterator
from typing import TypeVar

from transformers import PreTrainedModel

from headcount.models.batching import Progress, no_progress
from headcount.models.observe import attention_modules
from headcount.models.reading import Heard, read_layers
from headcount.moments import Covariance, Mean
from headcount.removal.fitting import Fitting

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
    found = {layer: statistic() for layer in attention_modules(model) if layers is None or layer in layers}

    def hear(layer: int, heard: Heard) -> None:
        found[layer].add(heard.outputs[heard.counted])

    for _ in read_layers(model, fitting.texts, [[*found]], fitting.batch_tokens, hear, progress=progress):
        pass
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
    found = {layer: Covariance() for layer in attention_modules(model) if layer in layers}

    def hear(layer: int, heard: Heard) -> None:
        found[layer].add(heard.outputs[heard.counted])

    groups = [[layer] for layer in found]
    for (layer,) in read_layers(model, fitting.texts, groups, fitting.batch_tokens, hear, progress=progress):
        yield layer, found.pop(layer)
