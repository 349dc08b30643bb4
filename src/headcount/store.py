"""A run on disk: a manifest and files that are complete once the manifest names them.

::

    RUN/
      run.json                 format, model, data, settings, versions, thresholds of each score at each share, and the
                               SHA-256 of every file below
      scores/00000.safetensors one float32 tensor [example, layer, head] per score, and num_tokens [example]
      outcomes/*.parquet       one row per question, one file per policy
      metrics/*.parquet        lm-eval's aggregated metrics, one file per policy
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from headcount.errors import RunError

FORMAT = 1
_MANIFEST = "run.json"


class Run:
    """One run's folder. Create it with ``Run.create``, open it with ``open_run``."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def create(cls, path: str | os.PathLike[str], **facts: Any) -> "Run":
        """A new run in a folder that does not exist or is empty; ``facts`` go into its manifest.

        Raises:
            RunError: the folder holds something already, or cannot be written.
        """
        folder = Path(path)
        run = cls(folder, {"format": FORMAT, **facts, "files": {}})
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise RunError(f"{str(folder)!r} is not empty. Give the run a folder of its own with -o.")
        except OSError as error:
            raise _cannot_write(folder, error) from error
        run._save_manifest(run.manifest)
        return run

    def __repr__(self) -> str:
        files = self.manifest["files"]
        model = self.manifest.get("model", {}).get("name", "?")
        return f"<Run {str(self.path)!r}: {model}, {len(files)} files>"

    def add_scores(self, table: xr.Dataset) -> None:
        """Append the scores of more examples, as ``measure_heads`` gives them."""
        tensors: dict[str, np.ndarray] = {
            str(name): np.ascontiguousarray(values.values, np.float32) for name, values in table.data_vars.items()
        }
        facts = {"scores": list(tensors), "layers": table["layer"].values.tolist(), "attrs": table.attrs}
        tensors["num_tokens"] = table["num_tokens"].values.astype(np.int64)
        number = len(self._names("scores/"))
        content = save_safetensors(tensors, {"headcount": json.dumps(facts, default=str)})
        self._add({f"scores/{number:05d}.safetensors": content})

    @property
    def has_scores(self) -> bool:
        return bool(self._names("scores/"))

    def scores(self) -> xr.Dataset | None:
        """Every measured score, dims (example, layer, head); None if nothing was measured."""
        tables: list[xr.Dataset] = [self._read(name, _scores_from_bytes) for name in self._names("scores/")]
        return xr.concat(tables, "example", combine_attrs="override") if tables else None

    def set_thresholds(self, cuts: xr.Dataset) -> None:
        values = {str(name): of_score.values.tolist() for name, of_score in cuts.items()}
        self._save_manifest(self.manifest | {"thresholds": {"share": cuts["share"].values.tolist(), "scores": values}})

    def thresholds(self) -> xr.Dataset | None:
        """Thresholds, dim (share,), one variable per score; None if they were not computed."""
        known = self.manifest.get("thresholds")
        if known is None:
            return None
        try:
            cuts = {name: ("share", values) for name, values in known["scores"].items()}
            return xr.Dataset(cuts, coords={"share": known["share"]})
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            file = str(self.path / _MANIFEST)
            raise RunError(
                f"The thresholds in {file!r} cannot be read ({error}). Find them again with `headcount thresholds`."
            ) from error

    def add_outcomes(self, policy: str, outcomes: pd.DataFrame, metrics: pd.DataFrame) -> None:
        """Keep what one policy did. A policy's earlier outcomes are replaced."""
        stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", policy)[:80] + "-" + hashlib.sha256(policy.encode()).hexdigest()[:6]
        files = {}
        for folder, frame in (("metrics", metrics), ("outcomes", outcomes)):
            content = _parquet(frame)
            files[f"{folder}/{stem}-{hashlib.sha256(content).hexdigest()[:6]}.parquet"] = content
        replaced = [
            name
            for name in self.manifest["files"]
            if name.rpartition("-")[0] in (f"metrics/{stem}", f"outcomes/{stem}")
        ]
        self._add(files, replaced)

    def outcomes(self) -> pd.DataFrame | None:
        """Every question under every policy, in the order in which policies were run; None if there are none."""
        return self._frames("outcomes/")

    def metrics(self) -> pd.DataFrame | None:
        """lm-eval's aggregated metrics of every policy; None if there are none."""
        return self._frames("metrics/")

    def policies(self) -> list[str]:
        """Labels of the policies whose outcomes are here."""
        outcomes = self.outcomes()
        return [] if outcomes is None else outcomes["policy"].unique().tolist()

    def _frames(self, folder: str) -> pd.DataFrame | None:
        frames = [
            self._read(name, lambda content: pd.read_parquet(io.BytesIO(content))) for name in self._names(folder)
        ]
        return pd.concat(frames, ignore_index=True) if frames else None

    def _names(self, folder: str) -> list[str]:
        return [name for name in self.manifest["files"] if name.startswith(folder)]

    def _add(self, files: dict[str, bytes], replaced: Iterable[str] = ()) -> None:
        """Write new files, then name them in the manifest, then delete those that they replace.

        A name is never written twice with different content, so that a stop at any point leaves a whole run.
        """
        named = {name: checksum for name, checksum in self.manifest["files"].items() if name not in replaced}
        for name, content in files.items():
            write_atomically(self.path / name, content)
            named[name] = hashlib.sha256(content).hexdigest()
        self._save_manifest(self.manifest | {"files": named})
        for name in set(replaced) - set(named):
            with suppress(OSError):
                (self.path / name).unlink()

    def _read(self, name: str, parse: Callable[[bytes], Any]) -> Any:
        file = self.path / name
        try:
            content = file.read_bytes()
            if hashlib.sha256(content).hexdigest() != self.manifest["files"][name]:
                raise RunError(f"{str(file)!r} is not what was written (its checksum differs). Make the run again.")
            return parse(content)
        except (OSError, SafetensorError, ValueError, LookupError, TypeError) as error:
            raise RunError(f"{str(file)!r} cannot be read ({error}). Make the run again.") from error

    def _save_manifest(self, manifest: dict[str, Any]) -> None:
        write_atomically(self.path / _MANIFEST, json.dumps(manifest, indent=1, default=str).encode())
        self.manifest = manifest


def open_run(path: str | os.PathLike[str]) -> Run:
    """An existing run.

    Raises:
        RunError: no run there, a damaged manifest, or a format of a newer headcount.
    """
    folder = Path(path)
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(
            f"{str(folder)!r} holds no run (no {_MANIFEST}). Make one with `headcount measure … -o {folder}`."
        ) from None
    except (OSError, ValueError) as error:
        raise RunError(f"{str(folder / _MANIFEST)!r} cannot be read ({error}). Make the run again.") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise RunError(f"{str(folder / _MANIFEST)!r} is not the manifest of a headcount run.")
    if manifest.get("format") != FORMAT:
        raise RunError(
            f"{str(folder)!r} has format {manifest.get('format')}, this headcount reads format {FORMAT}. Upgrade headcount."
        )
    return Run(folder, manifest)


def is_run(path: str | os.PathLike[str]) -> bool:
    """Whether there is a run in the folder."""
    return (Path(path) / _MANIFEST).is_file()


def write_atomically(file: Path, content: bytes) -> None:
    """Write so that the file is either absent, or its old self, or complete: temporary file, fsync, rename.

    Raises:
        RunError: it cannot be written.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise _cannot_write(file, error) from error


def differences(expected: dict[str, Any], found: dict[str, Any]) -> Iterable[str]:
    """The facts in which a run's manifest differs from what is wanted, as readable phrases."""
    for name, wanted in expected.items():
        if (have := found.get(name)) != wanted:
            yield f"{name} is {have!r} there and {wanted!r} here"


def _cannot_write(path: Path, error: OSError) -> RunError:
    return RunError(
        f"{str(path)!r} cannot be written ({error.strerror or error}). Free space or choose another folder with -o."
    )


def _parquet(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()


def _scores_from_bytes(content: bytes) -> xr.Dataset:
    length = int.from_bytes(content[:8], "little")
    facts = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["headcount"])
    tensors = load_safetensors(content)
    heads = tensors[facts["scores"][0]].shape[2]
    return xr.Dataset(
        {name: (("example", "layer", "head"), tensors[name]) for name in facts["scores"]},
        coords={"layer": facts["layers"], "head": np.arange(heads), "num_tokens": ("example", tensors["num_tokens"])},
        attrs=facts["attrs"],
    )
