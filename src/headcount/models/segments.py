"""Forward passes over parts of texts: tokens that continue what an earlier pass read, from any decoder layer on.

A *segment* is a stretch of tokens. Texts that begin alike share the segment they begin with: it is read once, and the
segments that follow see its keys and values. Measurements run on along the way, so that the last segment of a text has
the measurements of the whole text. Nothing is approximated: a token's computation is the one it has in a whole pass.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from headcount.attention.inputs import AttentionInputs, Positions
from headcount.attention.measurements import extended
from headcount.models.batching import input_device
from headcount.models.context import ForwardContext
from headcount.models.decoder import Decoder
from headcount.models.instrument import decoder_of, head_geometry, zero_heads
from headcount.models.measuring import LayerMeter
from headcount.models.switch import attention_replaced


class PrefixUnseenError(Exception):
    """A model whose layers do not take their masks from transformers' mask interface, so that a prefix would be missed."""


#: (layer, measurements of each row's whole text so far, [row, head], device) → heads to zero, bool [row, head], or None.
Decide = Callable[[int, dict[str, Tensor], tuple[int, int], torch.device], Tensor | None]


@dataclass(frozen=True, kw_only=True)
class _LayerState:
    """One layer's keys and values of every row's text so far, and its measurements."""

    key: Tensor  # [row, key-value head, slot, head_dim]
    value: Tensor
    measured: dict[str, Tensor]  # each [row, head]


@dataclass(frozen=True, kw_only=True)
class Segments:
    """A batch of segments that was read.

    Attributes:
        lengths: int64 [row], tokens of each row's own segment.
        ends: int64 [row], tokens of each row's text up to and with its segment.
        parents: int64 [row], the row of ``prefix`` that each row continues; None without a prefix.
        prefix: the batch that was continued.
        hidden: what entered each decoder layer from the first that ran, [row, token, hidden_size]; empty unless kept.
        start: the place of the first decoder layer that ran.
    """

    lengths: Tensor
    ends: Tensor
    parents: Tensor | None
    prefix: "Segments | None"
    hidden: list[Tensor]
    start: int
    real: Tensor  # bool [row, slot]: which slots of the keys are tokens of the row's text
    positions: Tensor  # int64 [row, slot]
    layers: dict[int, _LayerState]

    def hidden_of(self, row: int, place: int) -> Tensor:
        """What entered the decoder layer at ``place`` for every token of a row's whole text, ``[token, hidden_size]``."""
        own = self.hidden[place - self.start][row, : int(self.lengths[row])]
        if self.prefix is None or self.parents is None:
            return own
        return torch.cat([self.prefix.hidden_of(int(self.parents[row]), place), own])


class SegmentReader:
    """Reads segments with a model, inside a ``with`` block during which the model's attention is headcount's own."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.geometry = head_geometry(model)
        self.decoder: Decoder = decoder_of(model)
        self._meter = LayerMeter(self.geometry)
        self._pass: _Pass | None = None

    @contextmanager
    def reading(self) -> Iterator["SegmentReader"]:
        """The block. The model is as before on exit."""

        def masks() -> Callable[[Callable[..., Any]], Tensor] | None:
            return None if self._pass is None or self._pass.prefix is None else self._pass.mask

        def layer(module: nn.Module, index: int, inputs: AttentionInputs, context: ForwardContext) -> Tensor:
            assert self._pass is not None
            return self._pass.layer(module, index, inputs)

        with attention_replaced(self.model, layer, mask_function=masks), torch.inference_mode():
            yield self

    def read(
        self,
        tokens: Tensor,
        lengths: Tensor,
        *,
        prefix: Segments | None = None,
        parents: Tensor | None = None,
        start: int = 0,
        hidden: Tensor | None = None,
        needs: frozenset[str] = frozenset(),
        decide: Decide | None = None,
        keep_states: bool = False,
        keep_hidden: bool = False,
    ) -> tuple[Any, Segments]:
        """One forward pass.

        Args:
            tokens: int64 ``[row, token]``, padded on the right.
            lengths: int64 ``[row]``, real tokens of each row.
            prefix: segments read before, with their states kept.
            parents: int64 ``[row]``, the row of ``prefix`` that each row continues.
            start: place of the decoder layer to start at.
            hidden: with ``start``, what enters that layer, ``[row, token, hidden_size]``.
            needs: measurements for ``decide``; ``uniform`` is the caller's.
            decide: called by each attention layer with the measurements of each row's whole text.
            keep_states: keep keys, values and measurements, for segments that continue these.
            keep_hidden: keep what enters each decoder layer.

        Returns:
            The model's output, and the segments.
        """
        device = input_device(self.model)
        tokens, lengths = tokens.to(device), lengths.to(device)
        parents = None if parents is None else parents.to(device)
        mask = torch.arange(tokens.shape[1], device=device) < lengths[:, None]
        now = _Pass(self._meter, lengths, mask, prefix, parents, needs, decide, keep_states)
        options: dict[str, Any] = {} if prefix is None else {"position_ids": now.own_positions}
        self._pass = now
        try:
            with ExitStack() as stack:
                stack.enter_context(self.decoder.starting_at(start, hidden))
                kept = stack.enter_context(self.decoder.inputs_kept()) if keep_hidden else []
                output = self.model(input_ids=tokens, attention_mask=mask.long(), use_cache=False, **options)
        finally:
            self._pass = None
        return output, Segments(
            lengths=lengths,
            ends=now.ends,
            parents=parents,
            prefix=prefix,
            hidden=kept[start:],
            start=start,
            real=now.real,
            positions=now.positions,
            layers=now.states,
        )


class _Pass:
    """What the layers of one pass share."""

    def __init__(
        self,
        meter: LayerMeter,
        lengths: Tensor,
        mask: Tensor,
        prefix: Segments | None,
        parents: Tensor | None,
        needs: frozenset[str],
        decide: Decide | None,
        keep_states: bool,
    ) -> None:
        self.prefix, self.parents = prefix, parents
        self.states: dict[int, _LayerState] = {}
        self._meter, self._needs, self._decide, self._keep = meter, needs, decide, keep_states
        self._lengths = lengths
        self._before = torch.zeros_like(lengths) if prefix is None or parents is None else prefix.ends[parents]
        self.ends = self._before + lengths
        # Padding stands at the position of its row's last token, so that it sees something under any window.
        self.own_positions = self._before[:, None] + torch.arange(mask.shape[1], device=mask.device).clamp(
            max=lengths[:, None] - 1
        )
        self.real, self.positions = mask, self.own_positions
        if prefix is not None and parents is not None:
            self.real = torch.cat([prefix.real[parents], mask], dim=1)
            self.positions = torch.cat([prefix.positions[parents], self.own_positions], dim=1)
        self._own = Positions(
            real=None if bool(mask.all()) else mask, first=torch.zeros_like(lengths), last=lengths - 1
        )
        self._masks: dict[Any, Tensor] = {}

    def mask(self, allowed: Callable[..., Any]) -> Tensor:
        """bool ``[row, 1, token, slot]``: transformers' rule for a layer, applied to positions, and no padding."""
        rows = torch.arange(len(self.real), device=self.real.device).view(-1, 1, 1, 1)
        seen = allowed(
            rows, torch.zeros_like(rows), self.own_positions[:, None, :, None], self.positions[:, None, None, :]
        )
        return seen & self.real[:, None, None, :]

    def layer(self, module: nn.Module, layer: int, inputs: AttentionInputs) -> Tensor:
        device = inputs.query.device
        before, earlier = None, {}
        if self.prefix is not None and self.parents is not None:
            before, parents = self.prefix.layers[layer], self.parents.to(device)
            if inputs.mask is None:
                raise PrefixUnseenError(f"{type(module).__name__} attends without the mask that a prefix needs.")
            inputs = replace(
                inputs,
                key=torch.cat([before.key[parents], inputs.key], dim=2),
                value=torch.cat([before.value[parents], inputs.value], dim=2),
                mask=inputs.mask.to(device),
                past=before.key.shape[2],
            )
            earlier = {name: values[parents] for name, values in before.measured.items()}
        output, measured = self._meter.measure(module, layer, inputs, self._own.to(device), self._needs)
        if before is not None:
            measured = extended(earlier, self._before.to(device), measured, self._lengths.to(device))
        if self._keep:
            self.states[layer] = _LayerState(key=inputs.key, value=inputs.value, measured=measured)
        shape = output.shape[0], output.shape[1]
        return output if self._decide is None else zero_heads(output, self._decide(layer, measured, shape, device))
