import io

import pandas as pd

from headcount.evaluation.evaluate import Evaluation
from tests.report.conftest import make_outcomes


def evaluation(task):
    return Evaluation(outcomes=make_outcomes(task=task), metrics=pd.DataFrame(), sources={}, num_truncated=0)


def test_html_shows_accuracy_of_each_policy():
    shown = evaluation("arc_easy")._repr_html_()
    assert shown.startswith("<p>Evaluation: 200 questions of arc_easy; baseline, ")
    table = pd.read_html(io.StringIO(shown))[0]
    assert table["policy"].tolist()[:2] == ["baseline", "ahon_ln:0.05"]
    assert table.columns.tolist()[3] == "acc"


def test_html_of_a_hostile_task_is_escaped():
    assert "<script>" not in evaluation("<script>alert(1)</script>")._repr_html_()


def test_html_without_metrics_is_the_sentence():
    bare = Evaluation(outcomes=make_outcomes().drop(columns="acc"), metrics=pd.DataFrame(), sources={}, num_truncated=0)
    assert bare._repr_html_().endswith("</p>")
