"""What a model's forward pass can be cut into, found out by trying on a few tokens."""

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from headcount.models.observe import decoder_of
from headcount.models.remembered import Stamp, structure, weights
from headcount.models.segments import PrefixUnseenError, SegmentReader

#: Largest relative difference of logits that counts as rounding. A wrong position or mask differs by far more.
_TOLERANCES = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 3e-2}
_LENGTH, _SHARED = 13, 8
#: Where logits are compared: several tokens after the shared start, of both rows.
_LAST = [(0, 9), (0, 12), (1, 8), (1, 10)]
Rows = list[list[int]]

_found: "WeakKeyDictionary[PreTrainedModel, tuple[Stamp, Stamp, dict[str, bool]]]" = WeakKeyDictionary()


def can_pack(model: PreTrainedModel) -> bool:
    """Whether rows can stand end to end in one row while attention keeps them apart.

    Not so for models with recurrent or convolutional layers, or with masks or positions of their own making.
    """
    return _attends_everywhere(model) and _find(model, "pack", _packed)


def can_share_prefixes(model: PreTrainedModel) -> bool:
    """Whether tokens can be read that continue what an earlier pass read, in attention alone; the same models."""
    return _attends_everywhere(model) and _find(model, "prefix", _with_prefix)


def can_restart(model: PreTrainedModel) -> bool:
    """Whether a pass can start at any decoder layer from the hidden states that enter it.

    Not so for models that hand more than hidden states from layer to layer.
    """
    return bool(decoder_of(model).layers) and _find(model, "restart", _restarted)


def _attends_everywhere(model: PreTrainedModel) -> bool:
    decoder = decoder_of(model)
    return len(decoder.place_of) == len(decoder.layers) > 0


def _find(model: PreTrainedModel, name: str, logits_of: Callable[[PreTrainedModel, Rows], Tensor]) -> bool:
    known = _known_of(model)
    if name not in known:
        generator = torch.Generator().manual_seed(0)
        size = model.config.get_text_config().vocab_size
        rows = torch.randint(size, (2, _LENGTH), generator=generator).tolist()
        rows = [rows[0], rows[0][:_SHARED] + rows[1][_SHARED : _LENGTH - 2]]
        reader = SegmentReader(model)
        with reader.reading():
            expected = reader.read(rows, _LAST)[0].float()
        try:
            found = logits_of(model, rows).float()
        except (PrefixUnseenError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            known[name] = False  # the model's own code cannot do it; whole padded passes always work
            return False
        known[name] = bool((found - expected).norm() / expected.norm() <= _TOLERANCES.get(model.dtype, 1e-3))
    return known[name]


def _known_of(model: PreTrainedModel) -> dict[str, bool]:
    """What was found out about the model as it is now."""
    now = structure(model), weights(model)
    if model not in _found or _found[model][:2] != now:
        _found[model] = (*now, {})
    return _found[model][2]


def _packed(model: PreTrainedModel, rows: Rows) -> Tensor:
    """Logits of rows of different lengths that stand end to end."""
    with (reader := SegmentReader(model, packed=True)).reading():
        return reader.read(rows, _LAST)[0]


def _with_prefix(model: PreTrainedModel, rows: Rows) -> Tensor:
    """Logits of rows of different lengths that continue one prefix."""
    with (reader := SegmentReader(model, packed=can_pack(model))).reading():
        _, prefix = reader.read([rows[0][:_SHARED]], keep_states=True)
        own = [row[_SHARED:] for row in rows]
        at = [(row, position - _SHARED) for row, position in _LAST]
        return reader.read(own, at, prefix=prefix, parents=[0, 0])[0]


def _restarted(model: PreTrainedModel, rows: Rows) -> Tensor:
    """Logits of a pass that starts in the middle, from the hidden states of a whole one, over other tokens."""
    with (reader := SegmentReader(model, packed=can_pack(model))).reading():
        places = sorted(reader.decoder.place_of.values())
        middle = places[len(places) // 2]
        _, read = reader.read(rows, keep_hidden=True)
        if len(read.hidden) != len(reader.decoder.layers) or read.hidden[middle].shape[:2] != read.layout.tokens.shape:
            raise ValueError("The decoder layers are not called with one hidden state a token.")
        return reader.read(rows, _LAST, start=middle, hidden=read.hidden_rows(middle))[0]
