"""What a model is at a moment, so that what was found out about it is believed only as long as it is true."""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any
from weakref import ref

from torch import Tensor, nn

from headcount.models.state import accelerate_hooks

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


class Stamp:
    """Equal to another as long as the same objects stand in the same places and the facts about them are the same."""

    def __init__(self, objects: Iterable[Any], facts: Any) -> None:
        self._objects = [ref(item) for item in objects]  # ids alone could be those of something newer
        self._facts = facts

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Stamp)
            and len(self._objects) == len(other._objects)
            and all(
                (mine := a()) is not None and mine is b() for a, b in zip(self._objects, other._objects, strict=True)
            )
            and self._facts == other._facts
        )

    __hash__ = None  # type: ignore[assignment]


def structure(model: nn.Module) -> Stamp:
    """A model's modules, the shapes of their parameters, and its configurations."""
    modules = [*model.modules()]
    configs = {id(config): config for module in modules if (config := getattr(module, "config", None)) is not None}
    facts = (
        [type(module) for module in modules],
        [parameter.shape for parameter in model.parameters()],
        [config.to_dict() for config in configs.values() if hasattr(config, "to_dict")],
    )
    return Stamp(modules, facts)


def weights(model: nn.Module) -> Stamp:
    """A model's parameters and buffers and what is in them, as far as PyTorch counts changes.

    Offloaded ones, of which the model has other empty tensors after every pass, are known by the hooks that keep them.
    """
    tensors = [*model.parameters(), *model.buffers()]
    hooks = [hook for module in model.modules() for hook in accelerate_hooks(module) if getattr(hook, "offload", False)]
    objects = [*(tensor for tensor in tensors if not tensor.is_meta), *hooks]
    return Stamp(objects, [_contents(tensor) for tensor in tensors])


def scalars(module: nn.Module) -> dict[str, Any]:
    """The plain attributes of a module itself: sizes, flags, scales, names."""
    return {
        name: deepcopy(value)
        for name, value in vars(module).items()
        if name not in _OF_EVERY_MODULE and _is_plain(value)
    }


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _contents(tensor: Tensor) -> tuple[Any, ...]:
    version = None if tensor.is_inference() or tensor.is_meta else tensor._version
    try:
        place = tensor.data_ptr()
    except RuntimeError:  # tensors without storage of their own
        place = None
    return tensor.shape, tensor.dtype, tensor.device, place, version
