"""Texts to measure on: text, JSON-lines and Parquet files, or a data set on the hub."""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from headcount.errors import InputError, nearest


def load_texts(sources: Sequence[str], *, column: str = "text", limit: int | None = None) -> list[str]:
    """Texts from files or hub data sets, in order.

    Args:
        sources: ``.txt`` files (one text each), ``.jsonl`` files (one object or string a line), ``.parquet`` files, or
            hub data sets (``owner/name`` or ``owner/name:config``, split ``train``, streamed; they need ``limit``).
        column: the column or key that holds the text.
        limit: texts in all, the first ones.

    Raises:
        InputError: a source that does not exist or cannot be read, an unknown column, or nothing but empty texts.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit is a number of texts, at least 1; got {limit}.")
    texts = list(islice((text for source in sources for text in _read(source, column, limit)), limit))
    if not texts:
        raise InputError(
            f"There is no text in {', '.join(sources)}. Give files with at least one text that is not empty."
        )
    return texts


def _read(source: str, column: str, limit: int | None) -> Iterator[str]:
    path = Path(source)
    readers = {".txt": _read_txt, ".md": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if path.is_file():
        if path.suffix not in readers:
            raise InputError(f"{source!r} is none of {', '.join(readers)}. Convert it to one of them.")
        try:
            texts = readers[path.suffix](path, column)
            yield from (text for text in texts if text.strip())
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{source!r} cannot be read as UTF-8 text ({error}).") from error
    elif path.suffix in readers or path.is_dir() or source.count("/") != 1:
        raise InputError(
            f"There is no file {source!r}. Give .txt, .jsonl or .parquet files, or a hub data set as owner/name."
        )
    else:
        yield from (text for text in _read_hub(source, column, limit) if text.strip())


def _read_txt(path: Path, column: str) -> Iterator[str]:
    yield path.read_text(encoding="utf-8")


def _read_jsonl(path: Path, column: str) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise InputError(f"Line {number} of {str(path)!r} is not JSON ({error}).") from error
            if isinstance(entry, dict):
                if column not in entry:
                    raise InputError(
                        f"Line {number} of {str(path)!r} has no {column!r}. {nearest(column, entry)} Choose with --text-column."
                    )
                entry = entry[column]
            if not isinstance(entry, str):
                raise InputError(
                    f"Line {number} of {str(path)!r} holds a {type(entry).__name__} where a text was expected."
                )
            yield entry


def _read_parquet(path: Path, column: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise InputError(f"{str(path)!r} is not a Parquet file ({error}).") from error
    names = file.schema_arrow.names
    if column not in names:
        raise InputError(f"{str(path)!r} has no column {column!r}. {nearest(column, names)} Choose with --text-column.")
    for batch in file.iter_batches(batch_size=256, columns=[column]):
        for entry in batch.column(0).to_pylist():
            if entry is not None and not isinstance(entry, str):
                raise InputError(
                    f"Column {column!r} of {str(path)!r} holds no texts. Choose another with --text-column."
                )
            yield entry or ""


def _read_hub(source: str, column: str, limit: int | None) -> Iterator[str]:
    from datasets import load_dataset

    if limit is None:
        raise InputError(
            f"{source!r} is no file, so it is read from the hub as a data set: say how many texts with --limit."
        )
    name, _, config = source.partition(":")
    try:
        rows = load_dataset(name, config or None, split="train", streaming=True)
        for row in rows:
            if column not in row:
                raise InputError(
                    f"{source!r} has no column {column!r}. {nearest(column, row)} Choose with --text-column."
                )
            if row[column] is not None and not isinstance(row[column], str):
                raise InputError(f"Column {column!r} of {source!r} holds no texts. Choose another with --text-column.")
            yield row[column] or ""
    except InputError:
        raise
    except Exception as error:  # datasets raises many kinds of error for data that cannot be had
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise InputError(
            f"{source!r} is no file here, and cannot be had from the hub as a data set ({type(error).__name__}: {reason}). "
            "Check the path or name, and the network."
        ) from error
