"""What a pruned checkpoint is, and what it saves."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from headcount.models.observe import attention_modules
from headcount.removal.checkpoint import Loaded
from headcount.removal.head_weights import head_weights_of, sizes
from headcount.removal.plan import Plan
from headcount.removal.replace import Replacement
from headcount.removal.selection import Selection
from headcount.removal.verify import Verification


@dataclass(frozen=True, kw_only=True)
class Savings:
    """What a plan leaves, before and after."""

    num_parameters: tuple[int, int]
    key_value_bytes: tuple[int, int]
    """Of the key-value cache, a token."""


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """A pruned checkpoint.

    Attributes:
        folder: where it is.
        selection: what was to go.
        plan: what was cut.
        replacement: what the rest of the model got instead.
        loaded: how it is loaded: a ``stock`` class, the ``modelling file`` in the folder, or ``llama.cpp``.
        verification: its logits against the masked model's.
        savings: parameters and cache; None for zero-filled weights, which save nothing.
    """

    folder: Path
    selection: Selection
    plan: Plan
    replacement: Replacement
    loaded: Loaded
    verification: Verification
    savings: Savings | None


def savings(model: PreTrainedModel, plan: Plan, *, biases: bool = True) -> Savings:
    """Parameters and cache that a plan leaves.

    Args:
        model: the model before the cut.
        plan: what goes.
        biases: whether output projections without a bias get one.
    """
    head_weights, modules = head_weights_of(model), attention_modules(model)
    before = sum(parameter.numel() for parameter in model.parameters())
    saved = cached_before = cached_after = 0
    for layer in plan.layers:
        index, query, key_value = layer.before.index, len(layer.query), len(layer.key_value)
        of_heads, module = head_weights[index], modules[index]
        cached_before += of_heads.cached(layer.before.num_key_value_heads)
        if not layer.unchanged:
            output = module.get_submodule(of_heads.output)
            bias = 0 if getattr(output, "bias", None) is not None or not biases else sizes(output)[0]
            if layer.query:
                full = of_heads.num_parameters(
                    module, layer.before.num_attention_heads, layer.before.num_key_value_heads
                )
                saved += full - of_heads.num_parameters(module, query, key_value) - bias
            else:
                saved += sum(parameter.numel() for parameter in module.parameters()) - sizes(output)[0]
        cached_after += of_heads.cached(key_value) if layer.query else 2  # a removed layer counts tokens in two numbers
    size = model.dtype.itemsize
    return Savings(num_parameters=(before, before - saved), key_value_bytes=(size * cached_before, size * cached_after))
