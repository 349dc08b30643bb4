"""Where a model's MLPs write into the residual stream: found as four tokens go through them."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from headcount.errors import ModelError
from headcount.models.decoder import Decoder
from headcount.models.state import evaluating, input_device


@dataclass(frozen=True, kw_only=True)
class Mlp:
    """One decoder layer's MLP.

    Attributes:
        down: the map into the residual stream; its input is the neurons' activations.
        num_neurons: channels of that input.
        makers: the maps whose outputs the neurons are: gate and up, both of them in one map, or the one of a plain MLP.
        reader: a module whose input is the residual stream that the MLP reads: its norm, or its first map where it has none.
        gate: the module that gives the gate, by which another map's output is multiplied; None where no module does.
        plain: whether there is no gate: the activations are what the activation function gives.
        normed: whether what ``down`` writes is normalised, scaled or weighed before it is added.
    """

    down: nn.Module
    num_neurons: int
    makers: tuple[nn.Module, ...]
    reader: nn.Module
    gate: nn.Module | None
    plain: bool
    normed: bool

    @property
    def lacks(self) -> dict[str, str]:
        """Measurements that it does not give, and why."""
        lacking = {}
        if self.gate is None and not self.plain:
            lacking["gate_norm"] = "computes its gate together with other things"
        if self.normed:
            lacking["residual_cosine"] = "normalises or scales what its MLPs write before it is added"
        return lacking


def find_mlps(model: PreTrainedModel, decoder: Decoder, attention: set[nn.Module]) -> dict[int, Mlp]:
    """The MLP of each decoder layer, by the layer's place, as four tokens go through it.

    It is the one linear map outside ``attention`` that writes as many numbers as the residual stream has.

    Raises:
        ModelError: a layer has none, or several, as mixtures of experts do.
    """
    if not decoder.layers:
        raise ModelError(f"The decoder layers of {type(model).__name__} are not found, so its MLPs cannot be measured.")
    calls = [_Calls() for _ in decoder.layers]
    with ExitStack() as stack:
        for layer, seen in zip(decoder.layers, calls, strict=True):
            stack.callback(layer.register_forward_hook(seen.ended, with_kwargs=True).remove)
            for module in _outside(layer, attention):
                seen.watch(module, stack)
        entering = stack.enter_context(decoder.inputs_kept([0]))
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())
        model(input_ids=torch.arange(1, 5, device=input_device(model))[None], use_cache=False)
    return {
        place: _found(model, place, [*_outside(layer, attention)], seen, entering[0].shape[-1])
        for place, (layer, seen) in enumerate(zip(decoder.layers, calls, strict=True))
    }


@dataclass
class _Calls:
    """What the modules of one decoder layer were given and gave, in order."""

    ends: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # what the layer itself was given, and gave
    given: list[tuple[nn.Module, Tensor]] = field(default_factory=list)
    gave: list[tuple[nn.Module, Tensor]] = field(default_factory=list)

    def ended(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = args[0] if args else kwargs["hidden_states"]
        self.ends.append((given, output[0] if isinstance(output, tuple) else output))

    def added_as_it_is(self, residual: Tensor, written: Tensor) -> bool:
        """Whether the layer gives the residual stream that the MLP read and what it wrote, not scaled and not normalised.

        Beside attention (the MLP reads what the layer was given) that cannot be told from outside, and is taken for granted.
        """
        given, gave = self.ends[0]
        if _same(residual, given):
            return True
        added, written = gave.double() - residual.double().reshape(gave.shape), written.double().reshape(gave.shape)
        told = written.abs() > 8 * torch.finfo(gave.dtype).eps * gave.double().abs()  # not lost in the sum's rounding
        added, written = added[told], written[told]
        share = added @ written / (written @ written)
        return bool((share - 1).abs() < 0.05 and torch.cosine_similarity(added, written, dim=0) > 0.95)

    def watch(self, module: nn.Module, stack: ExitStack) -> None:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if isinstance(first := args[0] if args else kwargs.get("hidden_states"), Tensor):
                self.given.append((module, first))

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                self.gave.append((module, output))

        stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        stack.callback(module.register_forward_hook(after).remove)


def _found(model: nn.Module, place: int, modules: list[nn.Module], seen: _Calls, hidden: int) -> Mlp:
    outputs = {id(module): output for module, output in seen.gave}
    maps = [module for module in modules if _is_map(module)]
    writing = [m for m in maps if id(m) not in outputs or outputs[id(m)].shape[-1] == hidden]
    experts = any(isinstance(m, nn.ModuleList) or _is_stack(m) for m in modules)
    calls = [given for module, given in seen.given if len(writing) == 1 and module is writing[0]]
    if experts or len(calls) != 1:
        what = (
            "holds several maps in one module, as mixtures of experts do" if experts
            else f"has {len(writing)} linear maps outside attention that write {hidden} numbers" if len(writing) != 1
            else f"calls its MLP {len(calls)} times a pass"
        )  # fmt: skip
        raise ModelError(
            f"Layer {place} of {type(model).__name__} {what}, where one MLP is expected: its neurons cannot be measured. "
            "Measure its heads, with --unit head."
        )
    down, [activations] = writing[0], calls
    first = next(module for module, given in seen.given if module in maps and given.shape[-1] == hidden)
    read = next(given for module, given in seen.given if module is first)
    made = {id(module) for module, output in seen.gave if not [*module.children()] and _same(output, read)}
    norm = next((module for module, given in seen.given if id(module) in made and not _same(given, read)), None)
    gate = next(
        (m for m, output in seen.gave if not [*m.parameters()] and output.shape[-1] == activations.shape[-1]), None
    )
    plain = gate is not None and _same(outputs[id(gate)], activations)
    width = activations.shape[-1]
    reader = first if norm is None else norm
    return Mlp(
        down=down,
        num_neurons=width,
        makers=tuple(m for m in maps if id(m) in outputs and outputs[id(m)].shape[-1] in (width, 2 * width)),
        reader=reader,
        gate=None if plain else gate,
        plain=plain,
        normed=not seen.added_as_it_is(next(given for m, given in seen.given if m is reader), outputs[id(down)]),
    )


def _outside(module: nn.Module, attention: set[nn.Module]) -> Iterator[nn.Module]:
    """A layer's modules but those of its attention, and of maps but not what is inside them (an adapter's)."""
    for child in module.children():
        if child not in attention:
            yield child
            if not _is_map(child):
                yield from _outside(child, attention)


def _is_map(module: nn.Module) -> bool:
    """Whether it is a linear map, plain, quantised or with an adapter."""
    weight = getattr(module, "weight", None)
    return hasattr(module, "base_layer") or hasattr(module, "out_features") or (
        isinstance(weight, Tensor) and weight.dim() == 2
    )  # fmt: skip


def _is_stack(module: nn.Module) -> bool:
    """Whether it holds the weights of several maps in one tensor, as experts do."""
    return any(p.dim() == 3 for p in module.parameters(recurse=False)) and not isinstance(module, nn.Conv1d)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.numel() == other.numel()
