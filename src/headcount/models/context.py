"""What one forward pass is about: its real tokens, whether it continues a cache, and its random draws."""

import inspect
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from headcount.attention.inputs import Positions, Rows
from headcount.errors import InputError, ModelError
from headcount.models.batching import beyond_embedding, num_embeddings
from headcount.models.draws import draw_rows


class ForwardContext:
    """Read once at the start of a forward pass, before any layer runs."""

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = _call(module, args, kwargs)
        tokens = call.get("input_ids")
        embeddings = call.get("inputs_embeds")
        given = tokens if tokens is not None else embeddings
        if given is None:
            raise InputError("The model was called without input_ids. Pass input_ids (or inputs_embeds).")
        batch, length = given.shape[:2]
        if not batch or not length:
            raise InputError(
                "The model was called without a token. Give each text at least one; an empty prompt has none."
            )
        _check_tokens(module, tokens)
        mask = call.get("attention_mask")
        cache = call.get("past_key_values")
        if cache is not None and not hasattr(cache, "get_seq_length"):
            raise InputError(
                f"past_key_values is a {type(cache).__name__}, not one of transformers' caches. Pass a DynamicCache, or none."
            )
        self.module = module
        self.cache = cache
        self.num_past = 0 if cache is None else int(cache.get_seq_length())
        """Tokens of the text that are in the cache already, padding included."""
        self.continues = self.num_past > 0
        """True for a decoding step: earlier tokens are in the cache, so whole-sequence scores do not exist."""
        self.tokens: Tensor | None = tokens
        self.batch: int = batch
        self.length: int = length
        self.new_mask: Tensor | None = None
        """The 2-D mask of a continuation's own tokens, if one was given."""
        if self.continues:
            self.new_mask = mask[:, -length:] if isinstance(mask, Tensor) and mask.dim() == 2 else None
            mask = None
        elif isinstance(mask, dict) or (mask is not None and mask.dim() != 2):
            mask = _real_of_prepared(mask, batch, length)
        elif mask is not None and mask.shape != (batch, length):
            raise InputError(
                f"attention_mask has shape {tuple(mask.shape)}, the inputs {(batch, length)}: they must agree."
            )
        elif mask is None and cache is None:
            _refuse_packed(call.get("position_ids"))
        self.positions = Positions.from_mask(mask, batch, length, given.device)
        if mask is not None and self.positions.real is not None and not bool(self.positions.real.any(1).all()):
            raise InputError("An example of the batch is padding only. Leave empty examples out.")
        self.num_layers = 0
        """Attention layers that ran so far."""
        self._uniform: dict[tuple[int, int, int], Tensor] = {}
        self._texts: list[np.ndarray] | None = None
        self._handed_on = False

    def hands_on(self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call of the model's base is that of this very pass, which happens once."""
        if self._handed_on or base is self.module:
            return False
        tokens = _call(base, args, kwargs).get("input_ids")
        self._handed_on = tokens is None or tokens is self.tokens
        return self._handed_on

    @property
    def places(self) -> Tensor:
        """int64 ``[batch, token]``: where in its text each token stands, in a pass that reads texts from their start."""
        own = torch.arange(self.length, device=self.positions.first.device)
        return own.expand(self.batch, -1) if self.positions.real is None else self.positions.real.cumsum(1) - 1

    def rows(self, window: int | None) -> Rows | None:
        """Where the texts of a pass that reads them from their start stand; None where padding is between their tokens."""
        of = self.positions
        if of.real is not None and not bool((of.num_tokens == of.last - of.first + 1).all()):
            return None
        queries = torch.stack([of.first, of.num_tokens], dim=1).int()
        return Rows(
            queries=queries, keys=queries[:, None], packed=False, most_queries=self.length, most_keys=self.length,
            window=window,
        )  # fmt: skip

    def fetch_texts(self) -> list[np.ndarray]:
        """Each example's real tokens, in main memory; before the first layer, since the host waits for them."""
        if self._texts is None:
            if self.tokens is None:
                raise ModelError("Random heads are drawn from an example's tokens: call the model with input_ids.")
            tokens = self.tokens.cpu().numpy()
            real = None if self.positions.real is None else self.positions.real.cpu().numpy()
            self._texts = [row if real is None else row[real[i]] for i, row in enumerate(tokens)]
        return self._texts

    def uniform(self, seed: int, num_layers: int, num_heads: int) -> Tensor:
        """Float32 ``[batch, layer, head]`` on [0, 1), a function of the seed and each example's real tokens alone."""
        key = seed, num_layers, num_heads
        if key not in self._uniform:
            self._uniform[key] = draw_rows(self.fetch_texts(), seed, (num_layers, num_heads))
        return self._uniform[key]


def _check_tokens(module: nn.Module, tokens: Tensor | None) -> None:
    """On a GPU, asking would make every pass wait for the one before it."""
    if tokens is None or tokens.device.type != "cpu" or not tokens.numel() or not isinstance(module, PreTrainedModel):
        return
    size = num_embeddings(module)
    lowest, highest = (int(bound) for bound in tokens.aminmax())
    if lowest < 0 or highest >= size:
        raise beyond_embedding("An input", lowest if lowest < 0 else highest, size)


def _call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    call = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
    unnamed = call.pop("args", ())  # of wrappers, which hand on whatever they are given
    if len(unnamed) > 1:
        raise InputError(
            f"{type(module).__name__} was given {len(unnamed)} inputs without names. Pass them by keyword."
        )
    return call | dict(zip(("input_ids",), unnamed, strict=False)) | call.pop("kwargs", {})


def _real_of_prepared(given: Tensor | dict[str, Tensor], batch: int, length: int) -> Tensor:
    """Real tokens, bool ``[batch, position]``, of masks that transformers prepares itself: with a static cache it does.

    A token is real if it may attend to itself. Anything but one text a row, seen causally or through a window, is refused.
    """
    for mask in given.values() if isinstance(given, dict) else [given]:
        if mask is None or mask.dim() != 4 or mask.shape[2] != length or mask.shape[3] < length:
            continue
        allowed = mask[:, 0, :, :length]
        allowed = (allowed if allowed.dtype == torch.bool else allowed == 0).expand(batch, length, length)
        real = allowed.diagonal(dim1=1, dim2=2)
        position = torch.arange(length, device=mask.device)
        distance = position[:, None] - position
        window = distance.masked_fill(~allowed, 0).amax() + 1
        expected = (distance >= 0) & (distance < window) & real[:, None, :]
        if bool(real.any(1).all()) and bool((allowed == expected)[real].all()):
            return real
    raise InputError(
        "attention_mask must be 2-D [batch, position] with 1 for real tokens, so that padding can be told apart; "
        f"got {'a dict of masks' if isinstance(given, dict) else f'shape {tuple(given.shape)}'}, which is not plainly one "
        "causal text a row."
    )


def _refuse_packed(position_ids: Tensor | None) -> None:
    if position_ids is not None and position_ids.shape[-1] > 1 and bool((position_ids.diff(dim=-1) != 1).any()):
        raise InputError(
            "position_ids restart inside a row, which packs several texts into one. Heads are measured per text: pass one "
            "text per row, padded, with an attention_mask."
        )
