"""Benchmarks under policies, and headcount as a model class of lm-eval.

Importing ``HeadcountLM`` from here registers it: ``lm_eval.simple_evaluate(model="headcount", …)`` then works.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headcount.evaluation.benchmark import Benchmark
    from headcount.evaluation.language_model import HeadcountLM

__all__ = ["Benchmark", "HeadcountLM"]


def __getattr__(name: str) -> Any:
    # On first use: transformers and lm-eval take seconds to import.
    if name not in __all__:
        raise AttributeError(f"module 'headcount.evaluation' has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'benchmark' if name == 'Benchmark' else 'language_model'}"), name)
