"""The folder of a run: its manifest and metrics, and which of its shards there are, were, and are whole."""

import io
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from headcount.files import checksum, kind, read_file, write_atomically
from headcount.store.files import WRITTEN, Damaged, Shard, as_shard, damaged, is_whole, shards, written
from headcount.store.lock import holder
from headcount.store.manifest import Manifest, Settings
from headcount.store.summaries import span, standing, summary_files

MANIFEST, METRICS = "run.json", "metrics.parquet"
SCORES, SUMMARIES, OUTCOMES = "scores", "summaries", "outcomes"
_STEMS = {SCORES: re.compile(r"\d+"), OUTCOMES: re.compile(r"\d+-.*")}


class RunFolder:
    """What of a run is told by its files' names, its manifest and checksums; ``Run`` reads what they hold."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @property
    def settings(self) -> Settings:
        return self.manifest.settings

    @property
    def shard_size(self) -> int:
        """Inputs, or questions, of one shard."""
        return self.settings.shard

    def update(self, **facts: Any) -> None:
        """Write facts into the manifest, and which shards there are."""
        manifest = self.manifest.changed(**{"files": self.noted()} | facts)
        write_atomically(self.path / MANIFEST, manifest.content())
        self.manifest = manifest
        (self.path / WRITTEN).unlink(missing_ok=True)

    def noted(self) -> list[str]:
        """Every shard that the run is known to have, as FOLDER/NAME, whether it is still there or not."""
        latest = {}
        for name in [*self.manifest.files, *written(self.path)]:
            if (shard := as_shard(self.path / name)) is not None:
                latest[shard.path.parent, shard.stem] = shard
        return self._names(latest.values())

    def present(self) -> list[str]:
        """Every shard that is there, as FOLDER/NAME."""
        return self._names(shard for folder in (SCORES, SUMMARIES, OUTCOMES) for shard in self._shards(folder))

    def _names(self, shards: Iterable[Shard]) -> list[str]:
        held = list(shards)
        sums = [shard for shard in held if shard.path.parent.name == SUMMARIES]
        kept = [*standing(sums), *(shard for shard in held if shard.path.parent.name != SUMMARIES)]
        return sorted(f"{shard.path.parent.name}/{shard.path.name}" for shard in kept)

    def set_metrics(self, metrics: pd.DataFrame) -> None:
        buffer = io.BytesIO()
        metrics.to_parquet(buffer, index=False)
        if self.manifest.metrics is not None:
            self.update(metrics=None)  # whoever dies now leaves metrics that do not count, not damaged ones
        write_atomically(self.path / METRICS, buffer.getvalue())
        self.update(metrics=checksum(buffer.getvalue()))

    def metrics(self) -> pd.DataFrame | None:
        """lm-eval's aggregated metrics of every policy; None if there are none."""
        if (known := self.manifest.metrics) is None and self.manifest.format > 2:
            return None
        file = self.path / METRICS
        try:
            content = read_file(file)
            if known not in (None, checksum(content)):
                raise ValueError("its checksum differs")
            frame = pd.read_parquet(io.BytesIO(content))
            if frame.columns.tolist() != ["policy", "task", "metric", "value"]:
                raise ValueError("its columns are others")
            return frame.astype({"policy": str, "task": str, "metric": str, "value": float})
        except (OSError, ValueError, TypeError) as error:
            if known is None and not file.exists():
                return None
            raise damaged(file, str(error)) from error

    def damaged(self) -> list[Path]:
        """Files that were cut off or altered since they were written. Reads every file."""
        found = [
            shard.path
            for folder in (SCORES, SUMMARIES, OUTCOMES)
            for shard in self._shards(folder)
            if not is_whole(shard)
        ]
        if (self.path / METRICS).exists():
            try:
                self.metrics()
            except Damaged:
                found.append(self.path / METRICS)
        return found

    def missing(self) -> list[Path]:
        """Files that were there and are gone."""
        present, summed = self.present(), {i for file in self._shards(SUMMARIES) for i in covered(file)}
        noted = [as_shard(self.path / name) for name in self.noted() if name not in present]
        gone = [file.path for file in noted if file and not (covered(file) and covered(file) <= summed)]
        if self.manifest.metrics and not (self.path / METRICS).exists():
            gone.append(self.path / METRICS)
        # Whoever is killed leaves one file at most that is not noted.
        unknown = set(present) - set(self.noted())
        if len(unknown) > 1 and self.manifest.files and self.holder() is None:
            gone.append(self.path / WRITTEN)
        return gone

    def fingerprint(self) -> str:
        """Of all that the run holds: it changes when anything is measured or answered, or thresholds are found."""
        kept = {
            name: value
            for name, value in self.manifest.facts().items()
            if name not in ("created", "command", "environment", "files")
        }
        return checksum(json.dumps([kept, self.present()]).encode())

    def holder(self) -> dict[str, Any] | None:
        """Who works on the run just now (pid, host, since, command), None if nobody does."""
        return holder(self.path)

    def _shards(self, folder: str) -> list[Shard]:
        """Those whose names are of this folder's kind."""
        if folder == SUMMARIES:
            return summary_files(self.path / folder)
        return [shard for shard in shards(self.path / folder) if _STEMS[folder].fullmatch(shard.stem)]


def covered(file: Shard) -> set[int]:
    """The shards of inputs that a summary is of."""
    if file.path.parent.name != SUMMARIES:
        return set()
    first, last = span(file)
    return set(range(first, last + 1))


def is_run(path: str | os.PathLike[str]) -> bool:
    """Whether there is a run in the folder."""
    return kind(Path(path) / MANIFEST) is not None or holds_shards(Path(path))


def holds_shards(folder: Path) -> bool:
    """Whether a run left anything there, be its manifest gone."""
    return any(shards(folder / name) for name in (SCORES, SUMMARIES, OUTCOMES))
