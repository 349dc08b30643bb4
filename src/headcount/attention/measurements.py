"""What one layer's heads did on one batch: the numbers that scores are made of."""

from typing import Any

from torch import Tensor

from headcount.errors import InputError

#: Measurements that need every attention weight, and so cost more than plain attention.
WEIGHT_MEASUREMENTS = frozenset({"first_token_weight", "entropy"})

#: The layer's own tensors, for scores that no measurement serves.
RAW_TENSORS = frozenset({"query", "key", "value", "output", "o_proj", "real"})


class LayerMeasurements:
    """Per-head means over the real tokens of each example, float32, each ``[batch, head]``; and the tensors behind them.

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
