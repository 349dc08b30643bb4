"""Every table that a run's results give, the same on the page, as CSV and as LaTeX."""

from collections.abc import Sequence

import pandas as pd

from headcount.report import wording
from headcount.report.comparison_tables import comparison_tables
from headcount.report.head_tables import head_tables
from headcount.report.results import MARGIN, RunResults
from headcount.report.tables import Table, table
from headcount.scores import SCORE_FACTS, Score, ScoreFacts, all_scores


def result_tables(runs: Sequence[RunResults]) -> list[Table]:
    """The tables of what was measured and evaluated in the first run, and of the others beside it."""
    run = runs[0]
    tables = [*_evaluated(run)] if run.evaluated else []
    if not run.divergence.empty:
        tables.append(_divergence(run))
    if run.decided is not None and len(run.decided):
        tables.append(_decided(run))
    if run.measured:
        tables += head_tables(run)
    return [*tables, *comparison_tables(runs), _definitions(run)]


def _evaluated(run: RunResults) -> list[Table]:
    metric = run.judged
    unit, within = "points" if metric.is_share else "the metric's own unit", wording.fall_name(MARGIN, metric)
    fall, side, name = "fall", "below", wording.shown(wording.metric_name(run.metric), 40)
    if metric.sign < 0:
        fall, side = "rise", "above"
    better = f" {name} is better when lower, so a rise is what costs." if metric.sign < 0 else ""
    said = "".join(f" {text}" for text in [*filter(None, [metric.doubt]), *wording.left_out(run.accuracy, metric)])
    accuracy = table(
        "accuracy",
        f"{wording.titled(name)} under each policy",
        f"Mean over the questions of {', '.join(wording.shown(task, 60) for task in run.tasks)}.{better} Changes are in "
        f"{unit} from the untouched model, paired by question, with 95% intervals; p is McNemar's, exact. Within {within}: "
        f"whether a {fall} of less than {within} is shown or refuted with 95% confidence, each policy by itself.{said}",
        run.accuracy,
        [
            ("Policy", wording.policy_name, False),
            ("Share asked", lambda row: wording.percent(row.share_asked, 0), True),
            ("Realised", lambda row: wording.percent(row.share_realised), True),
            (wording.titled(name), lambda row: wording.mean_of(metric, row.accuracy), True),
            ("Change [95%]", lambda row: wording.change_with_interval(row, metric), True),
            (f"Within {within}", lambda row: wording.verdict(row.within_margin), False),
            ("p", lambda row: wording.p_value(row.p_mcnemar), True),
            ("Questions", lambda row: f"{row.num_questions:,}", True),
        ],
    )
    if run.removable.empty:
        return [accuracy]
    removable = table(
        "removable",
        f"Share of heads that can be zeroed within {within}",
        f"Where each score's curve crosses the line {within} {side} the untouched model for the last time, with 95% "
        f"bootstrap intervals; at smaller shares it may have been {side}. ≥ marks curves that did not {fall} that far "
        f"within the shares measured. Shown: the largest share up to which every measured one keeps {name} within "
        f"{within} with 95% confidence.",
        run.removable,
        [
            ("Score", lambda row: row.score, False),
            ("Removable share [95%]", wording.removable_with_interval, True),
            ("Shown up to", lambda row: wording.percent(row.share_shown), True),
            ("Measured up to", lambda row: wording.percent(row.largest_share_measured), True),
        ],
    )
    return [removable, accuracy]


def _divergence(run: RunResults) -> Table:
    return table(
        "divergence",
        "How far answers move under each policy",
        "KL: divergence of the answers' probabilities from the untouched model's, nats. Log-likelihood: change of the right "
        "answer's, nats, or where a benchmark is of texts, of theirs a token (the loss with its sign turned). Means over "
        "questions, paired with the untouched model's, with 95% bootstrap intervals.",
        run.divergence,
        [
            ("Policy", wording.policy_name, False),
            ("Benchmark", lambda row: wording.shown(row.task, 60), False),
            ("Share asked", lambda row: wording.percent(row.share_asked, 0), True),
            ("Realised", lambda row: wording.percent(row.share_realised), True),
            ("KL [95%]", lambda row: wording.nats(row.kl, row.kl_low, row.kl_high), True),
            (
                "Log-likelihood [95%]",
                lambda row: wording.nats(
                    row.gold_loglikelihood, row.gold_loglikelihood_low, row.gold_loglikelihood_high, signed=True
                ),
                True,
            ),
            ("Questions", lambda row: f"{row.num_questions:,}", True),
        ],
    )


def _decided(run: RunResults) -> Table:
    rule = run.manifest.until_decided
    assert run.decided is not None
    assert rule is not None
    metric = wording.judged_in(run.decided, rule.metric)
    lower, within = metric.sign < 0, wording.fall_name(rule.margin, metric)
    return table(
        "decided",
        f"{f'At most {within} above' if lower else f'Within {within} of'} the untouched model?",
        "Questions were asked in random order, and no more of them under a policy once it was known, with "
        f"{wording.percent(rule.confidence, 0)} confidence, whether the {'rise' if lower else 'fall'} over the "
        f"whole benchmark is within the margin. Changes are those of {wording.names_of([metric])} on the questions asked, in "
        f"{'points' if metric.is_share else 'its own unit'}.",
        run.decided,
        [
            ("Policy", wording.policy_name, False),
            ("Share asked", lambda row: wording.percent(row.share_asked), True),
            ("Realised", lambda row: wording.percent(row.share_realised), True),
            ("Change", lambda row: wording.change_of(metric, row.change), True),
            ("Verdict", lambda row: row.verdict or "not known yet", False),
            ("Stopped after", lambda row: f"{row.num_questions:,} of {row.total:,} questions", True),
        ],
    )


def _definitions(run: RunResults) -> Table:
    """The scores that the results name; all of them where they name none."""
    named = {str(name) for name in run.scores.data_vars} if run.scores is not None else set()
    if run.evaluated:
        named |= set(run.removable["score"])
    shown: list[ScoreFacts] = [score for score in all_scores() if not named or score.id in named]
    if run.scores is not None:
        shown += run.scores.attrs.get(SCORE_FACTS, {}).values()
    frame = pd.DataFrame(
        {
            "score": [score.id for score in shown],
            "name": [score.name for score in shown],
            "definition": [
                wording.first_paragraph(score.function.__doc__) if isinstance(score, Score) else "" for score in shown
            ],
            "inactive_when": [score.inactive_when for score in shown],
            "unit": [score.unit for score in shown],
            "source": [score.source for score in shown],
        }
    )
    return table(
        "definitions",
        "Definitions of the scores in this report",
        "",
        frame,
        [
            ("Score", lambda row: row.score, False),
            ("Definition", lambda row: f"{row.name}. {row.definition}", False),
            ("Inactive when", lambda row: row.inactive_when, False),
            ("Unit", lambda row: row.unit, False),
            ("Source", lambda row: row.source, False),
        ],
    )
