"""Gradients of a model's loss, layer by layer in memory, with none for its weights."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from headcount.errors import ModelError
from headcount.models.decoder import forward_replaced
from headcount.models.observe import decoder_of


def not_finite(model: PreTrainedModel, layer: int) -> ModelError:
    """That the gradients of a layer came out as no numbers."""
    return ModelError(
        f"Gradients of layer {layer} are not finite in {str(model.dtype).removeprefix('torch.')}. Load the model with --dtype "
        "float32."
    )


def refuse_without_gradients(model: PreTrainedModel, otherwise: str) -> None:
    """Raise ModelError, saying what is needed, or what can be done ``otherwise``, where gradients cannot be computed well."""
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ModelError(
            f"Some weights of {type(model).__name__} are not in the model but offloaded, and gradients need them there. Load it "
            f"without offloading, or {otherwise}."
        )
    quantised = getattr(model, "hf_quantizer", None) is not None or getattr(model, "is_quantized", False)
    if quantised or not all(parameter.is_floating_point() for parameter in model.parameters()):
        raise ModelError(
            f"{type(model).__name__} is quantised, and gradients through its weights cannot be relied on. Load the original "
            f"checkpoint in float32 or bfloat16, or {otherwise}."
        )
    if model.dtype == torch.float16:
        raise ModelError(
            f"Gradients in float16 overflow and vanish. Load the model with --dtype float32 or bfloat16, or {otherwise}."
        )


@contextmanager
def parameters_frozen(model: PreTrainedModel) -> Iterator[None]:
    """Inside, no parameter that the model has gathers gradients."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


@contextmanager
def layers_recomputed(model: PreTrainedModel) -> Iterator[None]:
    """Inside, decoder layers keep their input alone and are run again for the backward pass, one at a time.

    transformers' own switch for this works in training mode only, where some layers drop out.
    """
    with ExitStack() as stack:
        for layer in decoder_of(model).layers:
            stack.enter_context(forward_replaced(layer, _recomputed(layer.forward)))
        yield


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(partial(forward, **kwargs), *args, use_reentrant=True)

    return run
