"""Texts to measure on: text, JSON-lines and Parquet files, or a data set on the hub."""

import codecs
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from headcount.errors import InputError, nearest

#: Half of a surrogate pair: what is left where an emoji was cut in two. It stands for no character.
HALF_PAIR = re.compile("[\ud800-\udfff]")
_BYTE_ORDER_MARK = "\ufeff"
_MARKED = (  # UTF-32's mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip

#: A text and where it stands, for people: "Line 3 of 'a.jsonl'".
_Placed = tuple[str, str]


def load_texts(sources: Sequence[str], *, column: str = "text", limit: int | None = None) -> list[str]:
    """Texts from files or hub data sets, in order.

    Files are UTF-8, or UTF-16 or UTF-32 with a byte order mark. A byte order mark is no text. Half of a surrogate pair
    becomes U+FFFD, with a warning. Texts that are empty or white space are left out.

    Args:
        sources: ``.txt`` files (one text each), ``.jsonl`` files (one object or string a line), ``.parquet`` files, or
            hub data sets (``owner/name`` or ``owner/name:config``, split ``train``, streamed; they need ``limit``).
        column: the column or key that holds the text.
        limit: texts in all, the first ones.

    Raises:
        InputError: a source that does not exist or cannot be read, an unknown column, another encoding or a NUL character (with
            its file and line), or nothing but empty texts.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit is a number of texts, at least 1; got {limit}.")
    replaced: list[str] = []
    placed = (entry for source in sources for entry in _read(source, column, limit))
    texts = list(islice(filter(str.strip, (_text(*entry, replaced) for entry in placed)), limit))
    if replaced:
        warnings.warn(
            f"{len(replaced)} texts held halves of surrogate pairs, as in emoji that were cut; U+FFFD stands there now. First: "
            f"{replaced[0]}.",
            stacklevel=2,
        )
    if not texts:
        raise InputError(
            f"There is no text in {', '.join(sources)}. Give files with at least one text that is not empty."
        )
    return texts


def _text(text: str, place: str, replaced: list[str]) -> str:
    """The text as it is meant. Notes the place in ``replaced`` if halves of surrogate pairs were."""
    text = text.removeprefix(_BYTE_ORDER_MARK)
    if "\0" in text:
        raise InputError(
            f"{place} holds a NUL character, which is no text. Take it out, or save the file as UTF-8 if it is UTF-16."
        )
    if HALF_PAIR.search(text):
        replaced.append(place)
        text = HALF_PAIR.sub("\ufffd", text)
    return text


def _read(source: str, column: str, limit: int | None) -> Iterator[_Placed]:
    path = Path(source)
    readers = {".txt": _read_txt, ".md": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if path.is_file():
        if path.suffix not in readers:
            raise InputError(f"{source!r} is none of {', '.join(readers)}. Convert it to one of them.")
        try:
            yield from readers[path.suffix](path, column)
        except (OSError, UnicodeError) as error:
            raise InputError(f"{source!r} cannot be read as text ({error}).") from error
    elif path.suffix in readers or path.is_dir() or source.count("/") != 1:
        raise InputError(
            f"There is no file {source!r}. Give .txt, .jsonl or .parquet files, or a hub data set as owner/name."
        )
    else:
        yield from _read_hub(source, column, limit)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines, with their ends."""
    with path.open("rb") as file:
        begins = file.read(4)
    encoding = next((name for mark, name in _MARKED if begins.startswith(mark)), "utf-8-sig")
    # Bytes that are no UTF-8 are kept as half surrogates, which UTF-8 itself cannot give, until their line is known.
    with path.open(encoding=encoding, errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if wrong := HALF_PAIR.search(line):
                raise InputError(
                    f"Line {number} of {str(path)!r} cannot be read as UTF-8 (byte 0x{ord(wrong[0]) - 0xDC00:02x}). Save it so: "
                    "`iconv -f latin1 -t utf-8`, or from whatever its encoding is."
                )
            yield number, line


def _read_txt(path: Path, column: str) -> Iterator[_Placed]:
    lines = list(_lines(path))
    place = next((number for number, line in lines if "\0" in line), 1)
    yield "".join(line for _, line in lines), f"Line {place} of {str(path)!r}"


def _read_jsonl(path: Path, column: str) -> Iterator[_Placed]:
    for number, line in _lines(path):
        place = f"Line {number} of {str(path)!r}"
        line = line.removeprefix(_BYTE_ORDER_MARK)  # files with a mark each may have been joined
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            if "\0" in line:
                _text(line, place, [])
            raise InputError(f"{place} is not JSON ({error}).") from error
        if isinstance(entry, dict):
            if column not in entry:
                raise InputError(f"{place} has no {column!r}. {nearest(column, entry)} Choose with --text-column.")
            entry = entry[column]
        if not isinstance(entry, str):
            raise InputError(f"{place} holds a {type(entry).__name__} where a text was expected.")
        yield entry, place


def _read_parquet(path: Path, column: str) -> Iterator[_Placed]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise InputError(f"{str(path)!r} is not a Parquet file ({error}).") from error
    names = file.schema_arrow.names
    if column not in names:
        raise InputError(f"{str(path)!r} has no column {column!r}. {nearest(column, names)} Choose with --text-column.")
    batches = file.iter_batches(batch_size=256, columns=[column])
    yield from _texts_of((row for batch in batches for row in batch.to_pylist()), str(path), column)


def _texts_of(rows: Iterable[Any], source: str, column: str) -> Iterator[_Placed]:
    for number, row in enumerate(rows, 1):
        if column not in row:
            raise InputError(f"{source!r} has no column {column!r}. {nearest(column, row)} Choose with --text-column.")
        if row[column] is not None and not isinstance(row[column], str):
            raise InputError(f"Column {column!r} of {source!r} holds no texts. Choose another with --text-column.")
        yield row[column] or "", f"Row {number} of {source!r}"


def _read_hub(source: str, column: str, limit: int | None) -> Iterator[_Placed]:
    from datasets import load_dataset

    if limit is None:
        raise InputError(
            f"{source!r} is no file, so it is read from the hub as a data set: say how many texts with --limit."
        )
    name, _, config = source.partition(":")
    try:
        rows = load_dataset(name, config or None, split="train", streaming=True)
        yield from _texts_of(rows, source, column)
    except InputError:
        raise
    except Exception as error:  # datasets raises many kinds of error for data that cannot be had
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise InputError(
            f"{source!r} is no file here, and cannot be had from the hub as a data set ({type(error).__name__}: {reason}). "
            "Check the path or name, and the network."
        ) from error
