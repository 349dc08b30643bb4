"""The decoder layers of a model: keep what enters each of them, or start a forward pass at one of them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


class Decoder:
    """The list of a model's decoder layers, each with at most one attention layer.

    Attributes:
        layers: in the order in which the model runs them.
        place_of: attention layer's index in the model → the place of its decoder layer in ``layers``.
    """

    def __init__(self, model: PreTrainedModel, attention_layers: dict[int, str]) -> None:
        """``attention_layers``: index in the model → name of the attention module."""
        self.layers: list[nn.Module] = []
        self.place_of: dict[int, int] = {}
        if found := _layer_list(model, attention_layers):
            self.layers, self.place_of = found

    @contextmanager
    def inputs_kept(self) -> Iterator[list[Tensor]]:
        """Yields a list that receives the hidden states ``[batch, token, hidden]`` entering each layer, in order."""
        kept: list[Tensor] = []

        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kept.append(args[0] if args else kwargs["hidden_states"])

        with ExitStack() as stack:
            for layer in self.layers:
                stack.callback(layer.register_forward_pre_hook(keep, with_kwargs=True).remove)
            yield kept

    @contextmanager
    def starting_at(self, place: int, hidden: Tensor | None) -> Iterator[None]:
        """A pass that skips the layers before ``place``, which receives ``hidden`` instead of what they would give."""

        def skip(*_: Any, **__: Any) -> Any:
            return hidden

        with ExitStack() as stack:
            for layer in self.layers[:place] if hidden is not None else ():
                stack.enter_context(forward_replaced(layer, skip))
            yield


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside, calling the module calls ``forward``; afterwards what it called before, which may have been put there too."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def _layer_list(
    model: PreTrainedModel, attention_layers: dict[int, str]
) -> tuple[list[nn.Module], dict[int, int]] | None:
    """The outermost ModuleList whose entries hold one attention layer each at most, and all of them together."""
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList):
            continue
        start = f"{name}."
        places = {
            layer: int(attention[len(start) :].partition(".")[0])
            for layer, attention in attention_layers.items()
            if attention.startswith(start)
        }
        if places.keys() == attention_layers.keys() and len({*places.values()}) == len(places):
            return [*module], places
    return None
