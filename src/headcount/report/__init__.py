"""What people read: an HTML page, figures and terminal tables, made from saved results alone."""

from headcount.report.page import render_page
from headcount.report.results import RunResults, read_results
from headcount.report.terminal import print_decided, print_divergence, print_tables

__all__ = ["RunResults", "print_decided", "print_divergence", "print_tables", "read_results", "render_page"]
