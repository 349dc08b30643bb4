"""Outcome shards: parquet files, each with the answers to some questions under some policies."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from headcount.metrics import Directions, directed, directions_of, merged
from headcount.store.files import Shard, damaged, read_shard

_KEY = b"headcount"


@dataclass(frozen=True, kw_only=True)
class OutcomeShard:
    """What an outcome file holds: every one of ``questions`` (numbers within the benchmark) under each of ``policies``."""

    file: Shard
    policies: tuple[str, ...]
    questions: tuple[int, ...]
    failures: dict[str, str]
    """Policies without rows, and why."""
    higher_is_better: Directions
    """What the questions' tasks say of their metrics; empty in files of an older headcount."""

    @property
    def place(self) -> int:
        """Of its first question in the order of asking."""
        return int(self.file.stem.partition("-")[0])


def encode_outcomes(
    outcomes: pd.DataFrame, policies: Sequence[str], questions: Sequence[int], failures: Mapping[str, str]
) -> bytes:
    table = pa.Table.from_pandas(outcomes, preserve_index=False)
    facts = {"policies": list(policies), "questions": list(questions), "failures": dict(failures)}
    facts["higher_is_better"] = directions_of(outcomes)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _KEY: json.dumps(facts).encode()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def describe_outcomes(file: Shard) -> OutcomeShard:
    """What a file holds, from its footer alone. Raises RunError if that cannot be read."""
    try:
        facts = json.loads(pq.read_schema(file.path).metadata[_KEY])
        return OutcomeShard(
            file=file, policies=tuple(facts["policies"]), questions=tuple(facts["questions"]),
            failures=dict(facts["failures"]), higher_is_better=dict(facts.get("higher_is_better", {})),
        )  # fmt: skip
    except (OSError, pa.ArrowException, ValueError, LookupError, TypeError) as error:
        raise damaged(file.path, str(error)) from error


def read_outcomes(parts: Sequence[OutcomeShard], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The rows of several files, in that order; a column that a file lacks is empty there. They say what metrics mean."""
    tables = []
    for part in parts:
        try:
            table = pq.read_table(io.BytesIO(read_shard(part.file)))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise damaged(part.file.path, str(error)) from error
        if columns is not None:
            table = table.select([name for name in columns if name in table.column_names])
        tables.append(table.replace_schema_metadata(None))
    # A column of nothing but None has no type of its own in its file.
    frame = pa.concat_tables(tables, promote_options="permissive").to_pandas()
    return directed(frame, merged(part.higher_is_better for part in parts))
