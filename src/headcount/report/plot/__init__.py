"""Figures for papers and notebooks: each function draws saved or fresh results with matplotlib and returns the axes.

Given ``ax`` it draws there, in whatever style is set; otherwise it makes a figure of its own in headcount's style.
"""

from headcount.report.plot.distributions import distributions
from headcount.report.plot.head_map import head_map
from headcount.report.plot.outcomes import accuracy, removable

__all__ = ["accuracy", "distributions", "head_map", "removable"]
