"""What a layer's queries see, said by number where a GPU's kernel reads it so, instead of in a mask."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

from headcount.attention.inputs import Rows


class NumberedMask(Tensor):
    """Stands for a mask on its way through the model, bool ``[row, 1, query, key]``; made only if something reads it.

    Attributes:
        rows: what it says.
    """

    rows: Rows
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @staticmethod
    def __new__(cls, rows: Rows) -> "NumberedMask":
        shape = len(rows.queries), 1, rows.most_queries, rows.most_keys
        made = Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bool, device=rows.queries.device)  # pyright: ignore
        made.rows = rows
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        given: dict[str, Any] = kwargs or {}
        if func is torch.ops.aten._to_copy.default and given.get("dtype") in (None, torch.bool):
            return cls(args[0].rows.to(torch.device(given.get("device", args[0].device))))
        return func(*tree_map(_as_mask, args), **{name: _as_mask(value) for name, value in given.items()})

    def __repr__(self, **_: Any) -> str:
        return f"NumberedMask({self.rows})"


def _as_mask(leaf: Any) -> Any:
    if not isinstance(leaf, NumberedMask):
        return leaf
    if leaf.rows.packed:
        raise RuntimeError("The model reads its mask, and rows that stand end to end have none.")
    return leaf.rows.mask(*leaf.shape[2:])


def window_of(allowed: Callable[..., Any]) -> tuple[int | None] | None:
    """A layer's window by transformers' rule of what it may see, ``(None,)`` where it has none; None for other rules."""
    if allowed is causal_mask_function:
        return (None,)
    known = sliding_window_causal_mask_function(1)
    rules, known_rules = (_nonlocal(of, "mask_functions") for of in (allowed, known))
    if getattr(allowed, "__code__", None) is not known.__code__ or len(rules) != 2 or rules[1] is not known_rules[1]:
        return None
    if getattr(rules[0], "__code__", None) is not known_rules[0].__code__:
        return None
    window = _nonlocal(rules[0], "sliding_window")
    return (window,) if isinstance(window, int) and window > 0 else None


def _nonlocal(function: Any, name: str) -> Any:
    return inspect.getclosurevars(function).nonlocals.get(name, ()) if inspect.isfunction(function) else ()
