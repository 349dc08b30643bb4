"""Tables from saved results: pure functions from outcomes, scores and thresholds to data frames and labelled arrays."""

from headcount.analysis.accuracy import accuracy_table
from headcount.analysis.agreement import score_agreement
from headcount.analysis.curves import (
    against_random,
    curve_points,
    curve_table,
    normalised_area,
    rank_correlation,
    removable_by_curve,
    top_overlap,
)
from headcount.analysis.distributions import cumulative, distances, layer_profile
from headcount.analysis.divergence import divergence_table
from headcount.analysis.inactivity import frequency_table, group_frequency, head_frequency
from headcount.analysis.removable import last_crossing, removable_table
from headcount.analysis.search import Look, Search, ShareSearch, decided_shares, find_removable_share
from headcount.analysis.sequential import SequentialTest, UntilDecided, asking_order, sequential_table
from headcount.analysis.stability import head_stability, threshold_stability, threshold_transfer
from headcount.analysis.statistics import Statistics
from headcount.analysis.tables import Answers, RunTables, all_tables

__all__ = [
    "Answers", "Look", "RunTables", "Search", "SequentialTest", "ShareSearch", "Statistics", "UntilDecided",
    "accuracy_table", "against_random", "all_tables", "asking_order", "cumulative", "curve_points", "curve_table",
    "decided_shares", "distances", "divergence_table", "find_removable_share", "frequency_table", "group_frequency",
    "head_frequency", "head_stability", "last_crossing", "layer_profile", "normalised_area", "rank_correlation",
    "removable_by_curve", "removable_table", "score_agreement", "sequential_table", "threshold_stability",
    "threshold_transfer", "top_overlap",
]  # fmt: skip
