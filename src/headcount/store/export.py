"""A run's tables in formats that other tools read."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import xarray as xr

from headcount.errors import InputError, RunError
from headcount.store.run import Run
from headcount.store.whole import files_together
from headcount.units import KINDS

FORMATS = ("parquet", "csv", "netcdf")


#: A spreadsheet would calculate text that starts with these; it reads the wide forms as the narrow ones.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def table_csv(frame: pd.DataFrame, *, header: bool = True, digits: int | None = 9) -> str:
    """RFC 4180; text that a spreadsheet would run as a formula gets an apostrophe before it.

    Args:
        frame: one row a line; its index is left out.
        header: write the names of the columns first.
        digits: of a number, at most; None for all that tell it from others.
    """
    safe = frame.set_axis([_inert(name) for name in frame.columns], axis="columns")
    for place, (_, column) in enumerate(frame.items()):
        if not pd.api.types.is_numeric_dtype(column):
            safe.isetitem(place, column.astype(object).map(_inert))
    written = None if digits is None else f"%.{digits}g"
    return safe.to_csv(index=False, header=header, lineterminator="\r\n", float_format=written)


def _inert(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def export_run(run: Run, folder: Path, form: str) -> list[Path]:
    """Write what a run holds into a folder, each kind into a file of its own; all of them appear at once, or none.

    ``scores`` (one row an input, layer and head; one column a score), or ``heads`` (``neurons``, …) of a summarised run (one
    row a score, layer and head: count, mean, variance, smallest, largest); ``thresholds``; ``outcomes`` (one row a policy and
    question); ``metrics``. As netCDF scores, heads and thresholds are arrays, outcomes have the dimensions (policy,
    question), and of their columns only those with numbers are there.

    Raises:
        InputError: an unknown format, or scores too large for a netCDF 3 file.
        RunError: the run holds nothing, or the folder cannot be written.
    """
    if form not in FORMATS:
        raise InputError(f"Unknown format {form!r}. Use {', '.join(FORMATS)}.")
    with files_together(folder) as work:
        written = [folder / file.name for file in (_netcdf if form == "netcdf" else _tables)(run, work, form)]
        if not written:
            raise RunError(
                f"{str(run.path)!r} holds nothing to export yet. Run `headcount measure` or `evaluate` first."
            )
    return written


def _tables(run: Run, folder: Path, form: str) -> Iterator[Path]:
    if run.has_scores:
        yield _write_scores(run, folder / f"scores.{form}", form)
    cuts, summary = run.thresholds(), run.summary()
    tables = {
        KINDS[run.manifest.unit].short: None if summary is None else summary.heads.to_dataframe().reset_index(),
        "thresholds": None if cuts is None else cuts.to_dataframe().reset_index(),
        "outcomes": run.outcomes(),
        "metrics": run.metrics(),
    }
    for name, table in tables.items():
        if table is not None:
            file = folder / f"{name}.{form}"
            if form == "parquet":
                table.to_parquet(file, index=False)
            else:
                _write_csv(file, [table])
            yield file


def _write_scores(run: Run, file: Path, form: str) -> Path:
    """A row an input, layer and head, written shard by shard."""
    parts = map(_score_rows, run.score_parts())
    if form == "csv":
        return _write_csv(file, parts)
    tables = (pa.Table.from_pandas(rows, preserve_index=False) for rows in parts)
    first = next(tables)
    with pq.ParquetWriter(file, first.schema) as writer:
        for table in itertools.chain([first], tables):
            writer.write_table(table)
    return file


def _write_csv(file: Path, parts: Iterable[pd.DataFrame]) -> Path:
    with file.open("w", encoding="utf-8", newline="") as stream:
        for number, rows in enumerate(parts):
            stream.write(table_csv(rows, header=not number, digits=None))
    return file


def _score_rows(numbered: tuple[int, xr.Dataset]) -> pd.DataFrame:
    first, part = numbered
    part = part.assign_coords(example=np.arange(first, first + part.sizes["example"]))
    names = ["example", "num_tokens", "layer", "head", *map(str, part.data_vars)]
    return part.to_dataframe().reset_index().loc[:, names]


def _netcdf(run: Run, folder: Path, form: str) -> Iterator[Path]:
    scores, summary, cuts, outcomes = run.scores(), run.summary(), run.thresholds(), run.outcomes()
    arrays = {
        "scores": scores,
        KINDS[run.manifest.unit].short: None if summary is None else summary.heads,
        "thresholds": cuts,
        "outcomes": None if outcomes is None else _numbers(outcomes),
    }
    for name, array in arrays.items():
        if array is None:
            continue
        largest = max((int(values.nbytes) for values in array.data_vars.values()), default=0)
        if largest >= 2**32 - 4:
            raise InputError(f"{name} needs {largest:,} bytes a variable; netCDF 3 ends at 4 GiB. Export as parquet.")
        plain = {key: value for key, value in array.attrs.items() if isinstance(value, str | int | float)}
        array.drop_attrs().assign_attrs(plain).to_netcdf(folder / f"{name}.nc", engine="scipy")
        yield folder / f"{name}.nc"


def _numbers(outcomes: pd.DataFrame) -> xr.Dataset:
    """The numeric columns, dims (policy, question), with task and doc_id of each question."""
    questions = outcomes[["task", "doc_id"]].drop_duplicates().reset_index(drop=True)
    place = {pair: i for i, pair in enumerate(questions.itertuples(index=False, name=None))}
    columns = [
        str(name) for name in outcomes.select_dtypes("number").columns
        if name not in ("doc_id", "share_asked", "threshold")
    ]  # fmt: skip
    indexed = outcomes.assign(question=[place[pair] for pair in zip(outcomes["task"], outcomes["doc_id"], strict=True)])
    found = indexed.set_index(["policy", "question"])[columns].to_xarray()
    return found.reindex(policy=outcomes["policy"].unique()).assign_coords(
        task=("question", questions["task"].tolist()), doc_id=("question", questions["doc_id"])
    )
