"""One layer's attention with everything that scores may ask about it."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from headcount.attention.inputs import AttentionInputs, Positions
from headcount.attention.measurements import TAKEN
from headcount.attention.ways import attend_by_the_fastest_way

#: Numbers of which a float32 copy is made at a time, on a processor and on a GPU, where every part is a call of its own.
_NUMBERS_AT_A_TIME = {"cpu": 1 << 18, "cuda": 1 << 26}


def attend(
    inputs: AttentionInputs,
    positions: Positions,
    *,
    needs: frozenset[str] = frozenset(),
    projection_factor: Callable[[], Tensor] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Attention output, and the measurements in ``needs``; nothing else is computed.

    Args:
        inputs: query, key, value, mask and scaling of the layer.
        positions: which of the queries' own positions are real tokens; ``first`` is a position among the keys.
        needs: names of ``LayerMeasurements`` fields, ``uniform`` excepted.
        projection_factor: gives R ``[head, row, head_dim]`` with ‖R_h o‖ = ‖W_h o‖ for each head's slice W_h of
            the output projection; called only when ``contribution_norm`` is needed.

    Returns:
        Output ``[batch, head, query, head_dim]`` and ``{measurement: float32 [batch, head]}``.
    """
    needs = measured_here(needs, inputs)
    wanted = frozenset(TAKEN[name].of for name in needs)
    output, found = attend_positions(inputs, positions, wanted=wanted, projection_factor=projection_factor)
    return output, each_taken(needs, found, inputs, positions)


def attend_positions(
    inputs: AttentionInputs,
    positions: Positions,
    *,
    wanted: frozenset[str],
    projection_factor: Callable[[], Tensor] | None = None,
    means: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """As ``attend``, with a number of every position: ``wanted`` and more, float32 ``[batch, head, position]``.

    With ``means`` nobody asks for positions' numbers: of what a way can measure of rows at once there are the measurements,
    ``[batch, head]``, instead.
    """
    output, found = attend_by_the_fastest_way(
        inputs, positions, wanted=wanted, projection_factor=projection_factor, means=means
    )
    if "value_norm" in wanted:
        own = slice(inputs.past, inputs.past + inputs.query.shape[2])
        norms = found["value_norm"][:, :, own] if "value_norm" in found else _norm(inputs.value[:, :, own])
        norms = norms if inputs.rows is None else inputs.rows.spread(norms)
        found["value_norm"] = norms.repeat_interleave(inputs.group_size, 1)
    if "output_norm" in wanted - found.keys():
        found["output_norm"] = _norm(output)
    if "contribution_norm" in wanted - found.keys():
        assert projection_factor is not None
        found["contribution_norm"] = _norm(output, projection_factor().mT)
    return output, found


def measured_here(needs: frozenset[str], inputs: AttentionInputs) -> frozenset[str]:
    """Of measurements those that these tokens give: what is the first token's was measured with the text's start."""
    return frozenset(name for name in needs if TAKEN[name].taken != "first") if inputs.past else needs


def taken(name: str, found: Mapping[str, Tensor], inputs: AttentionInputs, positions: Positions) -> Tensor:
    """A measurement ``[batch, head]`` out of what was ``found`` of positions."""
    of_positions, how = found[TAKEN[name].of], TAKEN[name].taken
    if how == "mean":
        return positions.mean(of_positions)
    return positions.at(of_positions, positions.last if how == "last" else (positions.first - inputs.past).clamp(min=0))


def each_taken(
    needs: frozenset[str], found: Mapping[str, Tensor], inputs: AttentionInputs, positions: Positions
) -> dict[str, Tensor]:
    """``taken`` of each of ``needs``, with all means taken at once, which on a GPU spares calls."""
    measured = {name: found[name] for name in needs if name in found and found[name].dim() == 2}
    averaged = sorted(name for name in needs - measured.keys() if TAKEN[name].taken == "mean")
    measured |= {name: taken(name, found, inputs, positions) for name in needs.difference(averaged, measured)}
    if averaged:
        means = positions.mean(torch.stack([found[TAKEN[name].of] for name in averaged]))  # [measurement, batch, head]
        measured |= dict(zip(averaged, means, strict=True))
    return measured


def _norm(vectors: Tensor, factor: Tensor | None = None) -> Tensor:
    """L2 norm in float32 over the last dimension of ``[batch, head, token, dim]``, each head times its ``factor`` first.

    Some tokens at a time: a float32 copy of them all would double the memory of attention.
    """
    if factor is None and vectors.is_cuda:
        return torch.linalg.vector_norm(vectors, dim=-1, dtype=torch.float32)  # reads them as they are
    of_a_token = max(1, vectors[:, :, :1].numel())
    at_a_time = max(1, _NUMBERS_AT_A_TIME.get(vectors.device.type, 1 << 24) // of_a_token)
    parts = (part.float() for part in vectors.split(at_a_time, dim=2))
    return torch.cat(
        [torch.linalg.vector_norm(part if factor is None else part @ factor, dim=-1) for part in parts], -1
    )
