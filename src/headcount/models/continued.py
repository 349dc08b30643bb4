"""What a cache may keep: which heads were decided on the prompt that is in it, for as long as it is in it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from headcount.errors import InputError
from headcount.models.context import ForwardContext
from headcount.models.probe import Examples


@dataclass(frozen=True, kw_only=True)
class Decided:
    """What a layer decided on a text, and the averages that run on from there."""

    off: Tensor  # bool [row, head]
    first: Tensor  # int64 [row], the first real position
    num_tokens: Tensor  # int64 [row], real tokens so far
    measured: dict[str, Tensor] | None  # each [row, head]; None where the prompt's heads stay

    def of_rows(self, rows: Tensor) -> "Decided":
        rows = rows.to(self.off.device)
        measured = None if self.measured is None else {name: values[rows] for name, values in self.measured.items()}
        return Decided(off=self.off[rows], first=self.first[rows], num_tokens=self.num_tokens[rows], measured=measured)


@dataclass(frozen=True, kw_only=True)
class Continued:
    """A batch of texts that is in a cache, with what was decided on each."""

    layers: Mapping[int, Decided]
    examples: Examples
    rows: Tensor  # int64 [row], the example that each text continues
    needed: int  # positions that heads were decided on, padding included
    length: int  # positions read so far
    state: "_State"

    def of_rows(self, rows: Tensor) -> "Continued":
        if torch.equal(rows, torch.arange(len(self.rows))):
            return self
        layers = {layer: decided.of_rows(rows) for layer, decided in self.layers.items()}
        return replace(self, layers=layers, rows=self.rows[rows])


class Caches:
    """The texts in the caches that one block filled, each cache's own."""

    def __init__(self, *, fixed: bool, running: bool) -> None:
        """``fixed``: heads do not depend on the text. ``running``: they depend on all of it, not on the prompt alone."""
        self._fixed, self._running = fixed, running
        self._known: WeakKeyDictionary[Any, Continued] = WeakKeyDictionary()

    def keep(
        self,
        cache: Any,
        context: ForwardContext,
        layers: Mapping[int, Decided],
        *,
        before: Continued | None,
        examples: Examples | None,
    ) -> None:
        """Remember what was decided in a pass that was completed: it continued ``before``, or read new ``examples``."""
        length = context.num_past + context.length
        state = _State(cache)
        if before is not None:
            self._known[cache] = replace(
                before, layers={**before.layers, **layers}, needed=length if self._running else before.needed,
                length=length, state=state,
            )  # fmt: skip
        elif examples is not None:
            rows = torch.arange(context.batch)
            self._known[cache] = Continued(
                layers=layers, examples=examples, rows=rows, needed=0 if self._fixed else length, length=length,
                state=state,
            )  # fmt: skip

    def forget(self, cache: Any) -> None:
        """A pass is about to change the cache; only its completion makes it known again."""
        self._known.pop(cache, None)

    def find(self, context: ForwardContext) -> Continued:
        """The texts that a pass continues, row by row.

        Texts are recognised by their keys, so that a cache may be cut back to anywhere after its prompt, copied,
        reordered, repeated and selected from (beam search, assisted decoding).

        Raises:
            InputError: the cache holds texts whose prompts were not read in this block.
        """
        cut = False
        for _, before in sorted(self._known.items(), key=lambda known: known[0] is not context.cache):
            rows = before.state.rows_in(context.cache, context.num_past, before)
            if rows is None:
                continue
            if context.num_past < before.needed:
                cut = True
                continue
            if len(rows) == context.batch:
                return before.of_rows(rows)
        raise InputError(
            "The cache was cut back to before the end of what its heads were decided on. Read the shorter text anew."
            if cut
            else "A pass that continues a cache keeps the heads decided on its prompt, but the prompt did not run in this "
            "`with` block with the same batch, or the cache was changed since. Run prompt and continuation inside one block."
        )


class _State:
    """What is in a cache after a pass, in the one layer by whose keys texts are recognised: the deepest without a window."""

    def __init__(self, cache: Any) -> None:
        layers = _layers(cache)
        holding = [(not _is_window(layer), i) for i, layer in enumerate(layers) if _keys(layer) is not None]
        self._place = max(holding)[1] if holding else len(layers) - 1
        self._parts = dict(vars(layers[self._place])) if layers else {}
        self._keys = _keys(layers[self._place]) if layers else None
        self._version = _version(self._keys)

    def rows_in(self, cache: Any, length: int, of: "Continued") -> Tensor | None:
        """Which text each row of a cache holds, of ``length`` positions; None where a row holds none of them."""
        layers = _layers(cache)
        if length > of.length or not 0 <= self._place < len(layers):
            return None
        layer = layers[self._place]
        keys = _keys(layer)
        if keys is self._keys:
            only_keys = keys is not None and not hasattr(layer, "_quantized_keys")
            changed = not only_keys and any(_differ(self._parts.get(name), part) for name, part in vars(layer).items())
            return None if changed or _version(keys) != self._version else torch.arange(len(of.rows))
        if keys is None or self._keys is None or keys.shape[1::2] != self._keys.shape[1::2]:
            return None
        # A window forgets what was before, and a static cache has room for what comes.
        own_start, start = max(0, of.length - self._keys.shape[2]), max(0, length - keys.shape[2])
        shared = max(own_start, start)
        if shared >= length:
            return None
        theirs = _digests(keys[:, :, shared - start : length - start])
        ours = _digests(self._keys[:, :, shared - own_start : length - own_start])
        same = theirs[:, None] == ours  # [row, row of ours]
        rows = same.int().argmax(1)
        certain = same.any(1)
        if shared > 0:  # texts that end alike may have been decided on differently
            off = torch.cat([decided.off.cpu() for decided in of.layers.values()], dim=1)
            certain &= ((off == off[rows][:, None]).all(-1) | ~same).all(1)
        return rows if bool(certain.all()) else None


def _layers(cache: Any) -> list[Any]:
    return getattr(getattr(cache, "self_attention_cache", cache), "layers", [])


def _differ(before: Any, now: Any) -> bool:
    return before is not now and (isinstance(before, Tensor) or isinstance(now, Tensor))


def _keys(layer: Any) -> Tensor | None:
    keys = getattr(layer, "keys", None)
    return keys if isinstance(keys, Tensor) and keys.dim() == 4 and keys.numel() else None


def _is_window(layer: Any) -> bool:
    return bool(getattr(layer, "is_sliding", False))


def _version(tensor: Tensor | None) -> int | None:
    return None if tensor is None or tensor.is_inference() else tensor._version


def _digests(keys: Tensor) -> Tensor:
    """int64 [row], different where a single bit of ``keys [row, head, slot, head_dim]`` is."""
    bits = keys.contiguous().flatten(1)
    numbers = bits.view(torch.int16 if bits.element_size() > 1 else torch.uint8).to(torch.int64)
    # Odd multipliers that differ from place to place: those of a linear congruential generator.
    place = torch.arange(numbers.shape[1], device=keys.device)
    return ((numbers + 1) * ((place * 6364136223846793005 + 1442695040888963407) | 1)).sum(1).cpu()
