"""Score functions: pure functions from one layer's measurements to a number for each head."""

from headcount.scores import weights, values, outputs, baselines  # noqa: F401, I001  (registers the built-in scores in order)
from headcount.scores.facts import ScoreFacts, Side
from headcount.scores.registry import (
    SCORE_FACTS,
    Score,
    Table,
    all_scores,
    facts_of,
    get_score,
    inactive_when,
    is_registered,
    load_scores,
    score,
    select_scores,
)

__all__ = [
    "SCORE_FACTS",
    "Score",
    "ScoreFacts",
    "Side",
    "Table",
    "all_scores",
    "facts_of",
    "get_score",
    "inactive_when",
    "is_registered",
    "load_scores",
    "score",
    "select_scores",
]
