"""Methods: definitions, the command, and all that is known of the run."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from headcount.report import wording
from headcount.report.results import Report
from headcount.report.tables import Table, table, text
from headcount.scores import PER_TOKEN, SCORE_FACTS, Score, ScoreFacts, all_scores

HEADING = "Methods"


def tables(report: Report) -> Iterator[Table]:
    """The scores that the results name; all of them where they name none."""
    run = report.run
    named = {str(name) for name in run.scores.data_vars} if run.scores is not None else set()
    if run.has_curves:
        named |= set(run.answers.outcomes["score"]) - {""}
    shown: list[ScoreFacts] = [score for score in all_scores() if not named or named & {score.id, score.id + PER_TOKEN}]
    if run.scores is not None:
        shown += run.scores.attrs.get(SCORE_FACTS, {}).values()
    columns = ("id", "name", "inactive_when", "unit", "source")
    frame = pd.DataFrame({name: [getattr(score, name) for score in shown] for name in columns})
    said = [wording.first_paragraph(score.function.__doc__) if isinstance(score, Score) else "" for score in shown]
    frame.insert(2, "definition", said)
    yield table(
        "definitions",
        "Definitions of the scores in this report",
        "",
        frame.rename(columns={"id": "score"}),
        [
            text("Score", "score"), text("Definition", lambda row: f"{row.name}. {row.definition}"),
            text("Inactive when", "inactive_when"), text("Unit", "unit"), text("Source", "source"),
        ],
    )  # fmt: skip


def words(report: Report) -> dict[str, Any]:
    hidden = ("command", "thresholds", "scores", "files", "metrics")
    known = {name: value for name, value in report.run.manifest.facts().items() if name not in hidden}
    command = wording.shown(report.run.manifest.command, 2000)  # without marks that could show it as something else
    return {"command": command, "facts": list(_facts(known))}


def _facts(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every entry as (dotted name, text), nested mappings opened."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _facts(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            yield wording.shown(prefix + name), f"{len(value)} entries"
        elif value is not None and value != []:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            yield wording.shown(prefix + name), wording.shown(text, 400)
