"""The results published with arXiv 2504.03889 (ICLR 2026), as data, and the paper's tables recomputed from them.

Raw numbers, as the authors give them, are in ``mmlu.csv`` and ``thresholds.csv``; their first line names the source.
"""

from headcount.published.results import (
    published_curves,
    published_model,
    published_points,
    published_table,
    published_threshold,
    published_thresholds,
)

__all__ = [
    "published_curves", "published_model", "published_points", "published_table", "published_threshold",
    "published_thresholds",
]  # fmt: skip
