"""Tables in a terminal: no word is cut, whatever the width."""

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from headcount.whole_table import WholeTable


def printed(table, width):
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


def table(headings, rows, title=None):
    made = WholeTable(box=None, title=title, padding=(0, 2, 0, 0), pad_edge=False)
    for at, heading in enumerate(headings):
        made.add_column(Text(heading), justify="right" if at else "left")
    for row in rows:
        made.add_row(*(Text(cell, no_wrap=at > 0) for at, cell in enumerate(row)))
    return made


def test_a_table_that_fits_is_as_wide_as_its_lines():
    said = printed(table(["Score", "Change [95%]"], [["ahon_ln", "−4.0 [−10.7, +2.4]"]]), 80)
    assert [line.rstrip() for line in said.splitlines()] == [
        "Score          Change [95%]",
        "ahon_ln  −4.0 [−10.7, +2.4]",
    ]


def test_headings_break_between_words_before_columns_go_below():
    said = printed(table(["Score", "Share asked", "n"], [["ahon_ln", "10%", "7"]]), 20)
    assert [line.split() for line in said.splitlines()] == [["Share"], ["Score", "asked", "n"], ["ahon_ln", "10%", "7"]]


def test_columns_without_room_stand_below_with_the_first_one_again():
    said = printed(table(["Model", "a", "b"], [["Llama-3.1-8B", "0.123456", "0.654321"]], title="Cuts"), 26)
    assert [line.split() for line in said.splitlines()] == [
        ["Cuts"], ["Model", "a"], ["Llama-3.1-8B", "0.123456"], [], ["Model", "b"], ["Llama-3.1-8B", "0.654321"],
    ]  # fmt: skip


def test_a_first_column_that_leaves_no_room_is_broken():
    said = printed(table(["Policy", "KL [95%]"], [["x" * 60, "0.1 [0.0, 0.2]"]]), 40)
    assert "0.1 [0.0, 0.2]" in said
    assert max(map(len, said.splitlines())) <= 40
    assert said.count("x") == 60


words = st.text("abc_:@0123456789.%−", min_size=1, max_size=14)


@given(st.lists(st.lists(words, min_size=5, max_size=5), min_size=1, max_size=4), st.integers(40, 100))
def test_every_word_is_whole_and_no_line_too_long(rows, width):
    headings = ["id", "two words", "three", "of four", "five"]
    lines = printed(table(headings, rows), width).splitlines()
    assert max(map(len, lines)) <= width
    assert {word for row in rows for word in row} <= {word for line in lines for word in line.split()}
