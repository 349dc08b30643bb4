"""The removable shares beside those of the paper's models."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from headcount.policies import RANDOM, is_random
from headcount.published import published_table
from headcount.report import plot, wording
from headcount.report.published import published_models, published_shares
from headcount.report.results import MARGIN, Report
from headcount.report.sections.section import Drawing, line, on_axes, percentages
from headcount.report.tables import Table, num, table, text

HEADING = "Beside the paper's models"


def tables(report: Report) -> Iterator[Table]:
    run = report.run
    if not run.beside_paper:
        return
    published = published_table()
    own = run.removable.set_index("curve")["removable_share"]
    scores = [name for name in published.columns if name not in ("model", "task", "best_curve", "best")]
    first = {"model": run.model, "task": ", ".join(run.answers.tasks)} | {
        name: own.get(name, np.nan) for name in scores
    }
    best = {curve: share for curve, share in own.items() if curve != "awft" and not is_random(str(curve))}
    name = max(best, key=best.__getitem__, default="")
    first |= {"best_curve": name, "best": best.get(name, np.nan)}
    frame = pd.concat([pd.DataFrame([first]), published], ignore_index=True)
    yield table(
        "paper",
        f"Share of heads that can be off within {wording.fall_name(MARGIN, run.judged)}: this run and the paper's models",
        "The paper's on MMLU, 5-shot (its Table 2, recomputed from its points), this run's on its own questions, "
        f"by {wording.names_of([run.judged])}. Best is "
        "the best score but awft, picked on the same data. All scores are in the CSV.",
        frame,
        [
            text("Model", "model"), text("Questions", lambda row: wording.shown(row.task, 40)),
            *(num(score, score, wording.percent) for score in ("awft", "ahon_ln", "lthon_ln", RANDOM)),
            num("Best", "best", wording.percent),
            text("Which", lambda row: row.best_curve if isinstance(row.best_curve, str) else wording.NOT_MEASURED),
        ],
    )  # fmt: skip


def data(report: Report) -> dict[str, Any] | None:
    """Removable shares of the paper's 14 models, score by score, and this run's."""
    run = report.run
    if not run.beside_paper:
        return None
    published = published_shares()
    own = {row.curve: row for row in wording.rows(run.removable)}
    scores = sorted({**published, **own}, key=is_random)
    return {
        "models": published_models(),
        "scores": [line(score) for score in scores],
        "shares": [percentages(published.get(score, ())) for score in scores],
        "own": [_own(own[score]) if score in own else None for score in scores],
        "name": run.model,
        "axis": f"Heads off within {wording.fall_name(MARGIN, run.judged)}",
    }


def _own(row: Any) -> dict[str, Any]:
    share, low, high = percentages([row.removable_share, row.low, row.high])
    text, bound = wording.removable_with_interval(row), bool(row.is_lower_bound)
    return {"share": share, "low": low, "high": high, "text": text, "bound": bound}


def figures(report: Report) -> Iterator[Drawing]:
    if report.run.beside_paper:
        yield on_axes("paper", "text", 0.45, plot.paper, report.run, name=report.run.model)
