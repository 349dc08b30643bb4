"""What one layer's heads did on one batch: the numbers that scores are made of."""

from typing import Any

from torch import Tensor

from headcount.errors import InputError

#: Measurements that need every attention weight, and so cost more than plain attention.
WEIGHT_MEASUREMENTS = frozenset({"first_token_weight", "entropy"})


class LayerMeasurements:
    """Per-head means over the real tokens of each example, float32, each ``[batch, head]``.

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

    def __init__(self, **measured: Tensor) -> None:
        assert measured.keys() <= MEASUREMENTS, measured.keys() - MEASUREMENTS
        self.__dict__.update(measured)

    def __getattr__(self, name: str) -> Any:  # reached only for what was not measured
        if name in MEASUREMENTS:
            raise InputError(f"{name!r} was not measured. A score names what it reads: needs=[{name!r}, …].")
        raise AttributeError(name)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Measurements are read-only: {name!r} cannot be set.")


MEASUREMENTS = frozenset(LayerMeasurements.__annotations__)
