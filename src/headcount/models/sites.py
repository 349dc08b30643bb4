"""The places where a layer writes into the residual stream: what its units give there, and what is measured of them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from headcount.attention.attend import attend_positions, each_taken, measured_here, taken
from headcount.attention.inputs import AttentionInputs, Positions
from headcount.attention.measurements import OF_ERRORS, RAW_TENSORS, TAKEN
from headcount.calibration import Calibration
from headcount.errors import InputError, ModelError
from headcount.models.act import Needs
from headcount.models.decoder import entered_by
from headcount.models.mlp_site import LayerFunction, MlpSite
from headcount.models.observe import attention_modules, decoder_of
from headcount.models.projection import factors_of, head_slices, output_projection
from headcount.outputs import Outputs
from headcount.replacements import Kept, Linear, Mean, Replacement
from headcount.units import KINDS, KindId

#: What a head's error is measured against.
_EXPECTED: dict[str, Replacement] = {"mean_error": Mean(), "linear_error": Linear(), "kept_error": Kept()}
#: Measurements that read what enters a layer, and which: the attention block's input, or the decoder layer's.
_READ = {
    "linear_error": "block_input", "kept_error": "block_input", "joint_error": "block_input", "block_input": "block_input",
    "residual": "residual", "residual_norm": "residual",
}  # fmt: skip


def site_of(model: PreTrainedModel, kind: KindId, calibration: Calibration | None = None) -> "AttentionSite | MlpSite":
    """Where units of a kind write; ``calibration`` of the model, where something reads one."""
    return AttentionSite(model, calibration) if KINDS[kind].site == "attention" else MlpSite(model, kind)


class AttentionSite:
    """Attention's output projection: attends and measures, layer by layer."""

    def __init__(self, model: nn.Module, calibration: Calibration | None = None) -> None:
        """``calibration`` of the model, for what is measured against it and put in place by it; None where nothing is."""
        self._factors, self._calibration = factors_of(model), calibration
        self._entering: dict[tuple[str, int], Tensor] = {}  # what was read, layer → [batch, token, hidden]

    def begin(self) -> None:
        """Before passes between which the model's weights may have become others."""
        self._factors.check()

    @contextmanager
    def watching(self, model: PreTrainedModel, needs: Needs, mlp: LayerFunction | None = None) -> Iterator[None]:
        """Inside, what enters layers is at hand where ``needs`` reads it. MLPs are left alone.

        Raises:
            ModelError: it is not found in this model.
        """
        wanted = {_READ[name] for name in needs.of_rows | needs.of_tokens | needs.shown if name in _READ}
        with ExitStack() as stack:
            stack.callback(self._entering.clear)
            if "residual" in wanted:
                decoder = decoder_of(model)
                if not decoder.place_of:
                    raise ModelError(
                        f"The decoder layers of {type(model).__name__} are not found, so its residual stream cannot be read. "
                        "Leave out the scores that read it."
                    )
                for layer, place in decoder.place_of.items():
                    stack.enter_context(entered_by(decoder.layers[place], self._keeping("residual", layer)))
            if "block_input" in wanted:
                for layer, module in attention_modules(model).items():
                    stack.enter_context(entered_by(module, self._keeping("block_input", layer)))
            yield

    def outputs(
        self,
        module: nn.Module,
        layer: int,
        inputs: AttentionInputs,
        positions: Positions,
        needs: Needs = Needs(),  # noqa: B008  (frozen)
        *,
        past: int = 0,
        earlier: Mapping[str, Tensor] | None = None,
        rows: Callable[[Tensor], Tensor] = lambda hidden: hidden,
        **of_text: Any,
    ) -> Outputs:
        """The heads' outputs, with the measurements that ``needs`` names, ``uniform`` excepted.

        Args:
            module: the attention module.
            layer: its index.
            inputs: what it attends with.
            positions: which of the queries are real tokens.
            needs: what to measure.
            past: keys that stand before those of the queries' own tokens, where that is not known of the inputs.
            earlier: measurements of the tokens before these, each ``[row, head]``, where the text began earlier.
            rows: lays what enters a layer, ``[batch, token, hidden]``, out in rows, ``[row, token, hidden]``.
            of_text: ``starts``, ``tokens`` and ``places`` of ``Outputs``.
        """
        inputs = replace(inputs, past=past) if past else inputs
        of_rows, of_tokens = needs.of_rows - {"uniform"}, needs.of_tokens - {"uniform"}
        raw = (of_rows | of_tokens) & RAW_TENSORS
        each = measured_here(of_tokens.intersection(TAKEN), inputs)
        firsts = {name for name in each if TAKEN[name].taken == "first"}  # which tokens that follow will need
        own = measured_here(of_rows.intersection(TAKEN), inputs) | firsts
        errors = (own | each) & OF_ERRORS
        wanted = frozenset(TAKEN[name].of for name in own | each)
        factor = partial(self._factor, module, layer, inputs)
        values, found = attend_positions(
            inputs, positions, wanted=wanted - errors - {"residual_norm"}, projection_factor=factor, means=not each
        )
        entering = {
            name: rows(self._entering[name, layer].detach())
            for name in ("residual", "block_input")
            if (name, layer) in self._entering
        }
        shown = Outputs(
            layer=layer, values=values, positions=positions, block_input=entering.get("block_input"),
            calibration=self._calibration, **of_text,
        )  # fmt: skip
        if "residual_norm" in wanted:
            norm = torch.linalg.vector_norm(entering["residual"].float(), dim=-1)
            found["residual_norm"] = norm[:, None].expand(-1, values.shape[1], -1)
        for name in errors:
            found[name] = _error(shown, _EXPECTED[name], factor())
        measured = each_taken(frozenset(own), found, inputs, positions)
        by_token = {name: _by_token(name, found, inputs, positions) for name in each}
        for name in of_tokens.intersection(TAKEN) - each:  # the first token's, which was read before
            assert earlier is not None
            by_token[name] = earlier[name][:, :, None].expand(-1, -1, values.shape[2])
        if "sensitivity" in of_rows | of_tokens:
            known = self._sensitivity(layer)
            measured["sensitivity"] = values.new_full(values.shape[:2], known, dtype=torch.float32)
            by_token["sensitivity"] = measured["sensitivity"][:, :, None].expand(-1, -1, values.shape[2])
        if raw:
            measured |= _raw_tensors(raw, module, inputs.laid_out(), positions, values, entering)
        if "joint_error" in raw:
            slices = head_slices(output_projection(module), values.shape[1], values.shape[-1], like=inputs.value)
            measured["joint_error"] = Kept().jointly(shown, slices)
        return replace(shown, measured=measured, by_token=by_token)

    def _factor(self, module: nn.Module, layer: int, inputs: AttentionInputs) -> Tensor:
        return self._factors.of(output_projection(module), layer, inputs.query.shape[1], like=inputs.value)

    def _keeping(self, name: str, layer: int) -> Callable[[Tensor], Tensor]:
        def keep(hidden: Tensor) -> Tensor:
            self._entering[name, layer] = hidden
            return hidden

        return keep

    def _sensitivity(self, layer: int) -> float:
        assert self._calibration is not None
        if (known := self._calibration.layers[layer].sensitivity) is None:
            raise InputError(
                "The calibration has no sensitivities of layers, which this score reads. Calibrate with them."
            )
        return known


def _error(outputs: Outputs, expected: Replacement, factor: Tensor) -> Tensor:
    """‖W_h (o − r)‖² of each token, float32 ``[row, head, token]``: r stands for the head where it alone is off."""
    instead = expected.alone(outputs)
    assert instead is not None
    return ((outputs.values.float() - instead.float()) @ factor.mT).square().sum(-1)


def _by_token(name: str, found: Mapping[str, Tensor], inputs: AttentionInputs, positions: Positions) -> Tensor:
    """A measurement of each token, ``[row, head, token]``: its own, or that of the first token of its text."""
    of_positions = found[TAKEN[name].of]
    if TAKEN[name].taken != "first":
        return of_positions
    return taken(name, found, inputs, positions)[:, :, None].expand_as(of_positions)


def _raw_tensors(
    needs: frozenset[str],
    module: nn.Module,
    inputs: AttentionInputs,
    positions: Positions,
    output: Tensor,
    entering: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    batch, heads, length = inputs.query.shape[:3]
    raw: dict[str, Tensor] = {
        "query": inputs.query,
        "key": inputs.key[:, :, :length],
        "value": inputs.value[:, :, :length],
        "output": output,
        "real": positions.real
        if positions.real is not None
        else torch.ones(batch, length, dtype=torch.bool, device=output.device),
        **entering,
    }
    if "o_proj" in needs:
        raw["o_proj"] = head_slices(output_projection(module), heads, output.shape[-1], like=inputs.value)
    return {name: tensor for name, tensor in raw.items() if name in needs or name == "real"}
