import io

import pandas as pd
from rich.console import Console

from headcount.report import print_tables

NAN = float("nan")
ACCURACY = pd.DataFrame(
    [
        ("baseline", "", NAN, 0.0, 200, 0.52, 0.0, NAN, NAN, NAN),
        ("lthon_ln:0.10", "lthon_ln", 0.10, 0.1234, 200, 0.505, -0.015, -0.04, 0.01, 0.5),
        ("awft@0.8[b]", "awft", NAN, 0.2, 200, 0.5, -0.02, -0.05, 0.0, 0.5),
        ("fixed", "", NAN, 0.05, 200, 0.52, 0.0, 0.0, 0.0, 1.0),
    ],
    columns=[
        "policy", "curve", "share_asked", "share_realised", "num_questions", "accuracy", "change", "change_low",
        "change_high", "p_mcnemar",
    ],
).assign(within_margin="undecided")  # fmt: skip
REMOVABLE = pd.DataFrame(
    [("lthon_ln", 0.123, False, 0.081, 0.17, 0.3), ("awft", 0.241, True, 0.2, 0.241, 0.241)],
    columns=["curve", "removable_share", "is_lower_bound", "low", "high", "largest_share_measured"],
).assign(share_shown=0.0)


def printed(accuracy, removable):
    console = Console(file=io.StringIO(), width=80)
    print_tables(console, accuracy, removable)
    return console.file.getvalue()


def test_both_tables_at_80_columns():
    lines = printed(ACCURACY, REMOVABLE).splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines]
    assert ["lthon_ln", "10%", "12.3%", "50.5%", "−1.5", "[−4.0,", "+1.0]"] in rows
    assert ["baseline", "–", "0.0%", "52.0%", "–"] in rows
    assert ["awft@0.8[b]", "–", "20.0%", "50.0%", "−2.0", "[−5.0,", "0.0]"] in rows
    assert ["fixed", "–", "5.0%", "52.0%", "0.0", "[0.0,", "0.0]"] in rows
    assert ["lthon_ln", "12.3%", "[8.1,", "17.0]", "30.0%"] in rows
    assert ["awft", "≥", "24.1%", "[20.0,", "≥", "24.1]", "24.1%"] in rows


def test_names_from_strangers_cannot_steer_the_terminal():
    hostile = "\x1b[2J\x1b]0;title\x07\u202eevil"
    out = printed(ACCURACY.assign(policy=hostile, curve=hostile), REMOVABLE.assign(curve=hostile))
    assert not set(out) & {"\x1b", "\x07", "\u202e"}


def test_nothing_to_remove_prints_one_table():
    assert "Removable" not in printed(ACCURACY.head(1), REMOVABLE.head(0))
