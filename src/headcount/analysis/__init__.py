"""Tables from saved results: pure functions from per-question outcomes to data frames."""

from headcount.analysis.accuracy import accuracy_table
from headcount.analysis.removable import last_crossing, removable_table

__all__ = ["accuracy_table", "last_crossing", "removable_table"]
