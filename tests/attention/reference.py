"""What attention and its measurements are, in float64: one query at a time, and as matrices for longer inputs."""

import math
from functools import cache

import torch
from torch import Tensor

from headcount.attention.inputs import AttentionInputs, Positions

OF_WEIGHTS = frozenset({"first_token_weight", "entropy"})
PER_POSITION = OF_WEIGHTS | {"output_norm", "contribution_norm", "value_norm"}


def make(
    *,
    heads: int = 4,
    groups: int = 2,
    length: int = 21,
    keys: int | None = None,
    head_dim: int = 16,
    value_dim: int | None = None,
    lengths: list[int] | None = None,
    left: bool = False,
    mask: str | None = None,
    window: int = 5,
    softcap: float | None = None,
    sinks: bool = False,
    dtype: torch.dtype = torch.float32,
    batch: int = 3,
    seed: int = 0,
) -> tuple[AttentionInputs, Positions]:
    """Random inputs. ``lengths``: each example's real tokens. ``mask``: none, causal, window, or holes at random."""
    generator = torch.Generator().manual_seed(heads * 1000 + length + seed)
    keys = keys or length
    query, key, value = (
        (1.5 * torch.randn(batch, n, t, size, generator=generator)).to(dtype)
        for n, t, size in ((heads, length, head_dim), (groups, keys, head_dim), (groups, keys, value_dim or head_dim))
    )
    padding = None
    if lengths is not None:
        padding = torch.zeros(batch, length, dtype=torch.bool)
        for row, n in zip(padding, lengths, strict=True):
            row[length - n if left else 0 : length if left else n] = True
    allowed = None
    if mask is not None:
        allowed = torch.ones(length, keys, dtype=torch.bool).tril(keys - length)
        if mask == "window":
            allowed = allowed.triu(keys - length - window + 1)
        if mask == "holes":
            holes = torch.rand(length, keys, generator=generator) < 0.4
            allowed = allowed & ~holes | torch.eye(length, keys, dtype=torch.bool)
        allowed = allowed.expand(batch, 1, length, keys)
        if padding is not None:
            allowed = allowed & padding[:, None, None]
    inputs = AttentionInputs(
        query=query,
        key=key,
        value=value,
        mask=allowed,
        scaling=head_dim**-0.5,
        softcap=softcap,
        sinks=torch.randn(heads, generator=generator) if sinks else None,
    )
    return inputs, Positions.from_mask(padding, batch, length, query.device)


def factors(inputs: AttentionInputs) -> Tensor:
    """Some R ``[head, row, value head_dim]``, of fewer rows than columns and more than a panel of the kernel."""
    heads, value_dim = inputs.query.shape[1], inputs.value.shape[-1]
    return torch.randn(heads, value_dim - 1, value_dim, generator=torch.Generator().manual_seed(5)).triu()


def seen_by(inputs: AttentionInputs) -> Tensor:
    """bool ``[batch, query, key]``: what each query may attend to."""
    batch, _, length, _ = inputs.query.shape
    keys = inputs.key.shape[2]
    if inputs.mask is not None:
        return inputs.mask[:, 0].expand(batch, length, keys)
    everything = torch.ones(batch, length, keys, dtype=torch.bool)
    return everything.tril() if length > 1 else everything


def loop(inputs: AttentionInputs, positions: Positions) -> dict[str, Tensor]:
    """``output`` and what there is for each position, one query at a time."""
    query, key, value = inputs.query.double(), inputs.key.double(), inputs.value.double()
    batch, heads, length, _ = query.shape
    factor, seen = factors(inputs).double(), seen_by(inputs)
    found = {name: torch.zeros(batch, heads, length, dtype=torch.float64) for name in PER_POSITION - {"value_norm"}}
    found["output"] = torch.zeros(batch, heads, length, value.shape[-1], dtype=torch.float64)
    norms = [[[math.hypot(*v) for v in rows] for rows in row] for row in value.tolist()]
    found["value_norm"] = torch.tensor(norms, dtype=torch.float64)
    for b in range(batch):
        first = int(positions.first[b])
        for h in range(heads):
            group = h // inputs.group_size
            for i in range(length):
                keys = seen[b, i].nonzero().flatten().tolist()
                logits = [float(query[b, h, i] @ key[b, group, j]) * inputs.scaling for j in keys]
                if inputs.softcap is not None:
                    logits = [inputs.softcap * math.tanh(x / inputs.softcap) for x in logits]
                if inputs.sinks is not None:
                    logits.append(inputs.sinks[h].item())
                if not logits:
                    continue
                most = max(logits)
                total = sum(math.exp(x - most) for x in logits)
                weights = [math.exp(x - most) / total for x in logits]
                output = sum(
                    (weights[n] * value[b, group, j] for n, j in enumerate(keys)), torch.zeros(value.shape[-1])
                )
                found["output"][b, h, i] = output
                found["output_norm"][b, h, i] = math.hypot(*output.tolist())
                found["contribution_norm"][b, h, i] = math.hypot(*(factor[h] @ output.double()).tolist())
                found["entropy"][b, h, i] = -sum(w * math.log(w) for w in weights if w > 0)
                found["first_token_weight"][b, h, i] = weights[keys.index(first)] if first in keys else 0.0
    return found


def matrices(inputs: AttentionInputs, positions: Positions) -> dict[str, Tensor]:
    """The same from whole matrices, faster."""
    heads, group = inputs.query.shape[1], inputs.group_size
    key, value = (t.double().repeat_interleave(group, 1) for t in (inputs.key, inputs.value))
    logits = inputs.query.double() @ key.mT * inputs.scaling
    if inputs.softcap is not None:
        logits = inputs.softcap * torch.tanh(logits / inputs.softcap)
    logits = logits.masked_fill(~seen_by(inputs)[:, None], -torch.inf)
    if inputs.sinks is not None:
        sinks = inputs.sinks.double().view(1, heads, 1, 1).expand(*logits.shape[:3], 1)
        logits = torch.cat([logits, sinks], -1)
    weights = logits.softmax(-1).nan_to_num(0)
    entropy = torch.special.entr(weights).sum(-1)
    weights = weights[..., : key.shape[2]]
    output = weights @ value
    first = positions.first.view(-1, 1, 1, 1).expand(*weights.shape[:3], 1)
    return {
        "output": output,
        "entropy": entropy,
        "first_token_weight": weights.take_along_dim(first, -1).squeeze(-1),
        "output_norm": output.norm(dim=-1),
        "contribution_norm": (output @ factors(inputs).double().mT).norm(dim=-1),
        "value_norm": inputs.value.double().norm(dim=-1),
    }


CASES: dict[str, dict[str, object]] = {
    "grouped": {},
    "multi-query": {"groups": 1},
    "multi-head": {"groups": 4},
    "three to one, odd head size": {"heads": 9, "groups": 3, "head_dim": 21},
    "values of another size": {"head_dim": 24, "value_dim": 40},
    "length 1": {"length": 1},
    "one query, many keys": {"length": 1, "keys": 13},
    "length 2": {"length": 2},
    "static cache": {"keys": 50},
    "right padding": {"lengths": [21, 1, 8]},
    "left padding": {"lengths": [21, 1, 8], "left": True, "mask": "causal"},
    "right padding with a mask": {"lengths": [21, 1, 8], "mask": "causal"},
    "window": {"mask": "window"},
    "window of the whole length": {"mask": "window", "window": 21},
    "window, several key blocks": {"mask": "window", "length": 150, "batch": 1, "heads": 2, "groups": 1},
    "window and padding": {"mask": "window", "lengths": [21, 5, 9], "left": True},
    "holes": {"mask": "holes", "length": 70, "batch": 1},
    "continued": {"mask": "causal", "length": 5, "keys": 17},
    "softcap": {"softcap": 2.0},
    "sinks": {"sinks": True},
    "sinks, window and padding": {"sinks": True, "mask": "window", "lengths": [21, 5, 9], "left": True},
}


@cache
def case(name: str) -> tuple[AttentionInputs, Positions, dict[str, Tensor]]:
    """The inputs of a case, and what a plain loop makes of them."""
    inputs, positions = make(**CASES[name])
    return inputs, positions, loop(inputs, positions)
