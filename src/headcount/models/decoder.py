"""The decoder layers of a model: keep what enters each of them, or start a forward pass at one of them."""

from collections.abc import Callable, Iterator, Sequence
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

    def __init__(
        self, model: PreTrainedModel, attention_layers: dict[int, str], returned: dict[nn.Module, int]
    ) -> None:
        """``attention_layers``: index in the model → name of the attention module; ``returned``: as of ``lists_watched``."""
        self.layers: list[nn.Module] = []
        self.place_of: dict[int, int] = {}
        if found := _layer_list(model, attention_layers):
            self.layers, self.place_of = found
        self._returned = [returned.get(layer, 0) for layer in self.layers]

    @contextmanager
    def inputs_kept(self, places: Sequence[int] | None = None) -> Iterator[list[Tensor]]:
        """Yields a list that receives the hidden states ``[batch, token, hidden]`` entering layers, in order; None is all."""
        kept: list[Tensor] = []

        def keep(hidden: Tensor) -> Tensor:
            kept.append(hidden)
            return hidden

        with ExitStack() as stack:
            for layer in self.layers if places is None else [self.layers[place] for place in places]:
                stack.enter_context(entered_by(layer, keep))
            yield kept

    @contextmanager
    def starting_at(self, place: int, hidden: Tensor | None) -> Iterator[None]:
        """A pass that skips the layers before ``place``, which receives ``hidden`` instead of what they would give."""
        with ExitStack() as stack:
            if hidden is not None:
                for layer, returned in zip(self.layers[:place], self._returned, strict=False):
                    stack.enter_context(forward_replaced(layer, _pass_through(returned)))
                stack.enter_context(entered_by(self.layers[place], lambda _: hidden))
            yield


@contextmanager
def lists_watched(model: nn.Module) -> Iterator[dict[nn.Module, int]]:
    """Yields a dict that receives how many values each entry of a module list returns; 0 is a bare tensor."""
    returned: dict[nn.Module, int] = {}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        returned[module] = len(output) if isinstance(output, tuple) else 0

    with ExitStack() as stack:
        for module in {entry for each in model.modules() if isinstance(each, nn.ModuleList) for entry in each}:
            stack.callback(module.register_forward_hook(note).remove)
        yield returned


@contextmanager
def entered_by(layer: nn.Module, instead: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, the layer is given ``instead`` of its hidden states."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (instead(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": instead(kwargs["hidden_states"])}

    handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _pass_through(returned: int) -> Callable[..., Any]:
    """A layer's forward that hands its hidden states on as they are, the first of so many values."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden, *[None] * (returned - 1)) if returned else hidden

    return forward


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
