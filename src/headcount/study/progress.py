"""How far runs and studies are."""

from dataclasses import dataclass

from headcount.store import Run
from headcount.study.folder import StudyFolder


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """How far a run is.

    Attributes:
        num_policies: policies to ask under, the untouched model among them: all that were asked for so far, or of a study.
        num_inputs: inputs to measure; None before that was known.
        inputs_done: of them, how many are measured.
        num_questions: questions of the benchmark; 0 for texts.
        policies: for each policy asked for, the untouched model among them, how many questions it has answered.
        num_thresholds: shares at which thresholds are known.
        failures: policies that were given up, with the reason.
    """

    num_inputs: int | None
    inputs_done: int
    num_questions: int
    num_policies: int
    policies: dict[str, int]
    num_thresholds: int
    failures: dict[str, str]

    @property
    def inputs_left(self) -> int:
        return (self.num_inputs or 0) - self.inputs_done

    @property
    def answers_done(self) -> int:
        return sum(self.policies.values())

    @property
    def answers_left(self) -> int:
        return self.num_questions * self.num_policies - self.answers_done


def run_progress(run: Run, num_policies: int = 0) -> RunProgress:
    """How far a run is, from its manifest and its files' footers; ``num_policies`` are to be asked under, if it is known."""
    planned = run.manifest.get("measured", {}).get("num_inputs")
    size, done = run.shard_size, run.measured()
    inputs = sum(min(size, (planned or 0) - shard * size) for shard in done)
    answered = run.answered()
    labels = dict.fromkeys([*(entry["policy"] for entry in run.manifest.get("policies", ())), *answered])
    cuts = run.manifest.get("thresholds") or {}
    return RunProgress(
        num_inputs=planned,
        inputs_done=inputs,
        num_questions=run.manifest.get("data", {}).get("num_questions", 0),
        num_policies=max(num_policies, len(labels)),
        policies={label: len(answered.get(label, ())) for label in labels},
        num_thresholds=len(cuts.get("share", ())),
        failures=run.failures(),
    )


def study_progress(folder: StudyFolder) -> dict[tuple[str, str], RunProgress | None]:
    """How far each run of a study is, by the labels of model and data; None for one not begun."""
    runs = folder.runs()
    return {
        labels: run_progress(runs[labels], folder.study.num_policies()) if labels in runs else None
        for labels in ((model.label, data.label) for model, data in folder.study.cells())
    }
