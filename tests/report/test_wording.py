import pandas as pd
import pytest

from headcount.report.wording import answer, caveats, proof

COLUMNS = ["curve", "removable_share", "is_lower_bound", "low", "high", "share_shown", "largest_share_measured"]
AHON = ("ahon_ln", 0.17, False, 0.12, 0.21, 0.17, 0.3)
BOUND = ("ahon_ln", 0.24, True, 0.18, 0.24, 0.24, 0.24)
OPEN = ("ahon_ln", 0.17, False, 0.12, 0.30, 0.05, 0.3)
RANDOM = ("random", 0.012, False, 0.005, 0.02, 0.0, 0.3)
RANDOM_BOUND = ("random", 0.3, True, 0.1, 0.3, 0.3, 0.3)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            [AHON],
            "17% of heads can be off within 1 point of arc_easy accuracy by ahon_ln (95% interval 12–21%).",
        ),
        (
            [RANDOM, AHON],
            "17% of heads can be off within 1 point of arc_easy accuracy by ahon_ln (95% interval 12–21%); "
            "random heads: 1.2%.",
        ),
        (
            [BOUND],
            "At least 24% of heads can be off within 1 point of arc_easy accuracy by ahon_ln "
            "(95% interval 18% or more).",
        ),
        (
            [OPEN],
            "17% of heads can be off within 1 point of arc_easy accuracy by ahon_ln "
            "(95% interval 12% to at least 30%).",
        ),
        ([RANDOM_BOUND], "At least 30% of heads, chosen at random, can be off within 1 point of arc_easy accuracy."),
    ],
)
def test_answer(rows, expected):
    table = pd.DataFrame(rows, columns=COLUMNS)
    assert _answer(table, 500) == expected


def _answer(table, questions):
    return answer(table, metric="acc", margin=0.01, tasks=["arc_easy"], confidence=0.95, num_questions=questions)


@pytest.mark.parametrize(
    ("rows", "questions", "literally"),
    [
        ([AHON, RANDOM], 99, "99 questions are too few to say how many heads can be off within 1 point of arc_easy accuracy: "
                             "one answer is worth 1.01 points. Taken literally, 17% of heads can be off by ahon_ln "
                             "(95% interval 12–21%); random heads: 1.2%."),
        ([RANDOM_BOUND], 1, "One question is too few to say how many heads can be off within 1 point of arc_easy accuracy: "
                            "one answer is worth 100 points. Taken literally, at least 30% of heads, chosen at random, can be "
                            "off."),
    ],
)  # fmt: skip
def test_fewer_questions_than_points_are_said_first(rows, questions, literally):
    assert _answer(pd.DataFrame(rows, columns=COLUMNS), questions) == literally
    assert proof(pd.DataFrame(rows, columns=COLUMNS), num_questions=questions, margin=0.01, confidence=0.95) == ""


@pytest.mark.parametrize(
    ("questions", "chance", "scores", "expected"),
    [
        (20_000, 0.25, [AHON, RANDOM], []),  # scipy's Wilson interval: 25.4 to 26.6%, above chance and 1.2 points wide
        (20_000, 0.255, [AHON], ["Near chance"]),
        (200, None, [AHON], ["Few questions: from 200 the untouched model's own accuracy is known only to lie between "
                             "20.4% and 32.5%"]),  # scipy.stats.binomtest(52, 200).proportion_ci(method="wilson")
        (20_000, None, [AHON, AHON], ["best of 2 scores"]),
        (20_000, None, [AHON, RANDOM_BOUND], ["No better than chance: with random heads the share is 30%"]),
    ],
)  # fmt: skip
def test_caveats(questions, chance, scores, expected):
    said = _caveats(0.26, questions, scores, chance)
    assert len(said) == len(expected)
    assert all(part in text for part, text in zip(expected, said, strict=True))


def _caveats(accuracy, questions, scores=(AHON,), chance=None):
    table = pd.DataFrame({"curve": [""], "accuracy": [accuracy], "num_questions": [questions]})
    removable = pd.DataFrame(scores, columns=COLUMNS)
    return caveats(table, removable, margin=0.01, confidence=0.95, chance=chance)


def test_five_right_answers_are_not_certainty():
    # scipy's Wilson intervals of 5 of 5 and 0 of 5.
    assert "between 56.6% and 100.0%" in _caveats(1.0, 5)[0]
    assert "between 0.0% and 43.4%" in _caveats(0.0, 5, chance=0.25)[0]
    assert "Near chance" in _caveats(0.0, 5, chance=0.25)[1]
    assert _caveats(17.3, 5) == []  # a perplexity, say


def test_a_curve_that_dips_on_its_way_is_said():
    accuracy = pd.DataFrame(
        [("", 0.0, 0.5, 0.0), ("ahon_ln", 0.05, 0.48, -0.02), ("ahon_ln", 0.1, 0.453, -0.047), ("ahon_ln", 0.2, 0.4, -0.1),
         ("awft", 0.1, 0.3, -0.2)],
        columns=["curve", "share_realised", "accuracy", "change"],
    ).assign(num_questions=20_000)  # fmt: skip
    said = caveats(accuracy, pd.DataFrame([AHON], columns=COLUMNS), margin=0.01, confidence=0.95, chance=None)
    assert len(said) == 1
    # Shares beyond the removable one, 17%, and other scores do not count.
    assert said[0].startswith("Not at every smaller share: with 10.0% of heads off by ahon_ln, accuracy was 4.7 points")


@pytest.mark.parametrize(
    ("row", "questions", "expected"),
    [
        (AHON, 5000, ""),  # all of it is shown
        (OPEN, 5000, "These 5,000 questions show it, with 95% confidence, only up to 5.0% of heads."),
        (
            (*AHON[:5], 0.0, 0.3),
            150,
            "These 150 questions do not show it with 95% confidence even at the smallest share tried.",
        ),
        (RANDOM, 150, ""),  # there is no best score to prove anything of
    ],
)
def test_proof(row, questions, expected):
    table = pd.DataFrame([row], columns=COLUMNS)
    assert proof(table, num_questions=questions, margin=0.01, confidence=0.95) == expected
