"""What runs are called beside one another."""

from collections.abc import Sequence

from headcount.report.results import RunResults


def run_labels(runs: Sequence[RunResults]) -> list[str]:
    """A short name for each run, all different: the model, or the data, or both, and a number where those are the same."""
    for names in (
        [run.model for run in runs],
        [run.data or run.model for run in runs],
        [f"{run.model}, {run.data}" for run in runs],
    ):
        if len(set(names)) == len(names):
            return names
    return [f"{run.model}, {run.data} ({number})" for number, run in enumerate(runs, 1)]


def same_model(runs: Sequence[RunResults]) -> list[RunResults]:
    """The measured runs of the first run's model, itself first."""
    first = runs[0].fingerprint
    return [
        run for number, run in enumerate(runs) if run.measured and (number == 0 or (first and run.fingerprint == first))
    ]
