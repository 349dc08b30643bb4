"""Where headcount keeps what can be made again: the converted demo model, lm-eval's task names, the built kernel."""

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """``$HEADCOUNT_CACHE``, or headcount's folder among the user's caches. It may not exist yet."""
    return Path(os.environ.get("HEADCOUNT_CACHE") or platformdirs.user_cache_dir("headcount"))
