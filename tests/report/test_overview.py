import io

import pandas as pd
import pytest
from rich.console import Console

from headcount.report.overview import print_overview
from headcount.report.tables import nearest_share

REMOVABLE = pd.DataFrame({
    "model": "lab/model", "task": "arc_easy", "curve": ["awft", "ahon_ln", "random"],
    "removable_share": [0.1, 0.24, 0.01], "is_lower_bound": [False, True, False],
    "low": [0.05, 0.1, 0.0], "high": [0.2, 0.24, 0.02], "share_shown": [0.05, 0.2, 0.0],
    "largest_share_measured": [0.3, 0.24, 0.3],
    "removable_share_relative": [0.08, 0.24, 0.005], "is_lower_bound_relative": [False, True, False], "rank": [2.0, 1.0, 3.0],
})  # fmt: skip
BY_SCORE = pd.DataFrame({
    "model": ["lab/model"], "task": ["arc_easy"], "awft": [0.1], "ahon_ln": [0.24], "random": [0.01],
    "best_curve": ["ahon_ln"], "best": [0.24], "lower_bounds": ["ahon_ln"],
})  # fmt: skip
RANKS = pd.DataFrame({
    "model": ["Q (published)", "R (published)"], "task": "mmlu", "other_model": ["lab/model", "Q (published)"],
    "other_task": ["arc_easy", "mmlu"], "rank_correlation": [-0.5, 0.9], "top_5_overlap": [0.25, 0.67],
})  # fmt: skip
INACTIVE = pd.DataFrame({
    "model": "lab/model", "data": "arc_easy", "score": ["awft", "awft"], "share": [0.05, 0.1], "heads": 12,
    "always": [0, 3], "sometimes": [1, 2], "never": [11, 7], "mean_inactive": [0.5, 4.0],
    "groups": 4, "groups_always": [0, 1], "groups_sometimes": [0, 0], "groups_never": [4, 3], "groups_mean_inactive": [0.0, 1.0],
})  # fmt: skip
AGREEMENT = pd.DataFrame({
    "model": "lab/model", "data": "arc_easy", "share": 0.1, "score": ["awft", "ahon"], "other": ["ahon", "awft"],
    "iou": 0.58, "precision": [0.7, 0.73], "iou_per_input": 0.5, "precision_per_input": 0.6,
})  # fmt: skip
THRESHOLDS = pd.DataFrame({
    "model": "lab/model", "score": ["awft", "awft", "ahon_ln", "ahon_ln"], "share": 0.1, "spread": [1.25, 1.25, 0.08, 0.08],
    "data": ["mmlu", "piqa"] * 2, "threshold": [0.077, 0.265, 0.457, 0.435],
})  # fmt: skip


@pytest.fixture
def lines():
    """Prints at 80 columns; gives the lines, with single spaces."""

    def lines(tables, **options):
        console = Console(file=io.StringIO(), width=80, color_system=None)
        print_overview(console, tables, **({"share": 0.1} | options))
        assert isinstance(console.file, io.StringIO)
        return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]

    return lines


def test_removable_shares_the_largest_first(lines):
    printed = lines({"removable": REMOVABLE, "by_curve": BY_SCORE})
    assert printed[0] == "lab/model, arc_easy: within 1 point"
    assert printed[2:5] == [
        "ahon_ln ≥ 24.0% [10.0, ≥ 24.0] 20.0% ≥ 24.0% 1",
        "awft 10.0% [5.0, 20.0] 5.0% 8.0% 2",
        "random 1.0% [0.0, 2.0] 0.0% 0.5% 3",
    ]
    assert "lab/model 10.0 ≥ 24.0 ahon_ln ≥ 24.0 1.0" in printed


def test_published_models_stand_below_ones_own(lines):
    printed = lines({"removable": REMOVABLE, "by_curve": BY_SCORE}, published=True)
    assert printed[-1] == "mean 4.61 12.18 11.03 8.34 1.18"


def test_ranks_of_ones_own_and_of_published_models(lines):
    printed = lines({"removable": REMOVABLE, "by_curve": BY_SCORE, "ranks": RANKS})
    assert "these and published (1) −0.50 (−0.50 to −0.50) 0.25 (0.25 to 0.25)" in printed
    assert "among published (1) 0.90 (0.90 to 0.90) 0.67 (0.67 to 0.67)" in printed
    assert not any(line.startswith("among these") for line in printed)


def test_heads_and_groups_at_the_nearest_share(lines):
    assert "awft 3 2 7 1 / 0 / 3 1.0" in lines({"inactive": INACTIVE})
    assert "awft 0 1 11 0 / 0 / 4 0.0" in lines({"inactive": INACTIVE}, share=0.01)
    one_head_a_group = lines({"inactive": INACTIVE.assign(groups=12)})
    assert "awft 3 2 7" in one_head_a_group


def test_agreement_and_thresholds(lines):
    printed = lines({"agreement": AGREEMENT, "thresholds": THRESHOLDS})
    assert "ahon, awft 0.58 0.50 0.73" in printed
    assert [line for line in printed if line.startswith(("awft ", "ahon_ln "))] == [
        "ahon_ln 0.457 0.435 8%", "awft 0.077 0.265 125%",
    ]  # fmt: skip


def test_names_from_strangers_are_text(lines):
    odd = REMOVABLE.assign(model="[red]x[/red]\x1b[31m", curve="[b]s[/b]")
    printed = lines({"removable": odd, "by_curve": BY_SCORE.assign(model="[red]x[/red]")})
    assert printed[0].startswith("[red]x[/red]")
    assert not any("\x1b" in line for line in printed)
    assert any(line.startswith("[b]s[/b]") for line in printed)


def test_of_two_shares_as_near_the_larger_is_shown():
    assert nearest_share([0.0, 0.2], 0.1) == 0.2
    assert nearest_share([0.0, 0.1, 0.2], 0.1) == 0.1
    assert nearest_share([0.0, 0.05, 0.3], 0.1) == 0.05
