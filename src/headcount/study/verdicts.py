"""What is decided of a run whose questions are asked until it is."""

import numpy as np

from headcount.analysis import SequentialTest, UntilDecided, asking_order
from headcount.metrics import DIRECTIONS
from headcount.policies import BASELINE
from headcount.store import Manifest, Run


def rule_of(manifest: Manifest, higher_is_better: bool | None = None) -> UntilDecided | None:
    """By which rule a run is asked; None where every question is.

    Which way its metric is better is what was said when it was asked, or else ``higher_is_better``.
    """
    rule = manifest.until_decided
    return rule and UntilDecided(
        metric=rule.metric, margin=rule.margin, confidence=rule.confidence, questions_a_look=rule.questions_a_look,
        higher_is_better=higher_is_better if rule.higher_is_better is None else rule.higher_is_better,
    )  # fmt: skip


def run_tests(run: Run) -> dict[str, SequentialTest]:
    """The test of each policy that was asked, as far as it is; empty where every question is asked.

    Raises:
        InputError: nothing can be decided by the rule's metric, such as one of which nobody says which way it is better.
    """
    if (rule := rule_of(run.manifest)) is None:
        return {}
    values = run.values(rule.metric)
    total = run.manifest.data.num_questions
    order = asking_order(total, run.settings.seed)
    before = values.pop(BASELINE, {})
    untouched = run.outcomes([BASELINE], ["policy", "task", "doc_id", DIRECTIONS, rule.metric])
    if untouched is None:
        return {}
    sign, tests = rule.judged(untouched).sign, {}
    for label, after in values.items():
        test = tests[label] = rule.test(total)
        both = [number for number in order if number in after and number in before]
        test.update(sign * np.array([after[number] - before[number] for number in both]))
    return tests
