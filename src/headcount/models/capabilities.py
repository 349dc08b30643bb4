"""What a model's forward pass can be cut into, found out by trying on a few tokens."""

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from headcount.models.instrument import decoder_of
from headcount.models.segments import PrefixUnseenError, SegmentReader

#: Largest relative difference of logits that counts as rounding. A wrong position or mask differs by far more.
_TOLERANCES = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 3e-2}
_LENGTH, _SHARED = 13, 8

_found: "WeakKeyDictionary[PreTrainedModel, dict[str, bool]]" = WeakKeyDictionary()


def can_share_prefixes(model: PreTrainedModel) -> bool:
    """Whether tokens can be read that continue what an earlier pass read, in attention alone.

    Not so for models with recurrent or convolutional layers, or with masks or positions of their own making.
    """
    decoder = decoder_of(model)
    attends_everywhere = len(decoder.place_of) == len(decoder.layers) > 0
    return attends_everywhere and _find(model, "prefix", _with_prefix)


def can_restart(model: PreTrainedModel) -> bool:
    """Whether a pass can start at any decoder layer from the hidden states that enter it.

    Not so for models that hand more than hidden states from layer to layer.
    """
    return bool(decoder_of(model).layers) and _find(model, "restart", _restarted)


def _find(model: PreTrainedModel, name: str, logits_of: Callable[[SegmentReader, Tensor], Tensor]) -> bool:
    known = _found.setdefault(model, {})
    if name not in known:
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(model.config.get_text_config().vocab_size, (2, _LENGTH), generator=generator)
        tokens[1, :_SHARED] = tokens[0, :_SHARED]
        reader = SegmentReader(model)
        with reader.reading():
            expected = reader.read(tokens, torch.tensor([_LENGTH, _LENGTH]))[0].logits.float()
            try:
                found = logits_of(reader, tokens).float()
            except (PrefixUnseenError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
                known[name] = False  # the model's own code cannot do it; whole passes always work
                return False
        difference = (found - expected[:, -found.shape[1] :]).norm() / expected.norm()
        known[name] = bool(difference <= _TOLERANCES.get(model.dtype, 1e-3))
    return known[name]


def _with_prefix(reader: SegmentReader, tokens: Tensor) -> Tensor:
    """Logits of the last tokens of two rows that continue one prefix; the second row is shorter and padded."""
    _, prefix = reader.read(tokens[:1, :_SHARED], torch.tensor([_SHARED]), keep_states=True)
    own = _LENGTH - _SHARED
    output, _ = reader.read(tokens[:, _SHARED:], torch.tensor([own, own]), prefix=prefix, parents=torch.tensor([0, 0]))
    return output.logits


def _restarted(reader: SegmentReader, tokens: Tensor) -> Tensor:
    """Logits of a pass over other tokens that starts in the middle from these tokens' hidden states."""
    places = sorted(reader.decoder.place_of.values())
    middle = places[len(places) // 2]
    lengths = torch.tensor([_LENGTH, _LENGTH])
    _, read = reader.read(tokens, lengths, keep_hidden=True)
    if len(read.hidden) != len(reader.decoder.layers) or read.hidden[middle].shape[:2] != tokens.shape:
        raise ValueError("The decoder layers are not called with one hidden state a token.")
    output, _ = reader.read(tokens, lengths, start=middle, hidden=read.hidden[middle])
    return output.logits
