"""headcount: how many of your model's attention heads actually work?

Importing the package loads nothing: each name is imported from its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headcount.analysis import UntilDecided
    from headcount.errors import HeadcountError
    from headcount.evaluation.benchmark import Benchmark
    from headcount.evaluation.evaluate import Evaluation, evaluate
    from headcount.heads import HeadGeometry, HeadSet
    from headcount.interventions import Fixed, Policy, Random, Threshold
    from headcount.measure import measure_heads
    from headcount.models.instrument import instrument
    from headcount.models.loading import load
    from headcount.models.observe import head_geometry
    from headcount.models.probe import Probe
    from headcount.removal.choose import select_heads
    from headcount.removal.distill import Distillation
    from headcount.removal.prune import prune_heads
    from headcount.removal.selection import Selection
    from headcount.report import plot
    from headcount.scores import all_scores, get_score, score
    from headcount.store import Run, open_run
    from headcount.study.folder import StudyFolder, open_study
    from headcount.study.running import run_study
    from headcount.study.spec import Study
    from headcount.thresholding import thresholds

_MODULES = {
    "Benchmark": "evaluation.benchmark",
    "Distillation": "removal.distill",
    "Evaluation": "evaluation.evaluate",
    "Fixed": "interventions",
    "HeadGeometry": "heads",
    "HeadSet": "heads",
    "HeadcountError": "errors",
    "Policy": "interventions",
    "Probe": "models.probe",
    "Random": "interventions",
    "Run": "store",
    "Selection": "removal.selection",
    "Study": "study.spec",
    "StudyFolder": "study.folder",
    "Threshold": "interventions",
    "UntilDecided": "analysis",
    "all_scores": "scores",
    "evaluate": "evaluation.evaluate",
    "get_score": "scores",
    "head_geometry": "models.observe",
    "instrument": "models.instrument",
    "load": "models.loading",
    "measure_heads": "measure",
    "open_run": "store",
    "open_study": "study.folder",
    "prune_heads": "removal.prune",
    "run_study": "study.running",
    "score": "scores",
    "select_heads": "removal.choose",
    "thresholds": "thresholding",
}

_NAMESPACES = {"plot": "report.plot"}  # modules whose functions are used as ``headcount.plot.accuracy(…)``

__all__ = [
    "Benchmark",
    "Distillation",
    "Evaluation",
    "Fixed",
    "HeadGeometry",
    "HeadSet",
    "HeadcountError",
    "Policy",
    "Probe",
    "Random",
    "Run",
    "Selection",
    "Study",
    "StudyFolder",
    "Threshold",
    "UntilDecided",
    "all_scores",
    "evaluate",
    "get_score",
    "head_geometry",
    "instrument",
    "load",
    "measure_heads",
    "open_run",
    "open_study",
    "plot",
    "prune_heads",
    "run_study",
    "score",
    "select_heads",
    "thresholds",
]


def __getattr__(name: str) -> Any:
    if name in _NAMESPACES:
        value = import_module(f"headcount.{_NAMESPACES[name]}")
    elif name in _MODULES:
        value = getattr(import_module(f"headcount.{_MODULES[name]}"), name)
    else:
        raise AttributeError(f"module 'headcount' has no attribute {name!r}")
    globals()[name] = value  # also takes the place of the submodule of the same name
    return value


def __dir__() -> list[str]:
    return __all__
