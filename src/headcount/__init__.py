"""headcount: how many of your model's attention heads actually work?

Importing the package loads nothing: each name is imported from its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headcount.analysis import UntilDecided
    from headcount.calibrating import calibrate
    from headcount.calibration import Calibration
    from headcount.errors import HeadcountError
    from headcount.evaluation.benchmark import Benchmark
    from headcount.evaluation.evaluate import Evaluation, evaluate
    from headcount.measure import measure_heads, summarise_heads
    from headcount.models.instrument import instrument
    from headcount.models.loading import load
    from headcount.models.observe import units_of
    from headcount.models.probe import Probe
    from headcount.policies import Fixed, Policy, PolicyFacts, Random, Ranked, Threshold
    from headcount.removal.choose import select_heads
    from headcount.removal.fitting import Distillation, Fitting
    from headcount.removal.prune import Checkpoint, prune_heads
    from headcount.removal.selection import Selection
    from headcount.replacements import Kept, Linear, Mean, Zero
    from headcount.report import plot
    from headcount.scores import all_scores, get_score, score
    from headcount.store import Run, open_run
    from headcount.study.evaluating import evaluate_run, measure_run
    from headcount.study.folder import StudyFolder, open_study
    from headcount.study.running import run_study
    from headcount.study.spec import Study
    from headcount.thresholding import thresholds
    from headcount.units import UnitMap, UnitSet

_MODULES = {
    "Benchmark": "evaluation.benchmark", "Calibration": "calibration", "Checkpoint": "removal.prune",
    "Distillation": "removal.fitting", "Evaluation": "evaluation.evaluate", "Fitting": "removal.fitting", "Fixed": "policies",
    "HeadcountError": "errors", "Kept": "replacements", "Linear": "replacements", "Mean": "replacements", "Policy": "policies",
    "PolicyFacts": "policies", "Probe": "models.probe", "Random": "policies", "Ranked": "policies", "Run": "store",
    "Selection": "removal.selection", "Study": "study.spec", "StudyFolder": "study.folder", "Threshold": "policies",
    "UnitMap": "units", "UnitSet": "units", "UntilDecided": "analysis", "Zero": "replacements", "all_scores": "scores",
    "calibrate": "calibrating", "evaluate": "evaluation.evaluate", "evaluate_run": "study.evaluating", "get_score": "scores",
    "instrument": "models.instrument", "load": "models.loading", "measure_heads": "measure", "measure_run": "study.evaluating",
    "open_run": "store", "open_study": "study.folder", "prune_heads": "removal.prune", "run_study": "study.running",
    "score": "scores", "select_heads": "removal.choose", "summarise_heads": "measure", "thresholds": "thresholding",
    "units_of": "models.observe",
}  # fmt: skip

_NAMESPACES = {"plot": "report.plot"}  # modules whose functions are used as ``headcount.plot.accuracy(…)``

__all__ = [
    "Benchmark", "Calibration", "Checkpoint", "Distillation", "Evaluation", "Fitting", "Fixed", "HeadcountError", "Kept",
    "Linear", "Mean", "Policy", "PolicyFacts", "Probe", "Random", "Ranked", "Run", "Selection", "Study", "StudyFolder",
    "Threshold", "UnitMap", "UnitSet", "UntilDecided", "Zero", "all_scores", "calibrate", "evaluate", "evaluate_run",
    "get_score", "instrument", "load", "measure_heads", "measure_run", "open_run", "open_study", "plot", "prune_heads",
    "run_study", "score", "select_heads", "summarise_heads", "thresholds", "units_of",
]  # fmt: skip


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
