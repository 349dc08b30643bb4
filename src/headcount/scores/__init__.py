"""Score functions: pure functions from one layer's measurements to a number for each head."""

from headcount.scores import weights, values, outputs, baselines  # noqa: F401, I001  (registers the built-in scores in order)
from headcount.scores.registry import Score, all_scores, get_score, is_registered, load_scores, score, select_scores

__all__ = ["Score", "all_scores", "get_score", "is_registered", "load_scores", "score", "select_scores"]
