"""Silence: transformers shows bars and warnings while it loads and saves."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

import transformers


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars or warnings from transformers while it loads or saves a model."""
    logger = transformers.utils.logging
    level, bars = logger.get_verbosity(), logger.is_progress_bar_enabled()
    logger.set_verbosity_error()
    logger.disable_progress_bar()
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # tqdm writes to sys.stderr unasked
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.set_verbosity(level)
        if bars:
            logger.enable_progress_bar()
