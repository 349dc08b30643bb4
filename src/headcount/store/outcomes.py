"""Outcome shards: parquet files, each with the answers to some questions under some policies."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, SkipValidation

from headcount.files import open_file
from headcount.metrics import DIRECTIONS, directions_of
from headcount.store.files import Shard, damaged, read_shard
from headcount.store.manifest import Count, Facts, RuleFacts, curve_of_old, plain

_KEY = b"headcount"
_WHOLE = ("policy", "curve", "score", "task", "doc_id")  # every row has them
_NUMBERS = ("doc_id", "share_asked", "threshold", "share_off")
#: Columns as they were called up to format 3, in which a score alone named the curve.
_CALLED = {"share_zeroed": "share_off", "zeroed_heads": "heads_off"}
_KINDS = {
    "text": ("policy", "curve", "score", "task", "doc_hash", "target", "response", "items", DIRECTIONS),
    "number": (*_NUMBERS, "num_inputs", "num_tokens", "gold_loglikelihood", "kl_from_baseline"),
    "list": ("loglikelihoods", "heads_off"),
}


class OutcomeShard(Facts):
    """What an outcome file holds: every one of ``questions`` (numbers within the benchmark) under each of ``policies``."""

    file: SkipValidation[Shard]
    policies: Annotated[list[str], Field(min_length=1)]
    questions: Annotated[list[Count], Field(min_length=1)]
    failures: dict[str, str]
    """Policies without rows, and why."""
    run: str | None = None
    until_decided: RuleFacts | None = None

    @property
    def place(self) -> int:
        """Of its first question in the order of asking."""
        return int(self.file.stem.partition("-")[0])


def encode_outcomes(outcomes: pd.DataFrame, facts: Mapping[str, Any]) -> bytes:
    """A shard's content; ``facts`` are those of ``OutcomeShard``."""
    table = pa.Table.from_pandas(outcomes, preserve_index=False)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _KEY: json.dumps(dict(facts)).encode()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def describe_outcomes(file: Shard) -> OutcomeShard:
    """What a file holds, from its footer alone. Raises RunError if that cannot be read."""
    try:
        with open_file(file.path) as stream:
            facts = plain(json.loads(pq.read_schema(stream).metadata[_KEY]))
        return OutcomeShard.model_validate({**facts, "file": file})
    except (OSError, pa.ArrowException, ValueError, LookupError, TypeError, RecursionError) as error:
        raise damaged(file.path, str(error)) from error


def read_outcomes(parts: Sequence[OutcomeShard], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The rows of several files, in that order; a column that a file lacks is empty there."""
    tables = []
    for part in parts:
        try:
            table = _renamed(pq.read_table(io.BytesIO(read_shard(part.file))))
            _check(part, table)
        except (pa.ArrowException, OSError, ValueError, LookupError) as error:
            raise damaged(part.file.path, str(error)) from error
        if columns is not None:
            table = table.select([name for name in columns if name in table.column_names])
        tables.append(table.replace_schema_metadata(None))
    try:  # a column of nothing but None has no type of its own in its file
        return pa.concat_tables(tables, promote_options="permissive").to_pandas()
    except pa.ArrowException as error:
        raise damaged(parts[0].file.path.parent, str(error)) from error


def _renamed(table: pa.Table) -> pa.Table:
    """With today's columns."""
    table = table.rename_columns([_CALLED.get(name, name) for name in table.column_names])
    if "curve" in table.column_names or not {"policy", "score"} <= {*table.column_names}:
        return table
    pairs = zip(table["policy"].to_pylist(), table["score"].to_pylist(), strict=True)
    curves, scores = zip(*(curve_of_old(*pair) for pair in pairs), strict=True) if len(table) else ((), ())
    place = table.column_names.index("score")
    return table.set_column(place, "score", pa.array(scores)).append_column("curve", pa.array(curves))


def _check(part: OutcomeShard, table: pa.Table) -> None:
    """Raise ValueError unless the rows are those that the file is said to hold."""
    kinds = dict(zip(table.column_names, table.schema.types, strict=True))
    if len(kinds) < table.num_columns or not kinds.keys() >= {*_WHOLE, *_NUMBERS}:
        raise ValueError(f"its columns are {', '.join(table.column_names):.200}")
    for name, kind in kinds.items():
        wanted = [of for of, names in _KINDS.items() if name in names] or list(_KINDS)
        if (found := _kind(kind)) not in (*wanted, None) or (found is None and name in _WHOLE):
            raise ValueError(f"its column {name} is of {kind}")
    if any(table[name].null_count for name in _WHOLE):
        raise ValueError("it has rows without a policy, score, task or question")
    if DIRECTIONS in table.column_names:
        directions_of(table.select(["task", DIRECTIONS]).to_pandas())
    asked = [policy for policy in part.policies if policy not in part.failures]
    if sorted(table["policy"].to_pylist()) != sorted(policy for policy in asked for _ in part.questions):
        raise ValueError(f"its {table.num_rows} rows are not {len(part.questions)} of each policy")


def _kind(kind: pa.DataType) -> str | None:
    """What values of a type are: ``text``, ``number`` or ``list`` (of numbers, or of such lists); None for no values."""
    if pa.types.is_null(kind):
        return None
    if pa.types.is_list(kind):
        return "list" if _kind(kind.value_type) in ("number", "list", None) else "other"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    return "number" if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind) else "other"
