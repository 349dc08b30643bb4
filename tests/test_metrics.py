"""A metric that is better when lower is judged by its rise: everything mirrors its complement."""

import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from headcount.analysis import (
    RunTables,
    Statistics,
    UntilDecided,
    accuracy_table,
    all_tables,
    curve_points,
    curve_table,
    removable_table,
    sequential_table,
)
from headcount.analysis.outcomes import main_metric
from headcount.errors import InputError
from headcount.metrics import Metric, directed, directions_of
from headcount.report import RunResults, plot, print_decided, print_tables, render_page
from headcount.report.overview import print_overview
from headcount.report.results import Report
from headcount.report.sections import accuracy, comparison, paper, result_tables
from headcount.report.wording import answer, caveats
from headcount.store import Manifest
from tests.report.conftest import results_of
from tests.report.test_page import text_of


def tables_of(outcomes, metric):
    return RunTables(
        model="m", data="t", tasks=["t"], outcomes=outcomes, metric=metric, statistics=Statistics(resamples=100)
    )


WAYS = {"t": {"acc": True, "err": False, "words": False}}


def rows(policy, right, *, score="", share=0.0, task="t"):
    right = np.asarray(right, dtype=float)
    return pd.DataFrame({
        "policy": policy, "curve": score, "score": score, "share_asked": share or np.nan, "threshold": np.nan, "task": task,
        "doc_id": np.arange(len(right)), "acc": right, "err": 1 - right, "words": 40 - 8 * right,
        "loglikelihoods": None, "share_off": share,
    })  # fmt: skip


@pytest.fixture
def outcomes():
    """200 questions: 120 right untouched; ahon loses 1, 30, random 40 and 60, of those."""
    question = np.arange(200)
    tables = [rows("baseline", question < 120)]
    for score, losses in (("ahon", (1, 30)), ("random", (40, 60))):
        for share, lost in zip((0.1, 0.2), losses, strict=True):
            right = (question >= lost) & (question < 120)
            tables.append(rows(f"{score}:{share}", right, score=score, share=share))
    return directed(pd.concat(tables, ignore_index=True), WAYS)


def test_a_rise_of_errors_is_judged_as_the_fall_of_their_complement(outcomes):
    right, wrong = (accuracy_table(outcomes, metric=metric, margin=0.05) for metric in ("acc", "err"))
    assert right["within_margin"].tolist()[1:] == ["shown", "refuted", "refuted", "refuted"]
    for name in ("within_margin", "confidence_within", "p_mcnemar", "num_questions"):
        pd.testing.assert_series_equal(wrong[name], right[name])
    for mine, theirs in (("change", "change"), ("change_low", "change_high"), ("change_bound", "change_bound")):
        np.testing.assert_allclose(wrong[mine], -right[theirs])
    assert wrong["change"].iloc[2] == pytest.approx(30 / 200)
    assert wrong["accuracy"].iloc[0] == pytest.approx(80 / 200)


def test_a_metric_of_its_own_unit_is_judged_by_a_bootstrap_the_same_way_round(outcomes):
    # words = 40 − 8 · acc: a rise of 8 for every answer lost.
    fewer = outcomes.assign(fewer=-outcomes["words"])
    fewer = directed(fewer, {"t": WAYS["t"] | {"fewer": True}})
    rise, fall = (accuracy_table(fewer, metric=metric, margin=0.4) for metric in ("words", "fewer"))
    assert rise["within_margin"].tolist()[1:] == fall["within_margin"].tolist()[1:] == [
        "shown", "refuted", "refuted", "refuted",
    ]  # fmt: skip
    np.testing.assert_allclose(rise["change_low"], -fall["change_high"])


@pytest.mark.parametrize("relative", [False, True])
def test_removable_shares_are_those_of_the_complement(outcomes, relative):
    shares = [removable_table(outcomes, metric=metric, margin=0.05, resamples=200) for metric in ("acc", "err")]
    pd.testing.assert_frame_equal(*shares)
    # ahon: 0.005 worse at 0.1 and 0.15 at 0.2: 0.05 worse at 0.1 + 0.1 · 0.045 / 0.145.
    assert shares[1].loc[0, "removable_share"] == pytest.approx(0.1 + 0.1 * 0.045 / 0.145)
    curves = curve_table(curve_points(accuracy_table(outcomes, metric="err"), model="m", task="t"), margin=0.05)
    assert curves["rank"].tolist() == [1, 2]
    assert curves["removable_share"].tolist() == pytest.approx(shares[1]["removable_share"].tolist())
    # Relative to 0.4 of errors, a margin of a quarter is a tenth: 0.1 + 0.1 · 0.095 / 0.145.
    table = removable_table(outcomes, metric="err", margin=0.25, relative=True, resamples=200)
    assert table.loc[0, "removable_share"] == pytest.approx(0.1 + 0.1 * 0.095 / 0.145)


def test_every_table_at_once_and_the_best_score_is_the_same(outcomes):
    tables = [
        all_tables(
            [
                RunTables(
                    model="m",
                    data="t",
                    tasks=["t"],
                    outcomes=outcomes,
                    metric=metric,
                    statistics=Statistics(resamples=100),
                )
            ]
        )
        for metric in ("acc", "err")
    ]
    for right, wrong in [[table[name] for table in tables] for name in ("removable", "by_curve")]:
        columns = [name for name in ("curve", "removable_share", "low", "high", "rank", "best_curve") if name in right]
        pd.testing.assert_frame_equal(right[columns], wrong[columns])
    above = [table["points"]["above_random"].to_numpy() for table in tables]
    np.testing.assert_allclose(*above)


def test_asking_stops_on_the_same_verdict(outcomes):
    right, wrong = (sequential_table(outcomes, total=200, metric=metric, margin=0.1) for metric in ("acc", "err"))
    assert right["verdict"].tolist() == ["within", "beyond", "beyond", "beyond"]
    for name in ("verdict", "decided_after", "num_questions"):
        pd.testing.assert_series_equal(wrong[name], right[name])
    np.testing.assert_allclose(wrong["change"], -right["change"])
    assert (wrong["change_low"] <= wrong["change_high"]).all()
    assert UntilDecided(metric="err", margin=0.1).decided(outcomes, 200) == set(right["policy"])


def test_a_metric_of_which_nobody_says_which_way_is_shown_and_not_judged(outcomes):
    unknown = directed(outcomes, {})
    table = accuracy_table(unknown, metric="err")
    assert table["change"].tolist() == accuracy_table(outcomes, metric="err")["change"].tolist()
    assert table[["within_margin", "confidence_within", "change_bound"]].isna().all(axis=None)
    for judge in (removable_table, lambda *a, **o: sequential_table(*a, total=200, **o)):
        with pytest.raises(InputError, match=r"higher or a lower err is better is not known.*--lower-is-better"):
            judge(unknown, metric="err")
        assert len(judge(unknown, metric="err", higher_is_better=False))
    tables = all_tables([RunTables(model="m", data="t", tasks=["t"], outcomes=unknown, metric="err")])
    assert "accuracy" in tables
    assert "removable" not in tables


def test_names_of_lm_evals_metrics_say_it_for_older_runs(outcomes):
    older = directed(outcomes, {}).rename(columns={"err": "brier_score"})
    assert Metric.of(older, "acc").higher_is_better is True
    assert Metric.of(older, "brier_score").sign == -1
    assert Metric.of(older.assign(perplexity=-3.0), "perplexity").higher_is_better is None  # log-likelihoods there


def test_one_metric_both_ways_in_two_tasks_is_refused(outcomes):
    other = directed(outcomes.assign(task="u"), {"u": {"acc": False}})
    both = pd.concat([outcomes, other], ignore_index=True)
    assert directions_of(both) == WAYS | {"u": {"acc": False}}
    with pytest.raises(
        InputError, match="acc is better the higher in t and the lower in u: look at one task at a time"
    ):
        removable_table(both)
    apart = all_tables([RunTables(model="m", data="d", tasks=["t", "u"], outcomes=both, metric="acc")])["accuracy"]
    assert apart.groupby("task")["higher_is_better"].first().to_dict() == {"t": True, "u": False}


def test_the_main_metric_is_one_that_can_be_judged(outcomes):
    assert main_metric(outcomes) == "acc"
    assert main_metric(directed(outcomes, {"t": {"acc": None, "err": False, "words": None}})) == "err"
    assert main_metric(outcomes.assign(acc=np.nan)) == "err"
    assert main_metric(outcomes.assign(acc=np.inf)) == "err"


def test_what_is_not_finite_is_left_out_counted_and_never_shown_to_be_within(outcomes):
    broken = outcomes.copy()
    broken.loc[(broken["policy"] == "ahon:0.1") & (broken["doc_id"] < 3), "acc"] = [np.nan, np.inf, -np.inf]
    broken.loc[broken["doc_id"] == 199, "acc"] = np.nan  # of no policy: said, and harmless
    table = accuracy_table(broken, margin=0.05).set_index("policy")
    assert table["num_not_finite"].to_dict() == {
        "baseline": 1,
        "ahon:0.1": 4,
        "ahon:0.2": 1,
        "random:0.1": 1,
        "random:0.2": 1,
    }
    assert table.loc["ahon:0.1", "num_questions"] == 196
    assert np.isfinite(table[["accuracy", "change"]]).all(axis=None)
    assert table["within_margin"].tolist()[1:] == ["undecided", "refuted", "refuted", "refuted"]
    console = Console(file=io.StringIO(), width=100)
    print_tables(console, table.reset_index(), table.head(0), Metric.of(broken, "acc"))
    assert "acc has no finite value in up to 4 of 200 questions, untouched in 1" in console.file.getvalue()
    with pytest.raises(InputError, match="question 199 of t has no finite value of it under 'baseline'"):
        sequential_table(broken, total=200)


def test_words_say_which_way_and_in_which_unit(outcomes):
    results = {
        metric: results_of(manifest={"settings": {"metric": metric}}, outcomes=outcomes) for metric in ("err", "words")
    }
    said = {
        metric: " ".join(" ".join([table.title, table.note]) for table in result_tables(Report([run]))[:2])
        for metric, run in results.items()
    }
    assert "Err under each policy" in said["err"]
    assert "err is better when lower, so a rise is what costs" in said["err"]
    assert "the line 1 point above the untouched model" in said["err"]
    assert "words is better when lower" in said["words"]
    assert "the line 0.01 above the untouched model" in said["words"]
    made = {table.id: table for table in result_tables(Report([results["words"]]))}["accuracy"]
    cells = {column.heading: column.cells for column in made.columns}
    assert cells["Words"][:2] == ["35.2", "35.2"]  # 40 − 8 · 0.6, and 0.04 more
    assert not any("%" in cell for cell in cells["Words"])
    assert cells["Change [95%]"][2].startswith("+1.20 [")  # 30 of 200 answers, 8 words each
    floors = {metric: accuracy.data(Report([run]))["floor"] for metric, run in results.items()}
    assert floors == {"err": pytest.approx(41.0), "words": pytest.approx(35.21)}
    options = {"margin": 0.01, "confidence": 0.95}
    run = results["err"]
    sentence = answer(run.removable, metric=run.judged, tasks=["t"], num_questions=200, **options)
    assert "of heads can be off with t err at most 1 point higher by ahon" in sentence
    assert "a rise of 1 point is hard" in " ".join(
        caveats(run.answers.accuracy, run.removable, chance=None, metric=run.judged, **options)
    )


def test_what_tasks_say_is_in_every_row_and_survives_whatever_joins_and_cuts_tables(outcomes, tmp_path):
    """A metric named as one of lm-eval's, which this task turns round: by its name alone it would be judged the wrong way."""
    turned = directed(outcomes.assign(acc=outcomes["err"]), {"t": {"acc": False}})
    elsewhere = directed(outcomes.assign(task="u", acc=outcomes["err"]), {"u": {"acc": False, "err": None}})
    turned.to_csv(tmp_path / "outcomes.csv")
    for table in (
        pd.concat([turned, elsewhere]),
        pd.concat([of_policy for _, of_policy in turned.groupby("policy")]),
        turned.merge(turned[["policy", "doc_id"]]),
        pd.DataFrame(turned.to_dict("records")),
        pd.read_csv(tmp_path / "outcomes.csv"),
    ):
        assert Metric.of(table, "acc").higher_is_better is False
        assert removable_table(table, margin=0.05, resamples=10)["removable_share"][0] < 0.2
    assert directions_of(pd.concat([turned, elsewhere])) == {"t": {"acc": False}, "u": {"acc": False, "err": None}}
    for broken in ("[]", "no", '{"acc": 1}', "[" * 100_000):
        with pytest.raises(ValueError, match=r"Expecting|says no directions|nested"):
            directions_of(turned.assign(higher_is_better=broken))


def page_of(outcomes, metric, **settings):
    run = results_of(manifest={"settings": {"metric": metric, **settings}}, outcomes=outcomes)
    return run, " ".join(text_of(render_page([run])).split())


def test_every_section_of_a_page_is_by_the_metric(outcomes):
    run, said = page_of(outcomes, "err")
    assert "Err as heads are switched off" in said
    assert "Which score keeps err lowest over its whole curve?" in said
    assert "the curve of err against realised share" in said
    assert "last crosses the line 1 point above the untouched model" in said
    assert paper.data(Report([run])) is None
    assert "This run's are of err, which is better when lower: they cannot stand beside those." in said
    run, said = page_of(outcomes, "words")
    assert "last crosses the line 0.01 above the untouched model" in said
    assert "This run's are of words, which is better when lower" in said
    run, said = page_of(outcomes.assign(exact_match=outcomes["acc"]), "exact_match")
    assert "within 1 point of exact_match: Unnamed model on this run's questions" in said
    assert "14 models on MMLU, 5-shot, by accuracy (grey)" in said
    assert "this run's on its own questions, by exact_match" in said
    run, said = page_of(outcomes, "acc")
    assert "Accuracy as heads are switched off" in said
    assert "Which score keeps accuracy highest over its whole curve?" in said
    assert "last crosses the line 1 point below the untouched model" in said
    with pytest.raises(InputError, match="those by err, lower is better cannot stand beside them"):
        plot.paper(outcomes, metric="err")


def test_runs_compared_are_said_to_be_by_their_own_metrics(outcomes):
    runs = [
        results_of(manifest={"model": {"name": metric}, "settings": {"metric": metric}}, outcomes=outcomes)
        for metric in ("err", "words", "acc")
    ]
    assert comparison.data(Report(runs[:1] * 2))["metric"] == "Err, lower is better"
    table = {table.id: table for table in result_tables(Report(runs))}["comparison-removable"]
    assert table.title == "Share of heads that can be off within 1 point or 0.01, run by run"
    assert "By err, lower is better; words, lower is better; accuracy." in table.note
    assert [column.heading for column in table.columns][:2] == ["Run", "Metric"]
    said = " ".join(text_of(render_page(runs)).split())
    assert "Err, lower is better; words, lower is better; accuracy, relative to each untouched model" in said
    spotless = outcomes.assign(err=np.where(outcomes["policy"] == "baseline", 0.0, outcomes["err"]))
    runs[1] = results_of(manifest={"model": {"name": "none"}, "settings": {"metric": "err"}}, outcomes=spotless)
    data = comparison.data(Report(runs))
    assert data["unrelated"] == ["none"]
    assert {line["run"] for lines in data["curves"].values() for line in lines} == {0, 2}
    assert "Not drawn: none." in " ".join(text_of(render_page(runs)).split())


def overview(outcomes, metric):
    console = Console(file=io.StringIO(), width=120)
    tables = all_tables(
        [
            RunTables(
                model="m", data="t", tasks=["t"], outcomes=outcomes, metric=metric, statistics=Statistics(resamples=100)
            )
        ]
    )
    print_overview(console, tables, share=0.1, published=True)
    return " ".join(console.file.getvalue().split())


def test_an_analysis_in_the_terminal_is_by_the_metric(outcomes):
    said = overview(outcomes, "words")
    assert "m, t: within 0.01 of words, lower is better" in said
    assert "where the curve rises above the untouched model by more than that for the last time" in said
    assert "up to where the rise is shown" in said
    assert "Heads that can be off within 0.01, percent" in said
    assert "published" not in said
    assert "a point" not in said
    said = overview(outcomes, "acc")
    assert "m, t: within 1 point" in said
    assert "where the curve falls below the untouched model" in said
    assert "As published, within 1 point of accuracy, percent" in said


def test_verdicts_are_in_the_metrics_own_unit(outcomes):
    shifted = directed(outcomes.assign(grade=3.0 + outcomes["acc"] / 2), {"t": {"grade": True}})
    rule = UntilDecided(metric="grade", margin=0.1)
    facts = {"metric": "grade", "margin": 0.1, "confidence": 0.95, "questions_a_look": 64}
    tables = RunTables(outcomes=shifted, until_decided=rule, num_questions=200)
    run = RunResults(manifest=Manifest.of({"until_decided": facts}), tables=tables)
    table = {table.id: table for table in result_tables(Report([run]))}["decided"]
    cells = {column.heading: column.cells for column in table.columns}
    assert cells["Change"][1] == "−0.0750"  # half of 30 of 200 answers
    assert table.title == "Within 0.1 of the untouched model?"
    console = Console(file=io.StringIO(), width=120)
    print_decided(console, run.decided)
    said = " ".join(console.file.getvalue().split())
    assert "Within 0.1 of the untouched model?" in said
    assert "−0.0750" in said
    assert "Grade as heads are switched off" in " ".join(text_of(render_page([run])).split())
