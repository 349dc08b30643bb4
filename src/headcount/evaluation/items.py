"""What lm-eval gathers of a question for its aggregation, as JSON from which the very same values come back."""

import json
from datetime import date, datetime, time
from typing import Any

import numpy as np

from headcount.errors import TaskError

_KIND = "__kind__"  # of a value that JSON has no form for
_DATES = {of.__name__: of for of in (datetime, date, time)}


def encode_items(items: dict[str, Any]) -> str:
    """``items`` as JSON: tuples, sets, arrays, keys that are no text, NaN and infinities stay what they are.

    Raises:
        TaskError: a value of another kind.
    """
    return json.dumps({name: _plain(value, name) for name, value in items.items()})


def decode_items(text: str | None) -> dict[str, Any]:
    """What ``encode_items`` was given; of an older run, what plain JSON had left of it."""
    if not isinstance(text, str):
        return {}
    return {name: _value(plain) for name, plain in json.loads(text).items()}


def _plain(value: Any, metric: str) -> Any:
    def tagged(kind: str, content: Any, **more: Any) -> dict[str, Any]:
        return {_KIND: kind, "value": content, **more}

    def each(values: Any) -> list[Any]:
        return [_plain(entry, metric) for entry in values]

    if value is None or type(value) in (bool, int, float, str):
        return value
    if hasattr(value, "detach") and hasattr(value, "cpu"):  # a tensor
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufSU":
        return tagged("array", value.tolist(), dtype=value.dtype.str, scalar=isinstance(value, np.generic))
    if isinstance(value, dict):
        if all(type(key) is str for key in value) and _KIND not in value:
            return {key: _plain(entry, metric) for key, entry in value.items()}
        return tagged("dict", [each(pair) for pair in value.items()])
    if isinstance(value, list):
        return each(value)
    if isinstance(value, tuple):
        return tagged("tuple", each(value))
    if isinstance(value, set | frozenset):
        return tagged("set", each(sorted(value, key=repr)))  # in one order: the same answers are the same bytes
    if isinstance(value, bytes):
        return tagged("bytes", value.hex())
    if isinstance(value, date | time):
        return tagged(next(name for name, of in _DATES.items() if isinstance(value, of)), value.isoformat())
    if isinstance(value, int | float | str):  # an enumeration's, say
        return _plain(next(of(value) for of in (int, float, str) if isinstance(value, of)), metric)
    raise TaskError(
        f"Metric {metric!r} gives a {type(value).__module__}.{type(value).__qualname__} for a question, which cannot be "
        "kept as it is. Have process_results give numbers, text, lists, tuples, dictionaries or arrays."
    )


def _value(plain: Any) -> Any:
    if isinstance(plain, list):
        return [_value(entry) for entry in plain]
    if not isinstance(plain, dict):
        return plain
    kind = plain.get(_KIND)
    if kind is None:
        return {key: _value(entry) for key, entry in plain.items()}
    content = plain["value"]
    if kind == "array":
        array = np.array(content, dtype=plain["dtype"])
        return array[()] if plain["scalar"] else array
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind in _DATES:
        return _DATES[kind].fromisoformat(content)
    entries = _value(content)
    return tuple(entries) if kind == "tuple" else set(entries) if kind == "set" else dict(entries)
