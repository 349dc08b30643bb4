"""Errors that a user can act on.

Every message says what was given, what was expected and what to do next. The command line prints the
message alone and exits with code 2; a traceback is always a bug of headcount's.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from operator import index


class HeadcountError(Exception):
    """Base class of every error headcount raises for its user."""


class InputError(HeadcountError, ValueError):
    """Texts, token ids or options that cannot be used as given."""


class ModelError(HeadcountError):
    """A model that cannot be loaded, or that headcount cannot measure."""


class TaskError(HeadcountError):
    """A benchmark that does not exist, or whose data cannot be had."""


class RunError(HeadcountError):
    """A run folder that cannot be read, written or continued."""


def nearest(given: str, known: Iterable[str], count: int = 3) -> str:
    """The end of an error message: the known names closest to ``given``, or all of them when few.

    >>> nearest("ahonln", ["ahon_ln", "ahon", "awft"])
    'Did you mean ahon_ln or ahon?'
    """
    names = sorted(known)
    lowered = {name.lower(): name for name in names}
    close = [lowered[match] for match in get_close_matches(given.lower(), lowered, n=count, cutoff=0.6)]
    if close:
        return f"Did you mean {' or '.join(close)}?"
    return f"Known: {', '.join(names[:20])}{', …' if len(names) > 20 else ''}."


def whole(number: object, expected: str, *, least: int) -> int:
    """A whole number of Python's, numpy's or torch's as Python's.

    Raises:
        InputError: ``expected``, where it is none or less than ``least``.
    """
    try:
        found = index(number)  # type: ignore[arg-type]  (what is none raises)
    except TypeError:
        found = least - 1
    if found < least or isinstance(number, bool):
        raise InputError(f"{expected}, not {number!r:.60}.")
    return found


def seed_of(number: object) -> int:
    """A seed as Python's whole number, of which 127 bits and a sign are used.

    Raises:
        InputError: it is none.
    """
    expected = "A seed is a whole number between −2^127 and 2^127"
    found = whole(number, expected, least=-(2**127))
    if found >= 2**127:
        raise InputError(f"{expected}, not {number!r:.60}.")
    return found
