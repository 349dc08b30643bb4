"""Numbers at random that are functions of what they are drawn for: of an input, or of a token in its place."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor


def draw_rows(texts: Iterable[Sequence[int] | np.ndarray | None], seed: int, shape: tuple[int, int]) -> Tensor:
    """``draw_uniform`` of each text, ``[text, *shape]``; 1 where there is None, whose numbers nobody may read."""
    ones = np.ones(shape, np.float32)
    drawn = [ones if text is None else draw_uniform(np.asarray(text), seed, shape) for text in texts]
    return torch.from_numpy(np.stack(drawn))


def draw_uniform(tokens: np.ndarray, seed: int, shape: tuple[int, int]) -> np.ndarray:
    """Float32 of ``shape`` on [0, 1), a function of the seed and one example's token ids alone."""
    digest = hashlib.blake2b(
        tokens.astype("<i8").tobytes(), digest_size=16, key=int(seed).to_bytes(16, "little", signed=True)
    )
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest.digest(), "little")))
    return generator.random(shape, dtype=np.float32)


def draw_tokens(tokens: Tensor, places: Tensor, seed: int, layer: int, units: int) -> Tensor:
    """Float32 ``[row, token, unit]`` on [0, 1), a function of the seed, each token, its place in its text, layer and unit.

    Args:
        tokens: token ids, int64 ``[row, token]``.
        places: of each in its text, counted from 0, int64 ``[row, token]``.
        seed: of the draws.
        layer: index in the model.
        units: how many of them.
    """
    key = hashlib.blake2b(f"{seed} {layer}".encode(), digest_size=8).digest()
    start = _mixed(_mixed(tokens + int.from_bytes(key, "little", signed=True)) + places)
    drawn = _mixed(start[..., None] + torch.arange(1, units + 1, device=tokens.device) * -7046029254386353131)
    return ((drawn >> 40) & 0xFFFFFF).float() / (1 << 24)


def _mixed(bits: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014) on int64, which wraps around."""
    bits = (bits ^ ((bits >> 30) & ((1 << 34) - 1))) * -4658895280553007687
    bits = (bits ^ ((bits >> 27) & ((1 << 37) - 1))) * -7723592293110705685
    return bits ^ ((bits >> 31) & ((1 << 33) - 1))
