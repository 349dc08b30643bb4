"""Tables from saved results: pure functions from per-question outcomes to data frames."""

from headcount.analysis.accuracy import accuracy_table
from headcount.analysis.removable import last_crossing, removable_table
from headcount.analysis.sequential import SequentialTest, sequential_table

__all__ = ["SequentialTest", "accuracy_table", "last_crossing", "removable_table", "sequential_table"]
