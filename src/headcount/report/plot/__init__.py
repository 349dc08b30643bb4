"""Figures for papers and notebooks: each function draws saved or fresh results with matplotlib and returns the axes.

Given ``ax`` it draws there, in whatever style is set; otherwise it makes a figure of its own in headcount's style.
"""

from headcount.report.plot.head_map import head_map
from headcount.report.plot.outcomes import accuracy, removable
from headcount.report.plot.panels import comparison, distributions, layers
from headcount.report.plot.scores import agreement, paper, ranks, stability

__all__ = [
    "accuracy", "agreement", "comparison", "distributions", "head_map", "layers", "paper", "ranks", "removable",
    "stability",
]  # fmt: skip
