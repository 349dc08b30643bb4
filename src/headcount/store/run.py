"""A run on disk: one model on one body of data, as a manifest and shards that are complete once they exist.

::

    RUN/
      run.json            format, when and how it was begun, model, data, settings, environment, what was asked for
                          (scores, policies), what each score is, thresholds of each score at each share, every shard
      scores/*            safetensors, one file per shard of inputs: a tensor [example, layer, head] for each score
      summaries/*         safetensors, instead of scores: counts and moments of shards of inputs
      outcomes/*          parquet, one file per shard of questions and group of policies: one row a policy and question
      metrics.parquet     lm-eval's aggregated metrics of every policy
      written.txt         shards that came since run.json was written
      history.jsonl       every command that worked on the run, when, and with which versions

The same commands leave the same bytes, interrupted or not, except in history.jsonl and in ``created`` and ``command`` of
run.json.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import xarray as xr

from headcount.errors import RunError
from headcount.scores import SCORE_FACTS, ScoreFacts, get_score, is_registered
from headcount.store.files import Shard, check_parts, damaged, write_shard
from headcount.store.folder import MANIFEST, OUTCOMES, SCORES, SUMMARIES, RunFolder, covered, holds_shards
from headcount.store.headers import read_header
from headcount.store.manifest import Manifest, NotedScore, RuleFacts
from headcount.store.outcomes import OutcomeShard, describe_outcomes, encode_outcomes, read_outcomes
from headcount.store.scores import encode_scores, open_scores
from headcount.store.summaries import add_summary, read_summaries
from headcount.summaries import Summary

_Measured = TypeVar("_Measured", xr.Dataset, Summary)


class Run(RunFolder):
    """One run: what was measured and answered. ``open_run`` reads it; ``begin_run`` (store/begin.py) makes or continues it."""

    def __repr__(self) -> str:
        model = self.manifest.model.name or "?"
        measured = sum(len(self._shards(folder)) for folder in (SCORES, SUMMARIES))
        return (
            f"<Run {str(self.path)!r}: {model}, {measured} files of scores, {len(self._shards(OUTCOMES))} of outcomes>"
        )

    def _repr_html_(self) -> str:
        """Model, data, what was measured and evaluated, as a table."""
        data = self.manifest.data
        facts = {
            "run": self.path,
            "model": self.manifest.model.name or "?",
            "data": ", ".join(data.tasks or data.texts),
            "files of scores": sum(len(self._shards(folder)) for folder in (SCORES, SUMMARIES)),
            "policies": ", ".join(self.policies()),
            "created": self.manifest.created or "?",
        }
        rows = (f"<tr><th>{escape(name)}</th><td>{escape(str(fact))}</td></tr>" for name, fact in facts.items())
        return f"<table>{''.join(rows)}</table>"

    # What was measured

    def add_scores(self, shard: int, table: xr.Dataset) -> None:
        """Keep the scores of one shard of inputs, as ``measure_heads`` gives them."""
        content = encode_scores(table, self.settings.scores_dtype, self.manifest.subject)
        write_shard(self.path / SCORES, f"{shard:06d}", "safetensors", content)

    def add_summary(self, shard: int, summary: Summary) -> None:
        """Keep a summary of one shard of inputs, added up with its neighbours'."""
        add_summary(self.path / SUMMARIES, shard, summary, self.manifest.subject)

    @property
    def has_scores(self) -> bool:
        return bool(self._shards(SCORES))

    def scores(self) -> xr.Dataset | None:
        """Every measured score, dims (example, layer, head); None if no score was kept.

        A score is read from disk when its values are asked for, as float32.
        """
        files = self._shards(SCORES)
        return _described(open_scores(files), self.manifest.scores, self.path) if files else None

    def score_parts(self) -> Iterator[tuple[int, xr.Dataset]]:
        """The scores part by part, each with the number of its first input: for runs larger than memory."""
        for file in self._shards(SCORES):
            yield int(file.stem) * self.shard_size, open_scores([file]).load()

    def summary(self) -> Summary | None:
        """What was measured, summarised; None if no summary was kept."""
        files = self._shards(SUMMARIES)
        return _described(read_summaries(files), self.manifest.scores, self.path) if files else None

    def measurements(self) -> xr.Dataset | Summary | None:
        """Every score, or their summary where that was kept; None if nothing was measured."""
        return self.scores() if self.has_scores else self.summary()

    def measured(self) -> set[int]:
        """The shards of inputs that are measured."""
        summed = {i for file in self._shards(SUMMARIES) for i in covered(file)}
        return {int(file.stem) for file in self._shards(SCORES)} | summed

    def scores_measured(self) -> list[str] | None:
        """Ids, as the manifest says or, where it was made anew, the shards; None if nothing was to be measured."""
        if self.manifest.measured is not None:
            return self.manifest.measured.scores
        kept = [shard for folder in (SCORES, SUMMARIES) for shard in self._shards(folder)]
        return read_header(kept[0].path).scores if kept else None

    def set_thresholds(self, cuts: xr.Dataset) -> None:
        values = {str(name): of_score.values.tolist() for name, of_score in cuts.items()}
        facts = {str(name): dict(of_score.attrs) for name, of_score in cuts.items() if of_score.attrs}
        kept = {"share": cuts["share"].values.tolist(), "scores": values}
        self.update(thresholds=kept | ({"not_finite": facts} if facts else {}))

    def thresholds(self) -> xr.Dataset | None:
        """Thresholds, dim (share,), one variable per score; None if they were not computed."""
        if (known := self.manifest.thresholds) is None:
            return None
        left_out = {name: facts.facts() for name, facts in known.not_finite.items()}
        cuts = {name: ("share", values, left_out.get(name, {})) for name, values in known.scores.items()}
        return xr.Dataset(cuts, coords={"share": known.share})

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
        rule = self.manifest.until_decided
        facts = {
            "run": self.manifest.subject, "policies": list(policies), "questions": list(questions),
            "failures": dict(failures or {}), "until_decided": rule and rule.facts(),
        }  # fmt: skip
        content = encode_outcomes(outcomes, facts)
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

    def rule(self) -> RuleFacts | None:
        """When asking stops, as the manifest says or, where it was made anew, the answers; None: every question is asked."""
        return self.manifest.until_decided or next((shard.until_decided for shard in self._answers()), None)

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

    def shares_off(self, policies: Sequence[str]) -> dict[str, float]:
        """The share of heads that each of these policies switched off, the mean over the questions it has answered."""
        frame = self.outcomes(policies, ["policy", "share_off"])
        if frame is None:
            return {}
        return {str(policy): float(rows["share_off"].to_numpy().mean()) for policy, rows in frame.groupby("policy")}

    def policies(self) -> list[str]:
        """Labels of the policies that have answers, in the order in which they were asked for."""
        have = self.answered()
        asked = [entry.policy for entry in self.manifest.policies]
        return list(dict.fromkeys([*(label for label in asked if label in have), *have]))

    def _answers(self) -> list[OutcomeShard]:
        return [describe_outcomes(file) for file in self._shards(OUTCOMES)]


def noted_facts(ids: Iterable[str]) -> dict[str, dict[str, str]]:
    """The facts of registered scores, for a manifest."""
    of_score = {id: asdict(get_score(id).facts()) for id in ids}
    return {id: {name: value for name, value in facts.items() if name != "id"} for id, facts in of_score.items()}


def _described(measured: _Measured, noted: Mapping[str, NotedScore], folder: Path) -> _Measured:
    """What was measured, with the facts that the run notes of scores that are not registered here.

    Raises:
        RunError: a score is another one here.
    """
    facts = {
        id: ScoreFacts(id=id, name=of.name, inactive_when=of.inactive_when, unit=of.unit, source=of.source)
        for id, of in noted.items()
    }
    for id, there in facts.items():
        if is_registered(id) and (here := get_score(id)).inactive_when != there.inactive_when:
            raise RunError(
                f"{str(folder)!r} says that {id} is inactive when {there.inactive_when}; here it is inactive when "
                f"{here.inactive_when}. It is another score of that name, or the manifest was altered."
            )
    own = {id: entry for id, entry in facts.items() if not is_registered(id)}
    if own:
        measured.attrs[SCORE_FACTS] = own
    return measured


def subject_of(shard: Shard) -> str | None:
    """Of which run a shard says that it is."""
    known = describe_outcomes(shard) if shard.path.parent.name == OUTCOMES else read_header(shard.path)
    return known.run


def open_run(path: str | os.PathLike[str]) -> Run:
    """An existing run, to read.

    Raises:
        RunError: no run there, a damaged manifest, or another format.
    """
    folder = Path(path)
    check_parts(folder)
    try:
        return Run(folder, Manifest.read(folder / MANIFEST))
    except FileNotFoundError:
        if holds_shards(folder):
            raise damaged(folder / MANIFEST, "it is gone") from None
        raise RunError(
            f"{str(folder)!r} holds no run (no {MANIFEST}). Make one with `headcount measure … -o {folder}`."
        ) from None
