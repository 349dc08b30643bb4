"""Silence: lm-eval and datasets log a page for every task they load."""

import functools
import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


@contextmanager
def quiet() -> Iterator[None]:
    """No log line, warning or progress bar of lm-eval, datasets and huggingface_hub; all is as before afterwards."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.callback(logging.disable, logging.root.manager.disable)
        logging.disable(logging.CRITICAL)

        import datasets
        import lm_eval.api.task as lm_eval_task
        from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

        if datasets.is_progress_bar_enabled():
            stack.callback(datasets.enable_progress_bars)
            datasets.disable_progress_bars()
        if not are_progress_bars_disabled():
            stack.callback(enable_progress_bars)
            disable_progress_bars()
        no_bar = functools.partial(lm_eval_task.tqdm, disable=True)  # build_all_requests shows one unasked
        stack.enter_context(replaced(lm_eval_task, tqdm=no_bar))
        yield


@contextmanager
def replaced(owner: Any, **values: Any) -> Iterator[None]:
    """Attributes of ``owner`` with other values, as they were afterwards."""
    before = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)
