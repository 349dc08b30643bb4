"""A run on disk: one model on one body of data, as a manifest and shards that are complete once they exist.

::

    RUN/
      run.json            format, when and how it was begun, model, data, settings, environment, what was asked for
                          (scores, policies), what each score is, thresholds of each score at each share
      scores/*            safetensors, one file per shard of inputs: a tensor [example, layer, head] for each score
      summaries/*         safetensors, instead of scores: counts and moments of shards of inputs
      outcomes/*          parquet, one file per shard of questions and group of policies: one row a policy and question
      metrics.parquet     lm-eval's aggregated metrics of every policy
      history.jsonl       every command that worked on the run, when, and with which versions

The same commands leave the same bytes, interrupted or not, except in history.jsonl and in ``created`` and ``command`` of
run.json.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from headcount.errors import RunError
from headcount.store.described import described
from headcount.store.files import Shard, damaged, is_whole, shards, write_atomically, write_shard
from headcount.store.lock import holder
from headcount.store.outcomes import OutcomeShard, describe_outcomes, encode_outcomes, read_outcomes
from headcount.store.scores import encode_scores, open_scores
from headcount.store.summaries import add_summary, read_summaries, span, summary_files
from headcount.summaries import Summary

FORMAT = 2
#: Inputs, or questions, whose results are written together.
SHARD = 256
MANIFEST, METRICS = "run.json", "metrics.parquet"
SCORES, SUMMARIES, OUTCOMES = "scores", "summaries", "outcomes"


class Run:
    """One run's folder. ``open_run`` reads it; ``begin_run`` (store/begin.py) makes or continues it."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest

    def __repr__(self) -> str:
        model = self.manifest.get("model", {}).get("name", "?")
        measured = sum(len(self._shards(folder)) for folder in (SCORES, SUMMARIES))
        return (
            f"<Run {str(self.path)!r}: {model}, {measured} files of scores, {len(self._shards(OUTCOMES))} of outcomes>"
        )

    def _repr_html_(self) -> str:
        """Model, data, what was measured and evaluated, as a table."""
        data = self.manifest.get("data", {})
        named = data.get("tasks") or data.get("texts") or []
        facts = {
            "run": self.path,
            "model": self.manifest.get("model", {}).get("name", "?"),
            "data": ", ".join(map(str, named)),
            "files of scores": sum(len(self._shards(folder)) for folder in (SCORES, SUMMARIES)),
            "policies": ", ".join(self.policies()),
            "created": self.manifest.get("created", "?"),
        }
        rows = (f"<tr><th>{escape(name)}</th><td>{escape(str(fact))}</td></tr>" for name, fact in facts.items())
        return f"<table>{''.join(rows)}</table>"

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.manifest.get("settings", {})

    @property
    def shard_size(self) -> int:
        """Inputs, or questions, of one shard."""
        return self.settings.get("shard", SHARD)

    def update(self, **facts: Any) -> None:
        """Write facts into the manifest."""
        manifest = self.manifest | facts
        write_atomically(self.path / MANIFEST, json.dumps(manifest, indent=1, default=str).encode())
        self.manifest = manifest

    # What was measured

    def add_scores(self, shard: int, table: xr.Dataset) -> None:
        """Keep the scores of one shard of inputs, as ``measure_heads`` gives them."""
        content = encode_scores(table, self.settings.get("scores_dtype", "float32"))
        write_shard(self.path / SCORES, f"{shard:06d}", "safetensors", content)

    def add_summary(self, shard: int, summary: Summary) -> None:
        """Keep a summary of one shard of inputs, added up with its neighbours'."""
        add_summary(self.path / SUMMARIES, shard, summary)

    @property
    def has_scores(self) -> bool:
        return bool(self._shards(SCORES))

    def scores(self) -> xr.Dataset | None:
        """Every measured score, dims (example, layer, head); None if no score was kept.

        A score is read from disk when its values are asked for, as float32.
        """
        files = self._shards(SCORES)
        return described(open_scores(files), self.manifest.get("scores", {}), self.path) if files else None

    def score_parts(self) -> Iterator[tuple[int, xr.Dataset]]:
        """The scores part by part, each with the number of its first input: for runs larger than memory."""
        for file in self._shards(SCORES):
            yield int(file.stem) * self.shard_size, open_scores([file]).load()

    def summary(self) -> Summary | None:
        """What was measured, summarised; None if no summary was kept."""
        files = summary_files(self.path / SUMMARIES)
        return described(read_summaries(files), self.manifest.get("scores", {}), self.path) if files else None

    def measurements(self) -> xr.Dataset | Summary | None:
        """Every score, or their summary where that was kept; None if nothing was measured."""
        return self.scores() if self.has_scores else self.summary()

    def measured(self) -> set[int]:
        """The shards of inputs that are measured."""
        spans = map(span, summary_files(self.path / SUMMARIES))
        return {int(file.stem) for file in self._shards(SCORES)} | {i for a, b in spans for i in range(a, b + 1)}

    def set_thresholds(self, cuts: xr.Dataset) -> None:
        values = {str(name): of_score.values.tolist() for name, of_score in cuts.items()}
        self.update(thresholds={"share": cuts["share"].values.tolist(), "scores": values})

    def thresholds(self) -> xr.Dataset | None:
        """Thresholds, dim (share,), one variable per score; None if they were not computed."""
        known = self.manifest.get("thresholds")
        if known is None:
            return None
        try:
            cuts = {name: ("share", values) for name, values in known["scores"].items()}
            return xr.Dataset(cuts, coords={"share": known["share"]})
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            file = str(self.path / MANIFEST)
            raise RunError(
                f"The thresholds in {file!r} cannot be read ({error}). Find them again with `headcount thresholds`."
            ) from error

    # What was answered

    def add_outcomes(
        self,
        policies: Sequence[str],
        questions: Sequence[int],
        outcomes: pd.DataFrame,
        failures: Mapping[str, str] | None = None,
        place: int | None = None,
    ) -> None:
        """Keep the answers to some questions under some policies.

        Args:
            policies: labels of the policies.
            questions: numbers of the questions within the benchmark.
            outcomes: one row a policy and question, each policy's in the order of ``questions``.
            failures: why policies that have no rows gave no answers.
            place: of the first question in the order of asking, where that is not the benchmark's own.
        """
        name = re.sub(r"[^A-Za-z0-9_]+", "-", policies[0])[:40].strip("-") or "policy"
        unit = hashlib.sha256(json.dumps([list(policies), list(questions)]).encode()).hexdigest()[:6]
        content = encode_outcomes(outcomes, policies, questions, failures or {})
        write_shard(
            self.path / OUTCOMES, f"{min(questions) if place is None else place:06d}-{name}-{unit}", "parquet", content
        )

    def answered(self) -> dict[str, set[int]]:
        """For each policy's label, the numbers of the questions that it has answered."""
        known: dict[str, set[int]] = {}
        for shard in self._answers():
            for policy in shard.policies:
                known.setdefault(policy, set()).update(shard.questions)
        return known

    def failures(self) -> dict[str, str]:
        """Policies that were given up on some question, with the reason."""
        return {policy: why for shard in self._answers() for policy, why in shard.failures.items()}

    def outcomes(
        self, policies: Sequence[str] | None = None, columns: Sequence[str] | None = None
    ) -> pd.DataFrame | None:
        """Every question under every policy, policies in the order in which they were asked for; None if there are none.

        Each policy's questions are in the benchmark's order; where questions were asked until it was decided, in the order
        of asking.

        A policy that failed on some question is left out: what it answered are not the same questions.

        Args:
            policies: labels of the policies wanted; None for all.
            columns: columns wanted; None for all.
        """
        answers = [shard for shard in self._answers() if policies is None or set(policies) & set(shard.policies)]
        if not answers:
            return None
        wanted = None if columns is None else list(dict.fromkeys(["policy", *columns]))
        frame = read_outcomes(sorted(answers, key=lambda shard: shard.place), wanted)
        failed = self.failures()
        kept = [label for label in frame["policy"].unique() if label not in failed]
        frame = frame[frame["policy"].isin([label for label in kept if policies is None or label in policies])]
        place = {label: i for i, label in enumerate(self.policies())}
        order = np.argsort([place[label] for label in frame["policy"]], kind="stable")
        frame = frame.iloc[order].reset_index(drop=True)
        return frame if columns is None else frame.loc[:, [name for name in columns if name in frame]]

    def values(self, metric: str) -> dict[str, dict[int, float]]:
        """For each policy's label, a metric of the questions it has answered, by their numbers; NaN where there is none."""
        known: dict[str, dict[int, float]] = {}
        for shard in self._answers():
            frame = read_outcomes([shard], ["policy", metric]).reindex(columns=["policy", metric])
            for policy, rows in frame.groupby("policy", sort=False):
                known.setdefault(str(policy), {}).update(zip(shard.questions, rows[metric].astype(float), strict=True))
        return known

    def shares_zeroed(self, policies: Sequence[str]) -> dict[str, float]:
        """The share of heads that each of these policies zeroed, the mean over the questions it has answered."""
        frame = self.outcomes(policies, ["policy", "share_zeroed"])
        if frame is None:
            return {}
        return {str(policy): float(rows["share_zeroed"].to_numpy().mean()) for policy, rows in frame.groupby("policy")}

    def policies(self) -> list[str]:
        """Labels of the policies that have answers, in the order in which they were asked for."""
        have = self.answered()
        asked = [entry["policy"] for entry in self.manifest.get("policies", ())]
        return list(dict.fromkeys([*(label for label in asked if label in have), *have]))

    def set_metrics(self, metrics: pd.DataFrame) -> None:
        buffer = io.BytesIO()
        metrics.to_parquet(buffer, index=False)
        write_atomically(self.path / METRICS, buffer.getvalue())

    def metrics(self) -> pd.DataFrame | None:
        """lm-eval's aggregated metrics of every policy; None if there are none."""
        file = self.path / METRICS
        if not file.exists():
            return None
        try:
            return pd.read_parquet(file)
        except (OSError, ValueError) as error:
            raise damaged(file, str(error)) from error

    # How it stands

    def damaged(self) -> list[Path]:
        """Files that were cut off or altered since they were written. Reads every file."""
        return [
            shard.path
            for folder in (SCORES, SUMMARIES, OUTCOMES)
            for shard in self._shards(folder)
            if not is_whole(shard)
        ]

    def fingerprint(self) -> str:
        """Of all that the run holds: it changes when anything is measured or answered, or thresholds are found."""
        kept = {
            name: value for name, value in self.manifest.items() if name not in ("created", "command", "environment")
        }
        names = [shard.path.name for folder in (SCORES, SUMMARIES, OUTCOMES) for shard in self._shards(folder)]
        return hashlib.sha256(json.dumps([kept, names], default=str).encode()).hexdigest()[:16]

    def holder(self) -> dict[str, Any] | None:
        """Who works on the run just now (pid, host, since, command), None if nobody does."""
        return holder(self.path)

    def _shards(self, folder: str) -> list[Shard]:
        return shards(self.path / folder)

    def _answers(self) -> list[OutcomeShard]:
        return [describe_outcomes(file) for file in self._shards(OUTCOMES)]


def open_run(path: str | os.PathLike[str]) -> Run:
    """An existing run, to read.

    Raises:
        RunError: no run there, a damaged manifest, or another format.
    """
    folder = Path(path)
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(
            f"{str(folder)!r} holds no run (no {MANIFEST}). Make one with `headcount measure … -o {folder}`."
        ) from None
    except (OSError, ValueError) as error:
        raise RunError(f"{str(folder / MANIFEST)!r} cannot be read ({error}). Make the run again.") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("model"), dict):
        raise RunError(f"{str(folder / MANIFEST)!r} is not the manifest of a headcount run.")
    if (found := manifest.get("format")) != FORMAT:
        older = isinstance(found, int) and found < FORMAT
        raise RunError(
            f"{str(folder)!r} has format {found}, this headcount reads format {FORMAT}. "
            + ("It was made by an older headcount: make the run again." if older else "Upgrade headcount.")
        )
    return Run(folder, manifest)


def is_run(path: str | os.PathLike[str]) -> bool:
    """Whether there is a run in the folder."""
    return (Path(path) / MANIFEST).is_file()
