"""What people read: an HTML page and terminal tables, made from saved results alone."""

from headcount.report.page import render_page
from headcount.report.terminal import print_tables

__all__ = ["print_tables", "render_page"]
