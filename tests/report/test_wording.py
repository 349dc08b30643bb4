import pandas as pd
import pytest

from headcount.report.wording import answer, caveats

COLUMNS = ["score", "removable_share", "is_lower_bound", "low", "high", "share_shown", "largest_share_measured"]
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
            "17% of heads can be zeroed within 1 point of arc_easy accuracy by ahon_ln (95% interval 12–21%).",
        ),
        (
            [RANDOM, AHON],
            "17% of heads can be zeroed within 1 point of arc_easy accuracy by ahon_ln (95% interval 12–21%); "
            "random heads: 1.2%.",
        ),
        (
            [BOUND],
            "At least 24% of heads can be zeroed within 1 point of arc_easy accuracy by ahon_ln "
            "(95% interval 18% or more).",
        ),
        (
            [OPEN],
            "17% of heads can be zeroed within 1 point of arc_easy accuracy by ahon_ln "
            "(95% interval 12% to at least 30%).",
        ),
        ([RANDOM_BOUND], "At least 30% of heads, chosen at random, can be zeroed within 1 point of arc_easy accuracy."),
    ],
)
def test_answer(rows, expected):
    table = pd.DataFrame(rows, columns=COLUMNS)
    assert answer(table, metric="acc", margin=0.01, tasks=["arc_easy"], confidence=0.95) == expected


@pytest.mark.parametrize(
    ("questions", "chance", "scores", "expected"),
    [
        (20_000, 0.25, [AHON, RANDOM], []),  # 1.96 · √(0.26 · 0.74 / 20000) = 0.6 points, below the 1 of the distance
        (20_000, 0.255, [AHON], ["Near chance"]),
        (200, None, [AHON], ["Few questions"]),  # 1.96 · √(0.26 · 0.74 / 200) = 6.1 points
        (20_000, None, [AHON, AHON], ["best of 2 scores"]),
        (20_000, None, [OPEN], ["ahon_ln is shown to stay within 1 point only up to 5.0% of heads"]),
    ],
)
def test_caveats(questions, chance, scores, expected):
    accuracy = pd.DataFrame({"accuracy": [0.26], "num_questions": [questions]})
    removable = pd.DataFrame(scores, columns=COLUMNS)
    said = caveats(accuracy, removable, margin=0.01, confidence=0.95, chance=chance)
    assert len(said) == len(expected)
    assert all(part in text for part, text in zip(expected, said, strict=True))
    assert "±6.1 points" in said[0] if questions == 200 else True
