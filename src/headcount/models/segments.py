"""Forward passes over parts of texts: tokens that continue what an earlier pass read, from any decoder layer on.

A *segment* is a stretch of tokens. Texts that begin alike share the segment they begin with: it is read once, and the
segments that follow see its keys and values. Measurements run on along the way, so that the last segment of a text has
the measurements of the whole text. Nothing is approximated: a token's computation is the one it has in a whole pass.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import causal_mask_function

from headcount.attention.attend import attend
from headcount.attention.gpu import reads_rows
from headcount.attention.inputs import AttentionInputs, Positions
from headcount.attention.measurements import RAW_TENSORS, extended
from headcount.calibration import Calibration
from headcount.devices import moved
from headcount.models.act import Act, Needs
from headcount.models.context import ForwardContext
from headcount.models.decoder import Decoder
from headcount.models.layout import Layout
from headcount.models.mlp_site import MlpSite
from headcount.models.numbered import NumberedMask, window_of
from headcount.models.observe import decoder_of
from headcount.models.sites import AttentionSite, site_of
from headcount.models.state import evaluating, input_device
from headcount.models.switch import attention_replaced
from headcount.outputs import Outputs
from headcount.units import KindId


class PrefixUnseenError(Exception):
    """A model whose layers do not take their masks from transformers' mask interface, so that a prefix would be missed."""


@dataclass(frozen=True, kw_only=True)
class _LayerState:
    """One attention layer's keys and values of every row's text so far."""

    key: Tensor  # [row, key-value head, slot, head_dim]; where rows are said by number, those of all in one row
    value: Tensor


@dataclass(frozen=True, kw_only=True)
class Segments:
    """A batch of segments that was read.

    Attributes:
        ends: int64 [row], tokens of each row's text up to and with its segment.
        real: bool [row, slot], which of the slots that later segments see are tokens of the row's text.
        positions: int64 [row, slot], where in the text they stand.
    """

    layout: Layout
    prefix: "Segments | None"
    parents: Tensor | None  # int64 [row], the row of `prefix` that each row continues
    ends: Tensor
    real: Tensor
    positions: Tensor
    start: int  # the place of the first decoder layer that ran
    hidden: list[Tensor]  # what entered each decoder layer from there on; empty unless kept
    layers: dict[int, _LayerState]
    measured: dict[int, dict[str, Tensor]]  # layer → what was measured of each row's text so far, each [row, unit]
    stretches: Tensor | None = None  # int32 [row, stretch, 2] of the keys of packed rows on a GPU, one for each segment

    @property
    def slots(self) -> int:
        """Keys of all rows of a packed pass, with those that it continues."""
        return self.layout.tokens.shape[1] + (0 if self.prefix is None else self.prefix.slots)

    def hidden_of(self, row: int, place: int) -> Tensor:
        """What entered the decoder layer at ``place`` for every token of a row's whole text, ``[token, hidden_size]``."""
        own = self.layout.row(self.hidden[place - self.start], row)
        if self.prefix is None or self.parents is None:
            return own.clone()  # not a view, which would keep the whole batch
        return torch.cat([self.prefix.hidden_of(int(self.parents[row]), place), own])

    def hidden_rows(self, place: int) -> list[Tensor]:
        """What entered the decoder layer at ``place`` for the tokens of each row's own segment."""
        return [self.layout.row(self.hidden[place - self.start], row) for row in range(len(self.layout.lengths))]


class SegmentReader:
    """Reads segments with a model, inside a ``with`` block during which the model's attention is headcount's own.

    Args:
        model: any model that headcount can measure.
        packed: lay rows end to end where the model's layers allow it, so that padding costs nothing outside attention.
        calibration: of the model, where what acts reads one.
        needs: what any of the passes may read.
        kind: of the units that act.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        packed: bool = False,
        calibration: Calibration | None = None,
        needs: Needs = Needs(),  # noqa: B008  (frozen)
        kind: KindId = "head",
    ) -> None:
        self.model, self._needs = model, needs
        self.packed = packed
        self.decoder: Decoder = decoder_of(model)
        self._site = site_of(model, kind, calibration)
        self._pass: _Pass | None = None

    def place_of(self, layer: int) -> int:
        """The place of the decoder layer that holds the units of a layer."""
        return layer if isinstance(self._site, MlpSite) else self.decoder.place_of[layer]

    @contextmanager
    def reading(self) -> Iterator["SegmentReader"]:
        """The block. The model is as before on exit."""

        def masks() -> Callable[[Callable[..., Any]], Tensor | None] | None:
            now = self._pass
            return None if now is None or (now.prefix is None and not self.packed) else now.mask

        def layer(module: nn.Module, index: int, inputs: AttentionInputs, context: ForwardContext) -> Tensor:
            assert self._pass is not None
            return self._pass.attention(module, index, inputs)

        def mlp(layer: int, values: Tensor) -> Tensor:
            assert self._pass is not None
            return self._pass.mlp(layer, values)

        with (
            evaluating(self.model),
            attention_replaced(self.model, layer, mask_function=masks),
            self._site.watching(self.model, self._needs, mlp),
            torch.inference_mode(),
        ):
            self._site.begin()
            yield self

    def read(
        self,
        rows: Sequence[Sequence[int]],
        logits_at: Sequence[tuple[int, int]] = (),
        *,
        prefix: Segments | None = None,
        parents: Sequence[int] | None = None,
        start: int = 0,
        hidden: Sequence[Tensor] | None = None,
        act: Act | None = None,
        keep_states: bool = False,
        keep_hidden: bool = False,
    ) -> tuple[Tensor, Segments]:
        """One forward pass.

        Args:
            rows: token ids of each segment.
            logits_at: (row, position in its segment) where logits are wanted; the vocabulary projection runs there alone.
            prefix: segments read before, with their states kept.
            parents: the row of ``prefix`` that each row continues.
            start: place of the decoder layer to start at.
            hidden: with ``start``, what enters that layer for each row, ``[token, hidden_size]``.
            act: called by each attention layer with its outputs, and the measurements of each row's whole text.
            keep_states: keep keys, values and measurements, for segments that continue these.
            keep_hidden: keep what enters each decoder layer.

        Returns:
            Logits ``[wanted, vocabulary]``, and the segments.
        """
        layout = Layout(rows, input_device(self.model), packed=self.packed)
        continued = None if prefix is None or parents is None else moved(torch.tensor(parents), layout.lengths.device)
        now = _Pass(self._site, layout, prefix, continued, act, keep_states)
        # A model can hardly project nothing: one position stands in where no logits are wanted.
        where = layout.where(logits_at or [(0, 0)])
        self._pass = now
        try:
            with ExitStack() as stack:
                stack.enter_context(self.decoder.starting_at(start, None if hidden is None else layout.join(hidden)))
                kept = stack.enter_context(self.decoder.inputs_kept()) if keep_hidden else []
                stack.enter_context(_projecting_only(self.model, layout.tokens.shape, where))
                logits = self.model(
                    input_ids=layout.tokens,
                    attention_mask=layout.attention_mask,
                    position_ids=layout.line_up(now.own_positions),
                    use_cache=False,
                ).logits
        finally:
            self._pass = None
        if logits.shape[:2] != (1, where.shape[1]):  # the model does not go through its get_output_embeddings()
            logits = logits[where[0], where[1]][None]
        return logits[0, : len(logits_at)], Segments(
            layout=layout,
            prefix=prefix,
            parents=continued,
            ends=now.ends,
            real=now.real,
            positions=now.positions,
            start=start,
            hidden=kept[start:],
            layers=now.states,
            measured=now.measured,
            stretches=now.stretches,
        )


@contextmanager
def _projecting_only(model: PreTrainedModel, shape: torch.Size, where: Tensor) -> Iterator[None]:
    """Inside, the model's vocabulary projection runs on the positions ``where`` [2, position] alone.

    The hidden states ``[batch, position, hidden]`` of ``shape`` become ``[1, chosen, hidden]`` just before the projection,
    so whatever the model does to its logits afterwards (scaling, softcapping) still happens.
    """
    projection = model.get_output_embeddings()
    if not isinstance(projection, nn.Module):
        yield
        return

    def select(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden = args[0] if args else None
        if isinstance(hidden, Tensor) and hidden.dim() == 3 and hidden.shape[:2] == shape:
            rows, columns = moved(where, hidden.device)
            return (hidden[rows, columns][None], *args[1:])
        return None

    handle = projection.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


class _Pass:
    """What the layers of one pass share."""

    def __init__(
        self,
        site: AttentionSite | MlpSite,
        layout: Layout,
        prefix: Segments | None,
        parents: Tensor | None,
        act: Act | None,
        keep_states: bool,
    ) -> None:
        self.states: dict[int, _LayerState] = {}
        self.measured: dict[int, dict[str, Tensor]] = {}
        self._site, self._act, self._keep = site, act, keep_states
        self._layout, self.prefix, self._parents = layout, prefix, parents
        lengths, mask = layout.lengths, layout.real
        self._before = torch.zeros_like(lengths) if prefix is None or parents is None else prefix.ends[parents]
        self.ends = self._before + lengths
        # Padding stands at the position of its row's last token, so that it sees something under any window.
        self.own_positions = self._before[:, None] + layout.own_index
        self.real, self.positions = mask, self.own_positions
        if prefix is not None and parents is not None:
            self.real = torch.cat([prefix.real[parents], mask], dim=1)
            self.positions = torch.cat([prefix.positions[parents], self.own_positions], dim=1)
        self.stretches = self._stretches() if layout.packed and reads_rows(lengths.device) else None
        self._own = Positions(real=mask if layout.padded else None, first=torch.zeros_like(lengths), last=lengths - 1)

    def mask(self, allowed: Callable[..., Any]) -> Tensor | None:
        """bool ``[row, 1, token, slot]``: transformers' rule for a layer, applied to positions, and no padding.

        None for plain causal attention among a row's own tokens, where padding on the right is never seen.
        """
        if self.prefix is None and allowed is causal_mask_function:
            return None
        if self.stretches is not None and (window := window_of(allowed)):
            return NumberedMask(self._layout.numbered(self.stretches, self.real.shape[1], *window))
        rows = torch.arange(len(self.real), device=self.real.device).view(-1, 1, 1, 1)
        seen = allowed(
            rows, torch.zeros_like(rows), self.own_positions[:, None, :, None], self.positions[:, None, None, :]
        )
        return seen & self.real[:, None, None, :]

    def _stretches(self) -> Tensor:
        """int32 ``[row, stretch, 2]`` of each row's keys: those before, as they stand there, and after all of them its own."""
        own = self._layout.stretches[:, None]
        if self.prefix is None or self._parents is None or self.prefix.stretches is None:
            return own
        first, number = own.unbind(-1)
        own = torch.stack([first + self.prefix.slots, number], dim=-1)
        return torch.cat([self.prefix.stretches[self._parents], own], dim=1)

    def attention(self, module: nn.Module, layer: int, inputs: AttentionInputs) -> Tensor:
        """Attend to the whole text of each row, and act where heads are the units."""
        device, spread = inputs.query.device, self._layout.spread
        if self.stretches is not None and self.prefix is None and inputs.mask is None and inputs.rows is None:
            plain = self._layout.numbered(self.stretches, self.real.shape[1], None)
            inputs = replace(inputs, rows=plain.to(device))
        if inputs.rows is None:
            inputs = replace(
                inputs,
                query=spread(inputs.query),
                key=spread(inputs.key),
                value=spread(inputs.value),
                mask=None if inputs.mask is None else inputs.mask.to(device),
            )
        if self.prefix is not None and self._parents is not None:
            before, parents = self.prefix.layers[layer], self._parents.to(device)
            if inputs.mask is None and inputs.rows is None:
                raise PrefixUnseenError(f"{type(module).__name__} attends without the mask that a prefix needs.")
            old = (before.key, before.value) if inputs.rows else (before.key[parents], before.value[parents])
            inputs = replace(
                inputs,
                key=torch.cat([old[0], inputs.key], dim=2),
                value=torch.cat([old[1], inputs.value], dim=2),
                past=before.key.shape[2],
            )
        if self._keep:
            self.states[layer] = _LayerState(key=inputs.key, value=inputs.value)
        if isinstance(self._site, MlpSite):
            going_on = attend(inputs, self._own.to(device))[0]
        else:
            going_on = self._acted(layer, device, partial(self._site.outputs, module, layer, inputs), self._layout.rows)
        return self._layout.line_up_heads(going_on)

    def mlp(self, layer: int, values: Tensor) -> Tensor:
        """Act on what an MLP's units put out, ``[…, neuron or hidden]``."""
        site, shape = self._site, self._layout.tokens.shape
        assert isinstance(site, MlpSite)

        def rows(values: Tensor) -> Tensor:
            return self._layout.rows(values.view(*shape, -1))

        going_on = self._acted(layer, values.device, partial(site.outputs, layer, rows(values)), rows)
        return self._layout.line_up_rows(site.joined(going_on)).reshape(values.shape)

    def _acted(
        self, layer: int, device: torch.device, outputs_of: Callable[..., Outputs], rows: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Measure and act; ``outputs_of`` as the site's, of this layer. Returns ``[row, unit, token, width]``."""
        earlier: dict[str, Tensor] = {}
        if self.prefix is not None and self._parents is not None:
            parents = self._parents.to(device)
            earlier = {name: values[parents] for name, values in self.prefix.measured[layer].items()}
        needs = self._act.needs(layer) if self._act else Needs()
        outputs = outputs_of(
            self._own.to(device), needs, earlier=earlier, rows=rows, starts=self.prefix is None,
            tokens=self._layout.row_tokens, places=self.own_positions,
        )  # fmt: skip
        if self.prefix is not None:
            lengths = self._before.to(device), self._layout.lengths.to(device)
            of_tokens = (needs.of_tokens & RAW_TENSORS) - needs.of_rows
            own = {name: values for name, values in outputs.measured.items() if name not in of_tokens}
            measured = extended(earlier, lengths[0], own, lengths[1])
            outputs = replace(outputs, measured={**outputs.measured, **measured})
        if self._keep:
            self.measured[layer] = {
                name: values for name, values in outputs.measured.items() if name not in RAW_TENSORS
            }
        return self._act(outputs) if self._act else outputs.values
