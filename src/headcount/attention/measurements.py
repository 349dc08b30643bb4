"""What one layer's heads did on one batch: the numbers that scores are made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from headcount.errors import InputError
from headcount.units import KindId


@dataclass(frozen=True)
class Measurement:
    """How an example's number is made of those of its positions.

    Of two stretches of one text, those of ``mean`` are averaged by their numbers of real tokens, that of ``first`` is the
    earlier stretch's and that of ``last`` the later one's.
    """

    of: str  # what each query (or, of values, each key) has a number of
    taken: Literal["mean", "first", "last"]  # over the real tokens, or that of the first or last of them


TAKEN = {
    "first_token_weight": Measurement("first_token_weight", "mean"),
    "entropy": Measurement("entropy", "mean"),
    "first_value_norm": Measurement("value_norm", "first"),
    "value_norm": Measurement("value_norm", "mean"),
    "last_output_norm": Measurement("output_norm", "last"),
    "output_norm": Measurement("output_norm", "mean"),
    "contribution_norm": Measurement("contribution_norm", "mean"),
    "residual_norm": Measurement("residual_norm", "mean"),
    "mean_error": Measurement("mean_error", "mean"),
    "linear_error": Measurement("linear_error", "mean"),
    "kept_error": Measurement("kept_error", "mean"),
    "first_output_norm": Measurement("output_norm", "first"),
    "relative_square": Measurement("relative_square", "mean"),
    "square_share": Measurement("square_share", "mean"),
    "gate_norm": Measurement("gate_norm", "mean"),
    "residual_cosine": Measurement("residual_cosine", "mean"),
}
#: What needs every attention weight, and so costs more than plain attention.
OF_WEIGHTS = frozenset({"first_token_weight", "entropy"})

#: What is measured against a calibration, and comes from one.
OF_ERRORS = frozenset({"mean_error", "linear_error", "kept_error"})
CALIBRATED = OF_ERRORS | {"joint_error", "sensitivity"}

#: The layer's own tensors, for scores that no measurement serves, and what needs them: they are of whole texts at once.
RAW_TENSORS = frozenset({
    "query", "key", "value", "output", "o_proj", "residual", "block_input", "joint_error", "real",
})  # fmt: skip
#: Of these what a single token has. Queries, keys and values say nothing without those of other tokens.
OF_TOKENS = frozenset({"output", "o_proj", "residual", "block_input", "real"})


def is_first(name: str) -> bool:
    """Whether a measurement is the first token's, which all that follow need."""
    return name in TAKEN and TAKEN[name].taken == "first"


def extended(
    before: Mapping[str, Tensor], tokens_before: Tensor, own: Mapping[str, Tensor], own_tokens: Tensor
) -> dict[str, Tensor]:
    """Measurements of a text, from those of its start and those of the tokens that follow it.

    Args:
        before: measurements of the start, each ``[batch, head]``.
        tokens_before: ``[batch]``, how many real tokens the start has.
        own: the same measurements of the tokens that follow, whose queries saw the start too.
        own_tokens: ``[batch]``, how many they are.

    Raises:
        InputError: a measurement of the layer's whole tensors, which two parts do not give.
    """
    if raw := own.keys() & (RAW_TENSORS - {"real"}):
        raise InputError(
            f"A score that reads {', '.join(sorted(raw))} needs a whole text at once. Decide on the prompt "
            "(decide='prompt'), or without a cache (decide='every-pass')."
        )
    share = (own_tokens / (tokens_before + own_tokens))[:, None]  # [batch, 1]
    joined = {name: values for name, values in before.items() if name in TAKEN and TAKEN[name].taken == "first"}
    for name, values in own.items():
        if name == "sensitivity":
            joined[name] = values
        elif name in TAKEN and TAKEN[name].taken != "first":
            joined[name] = torch.lerp(before[name], values, share) if TAKEN[name].taken == "mean" else values
    return joined


class LayerMeasurements:
    """Per-head means over the real tokens of each example, float32, each ``[batch, head]``; and the tensors behind them.

    Where scores are of tokens (``ID/token``), each token stands for an example of its own, whose only real token it is:
    means are its own values, and position 0 is still that of its text.

    ``head`` counts query heads; value norms of a key-value head are repeated for each of its query heads.
    Padding never counts: N below is the number of real tokens of an example and position 0 its first one.
    Reading a quantity that was not asked for raises InputError.
    """

    first_token_weight: Tensor
    """Mean over the N queries of the attention weight on position 0."""
    entropy: Tensor
    """Mean over the N queries of the entropy of the query's attention weights, in nats."""
    first_value_norm: Tensor
    """L2 norm of position 0's value vector."""
    value_norm: Tensor
    """Mean over the N keys of the L2 norm of the value vector."""
    last_output_norm: Tensor
    """L2 norm of the head output at the last real token."""
    output_norm: Tensor
    """Mean over the N queries of the L2 norm of the head output."""
    contribution_norm: Tensor
    """Mean over the N queries of the L2 norm of the head output times the head's slice of ``o_proj``."""
    residual_norm: Tensor
    """Mean over the N tokens of the L2 norm of the residual stream that enters the decoder layer; the same for all heads."""
    mean_error: Tensor
    """Mean over the N queries of the squared L2 norm of W_h (o − r), with r what ``mean`` would put in the head's place."""
    linear_error: Tensor
    """Likewise, with what ``linear`` would put there."""
    kept_error: Tensor
    """Likewise, with what ``kept`` would put there if no other head were off."""
    joint_error: Tensor
    """Likewise over the tokens but the first, of what each head adds to ‖Σ W_h (o − r)‖² where heads go off one after another,
    the one that adds least first, and r is what ``kept`` puts there with all of them off; the largest addition so far."""
    sensitivity: Tensor
    """The layer's sensitivity in the calibration, nats² per squared unit of the block's output; the same for all heads."""
    first_output_norm: Tensor
    """Of MLP neurons and MLPs: the L2 norm of the unit's output at the first real token."""
    relative_square: Tensor
    """Likewise: mean over the N tokens of (‖W_u o_u‖ / ‖x‖)², with x the residual stream that the MLP reads."""
    square_share: Tensor
    """Of MLP neurons: mean over the N tokens of a_u² / Σ_v a_v², over the layer's neurons v."""
    gate_norm: Tensor
    """Of MLP neurons: mean over the N tokens of the gate's absolute value, act(W_gate h); without a gate, of the activation's."""
    residual_cosine: Tensor
    """Of MLPs: mean over the N tokens of the cosine between the residual stream x that the MLP reads and x with its output."""
    uniform: Tensor
    """A number drawn uniformly from [0, 1) for each example, layer and head, from the run's seed."""

    query: Tensor
    """``[batch, head, token, head_dim]`` in the model's dtype, position embedding applied, padding included."""
    key: Tensor
    """``[batch, key-value head, token, head_dim]``, likewise."""
    value: Tensor
    """``[batch, key-value head, token, value head_dim]``, likewise."""
    output: Tensor
    """Head outputs ``[batch, head, token, value head_dim]``, before zeroing."""
    o_proj: Tensor
    """Each head's slice of the output projection, float32 ``[head, hidden_size, value head_dim]``."""
    residual: Tensor
    """``[batch, token, hidden]``, what enters the decoder layer."""
    block_input: Tensor
    """``[batch, token, hidden]``, what enters the attention block: as a rule the normalised residual stream."""
    real: Tensor
    """bool ``[batch, token]``: False for padding."""

    def __init__(self, **measured: Tensor) -> None:
        assert measured.keys() <= MEASUREMENTS, measured.keys() - MEASUREMENTS
        self.__dict__.update(measured)

    def token_mean(self, values: Tensor) -> Tensor:
        """Mean over the real tokens, in float32: ``[batch, head, token, …]`` → ``[batch, head, …]``."""
        real = self.real.view(self.real.shape[0], 1, -1, *[1] * (values.dim() - 3))
        return values.float().masked_fill(~real, 0).sum(2) / real.sum(2)

    def __getattr__(self, name: str) -> Any:  # reached only for what was not measured
        if name in MEASUREMENTS:
            raise InputError(f"{name!r} was not measured. A score names what it reads: needs=[{name!r}, …].")
        raise AttributeError(name)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Measurements are read-only: {name!r} cannot be set.")


MEASUREMENTS = frozenset(LayerMeasurements.__annotations__)
_OF_OUTPUTS = frozenset({"output_norm", "last_output_norm", "contribution_norm", "uniform"})
_OF_MLPS = _OF_OUTPUTS | {"first_output_norm", "relative_square", "residual_norm", "residual", "output", "real"}
_OF_NEURONS = frozenset({"square_share", "gate_norm"})
_OF_ATTENTION = MEASUREMENTS - {"first_output_norm", "relative_square", "residual_cosine"} - _OF_NEURONS
#: What is measured of each kind of unit.
MEASURED: dict[KindId, frozenset[str]] = {
    "head": _OF_ATTENTION, "group": _OF_ATTENTION, "attention": _OF_ATTENTION, "neuron": _OF_MLPS | _OF_NEURONS,
    "mlp": _OF_MLPS | {"residual_cosine"},
}  # fmt: skip
