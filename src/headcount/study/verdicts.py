"""What is decided of a run whose questions are asked until it is."""

import numpy as np
import pandas as pd

from headcount.analysis import SequentialTest, UntilDecided, asking_order
from headcount.analysis.outcomes import BASELINE
from headcount.store import Manifest, Run


def rule_of(manifest: Manifest) -> UntilDecided | None:
    """By which rule a run is asked; None where every question is."""
    rule = manifest.until_decided
    return rule and UntilDecided(
        metric=rule.metric, margin=rule.margin, confidence=rule.confidence, questions_a_look=rule.questions_a_look,
        higher_is_better=rule.higher_is_better,
    )  # fmt: skip


def run_tests(run: Run) -> dict[str, SequentialTest]:
    """The test of each policy that was asked, as far as it is; empty where every question is asked."""
    if (rule := rule_of(run.manifest)) is None:
        return {}
    values = run.values(rule.metric)
    total = run.manifest.data.num_questions
    order = asking_order(total, run.settings.seed)
    before = values.pop(BASELINE, {})
    untouched = run.outcomes([BASELINE], ["policy", "task", "doc_id", rule.metric])
    if untouched is None:
        return {}
    sign, tests = rule.judged(untouched).sign, {}
    for label, after in values.items():
        test = tests[label] = rule.test(total)
        both = [number for number in order if number in after and number in before]
        test.update(sign * np.array([after[number] - before[number] for number in both]))
    return tests


def decided_table(run: Run) -> pd.DataFrame | None:
    """Each policy's verdict, as from ``sequential_table``; None where every question is asked, or none was yet."""
    rule, outcomes = rule_of(run.manifest), run.outcomes()
    if rule is None or outcomes is None:
        return None
    return rule.table(outcomes, run.manifest.data.num_questions)
