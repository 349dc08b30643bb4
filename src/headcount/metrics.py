"""Which way a metric is better. What each task says of its metrics travels with outcomes, in a column of theirs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd

#: Task → metric → whether higher is better; None where there is no saying.
Directions = dict[str, dict[str, bool | None]]

#: The column of outcomes in which every row has what its task says, as JSON: whatever joins or cuts tables keeps it.
DIRECTIONS = "higher_is_better"

#: Where outcomes do not say, as those of older runs: lm-eval's own by a metric's name, and that of our measures. Without
#: ``perplexity``, whose numbers a question are log-likelihoods, and ``bypass``, which is no metric.
BY_NAME: Mapping[str, bool] = {
    "acc": True, "acc_all": True, "acc_bytes": True, "acc_mutual_info": True, "acc_norm": True, "bits_per_byte": False,
    "bleu": True, "brier_score": False, "byte_perplexity": False, "chrf": True, "chrf++": True, "exact_match": True,
    "f1": True, "likelihood": True, "mcc": True, "ter": False, "word_perplexity": False,
    "gold_loglikelihood": True, "kl_from_baseline": False,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What has to be known of a metric to judge it and to say its numbers.

    Attributes:
        name: its column, ``exact_match`` or, of another filter than ``none``, ``exact_match,strict-match``.
        higher_is_better: None where that is not known: then no change is judged.
        is_share: whether every question is worth between 0 and 1, so that means are percentages and changes points.
        doubt: why it is not judged, in a sentence; empty where it is.
    """

    name: str
    higher_is_better: bool | None = True
    is_share: bool = True
    doubt: str = ""

    @classmethod
    def of(cls, outcomes: pd.DataFrame, name: str, higher_is_better: bool | None = None) -> Self:
        """As the tasks of ``outcomes`` that have it say, unless ``higher_is_better`` is given."""
        values = outcomes[name].to_numpy(dtype=float)
        worth = values[np.isfinite(values)]
        doubt = ""
        if higher_is_better is None:
            said, known = directions_of(outcomes), outcomes.loc[outcomes[name].notna(), "task"].unique()
            ways = {str(task): _way(said.get(str(task), {}), name) for task in known}
            if len(found := set(ways.values())) == 1:
                higher_is_better = found.pop()
            if higher_is_better is None:
                doubt = _doubt(name, ways)
        return cls(
            name=name, higher_is_better=higher_is_better, is_share=bool(((worth >= 0) & (worth <= 1)).all()), doubt=doubt
        )  # fmt: skip

    @property
    def sign(self) -> int:
        """What a change is multiplied by to be a gain where it is positive."""
        return -1 if self.higher_is_better is False else 1

    @property
    def is_accuracy(self) -> bool:
        """Whether a point of it is like a point of the paper's accuracy: the higher the better, between 0 and 1."""
        return self.is_share and self.higher_is_better is True


def directions_of(outcomes: pd.DataFrame) -> Directions:
    """What is said of the metrics of each task; where two rows of a task differ, both count and the last has the word.

    Raises:
        ValueError: it is not what ``directed`` writes.
    """
    whole: Directions = {}
    if DIRECTIONS not in outcomes:
        return whole
    for task, text in outcomes[["task", DIRECTIONS]].dropna().drop_duplicates().itertuples(index=False):
        said = _parsed(text)
        whole[str(task)] = whole.get(str(task), {}) | said
    return whole


def directed(outcomes: pd.DataFrame, said: Directions) -> pd.DataFrame:
    """``outcomes`` that say this of their tasks' metrics."""
    texts = {task: json.dumps(metrics) for task, metrics in said.items()}
    return outcomes.assign(**{DIRECTIONS: [texts.get(str(task)) for task in outcomes["task"]]})


def _parsed(text: object) -> dict[str, bool | None]:
    try:
        said = json.loads(str(text))
    except RecursionError as error:
        raise ValueError(f"{DIRECTIONS} is nested too deeply") from error
    if not isinstance(said, dict) or not all(way is None or isinstance(way, bool) for way in said.values()):
        raise ValueError(f"{DIRECTIONS} says no directions: {text!s:.60}")
    return said


def _way(said: Mapping[str, bool | None], metric: str) -> bool | None:
    return said[metric] if metric in said else BY_NAME.get(metric.partition(",")[0])


def _doubt(metric: str, ways: Mapping[str, bool | None]) -> str:
    up, down = ([task for task, way in ways.items() if way is which] for which in (True, False))
    if up and down:
        return f"{metric} is better the higher in {up[0]} and the lower in {down[0]}: look at one task at a time."
    return (
        f"Whether a higher or a lower {metric} is better is not known, or lm-eval takes no mean of it over questions: its "
        "changes are shown, not judged. Say it with higher_is_better (--higher-is-better or --lower-is-better)."
    )
