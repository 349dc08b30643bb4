"""Score functions: pure functions from one layer's measurements to a number for each head."""

from headcount.scores import weights, values, outputs, baselines, calibrated, mlps  # noqa: F401, I001  (registers the built-in scores in order)
from headcount.scores.facts import ScoreFacts, Side
from headcount.scores.registry import (
    PER_TOKEN,
    SCORE_FACTS,
    Rows,
    Score,
    Table,
    all_scores,
    facts_of,
    get_score,
    inactive_when,
    is_registered,
    load_scores,
    of_tokens,
    score,
    select_scores,
)

__all__ = [
    "PER_TOKEN",
    "SCORE_FACTS",
    "Rows",
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
    "of_tokens",
    "score",
    "select_scores",
]
