"""What is decided of a run whose questions are asked until it is."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from headcount.analysis import SequentialTest, UntilDecided, asking_order
from headcount.analysis.outcomes import BASELINE
from headcount.errors import InputError, RunError
from headcount.store import Run


def rule_of(manifest: Mapping[str, Any]) -> UntilDecided | None:
    """By which rule a run is asked; None where every question is.

    Raises:
        RunError: the manifest names a rule that is none.
    """
    if (rule := manifest.get("until_decided")) is None:
        return None
    try:
        return UntilDecided(**rule)
    except (TypeError, InputError) as error:
        raise RunError(f"The run's manifest does not say when to stop asking ({error}). Make the run again.") from error


def run_tests(run: Run) -> dict[str, SequentialTest]:
    """The test of each policy that was asked, as far as it is; empty where every question is asked."""
    if (rule := rule_of(run.manifest)) is None:
        return {}
    values = run.values(rule.metric)
    total = int(run.manifest["data"]["num_questions"])
    order = asking_order(total, run.settings["seed"])
    before = values.pop(BASELINE, {})
    untouched = run.outcomes([BASELINE], ["policy", "task", "doc_id", rule.metric])
    if untouched is None:
        return {}
    sign, tests = rule.judged(untouched).sign, {}
    for label, after in values.items():
        test = tests[label] = rule.test(total)
        test.update(sign * np.array([after[number] - before[number] for number in order if number in after]))
    return tests


def decided_table(run: Run) -> pd.DataFrame | None:
    """Each policy's verdict, as from ``sequential_table``; None where every question is asked, or none was yet."""
    rule, outcomes = rule_of(run.manifest), run.outcomes()
    if rule is None or outcomes is None:
        return None
    return rule.table(outcomes, int(run.manifest["data"]["num_questions"]))
