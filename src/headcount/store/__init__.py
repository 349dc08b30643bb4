"""A run on disk: written so that nothing finished is ever lost, read as xarray and pandas."""

from headcount.files import write_atomically
from headcount.store.begin import begin_run, continue_run
from headcount.store.export import table_csv
from headcount.store.folder import is_run
from headcount.store.identity import environment
from headcount.store.manifest import Manifest
from headcount.store.run import Run, open_run

__all__ = [
    "Manifest",
    "Run",
    "begin_run",
    "continue_run",
    "environment",
    "is_run",
    "open_run",
    "table_csv",
    "write_atomically",
]
