"""Progress without a terminal, under a clock of the test's own."""

import time

import pytest

from headcount.cli.console import steps
from headcount.cli.lines import Lines


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def said():
    return []


@pytest.fixture
def lines(clock, said):
    return Lines(said.append, clock)


def test_a_short_step_says_nothing(lines, clock, said):
    update = lines.start("Loading the model")
    for clock.now in (1, 2, 4.9):
        lines.tick()
    update(1, 1)
    for clock.now in (5, 50):
        lines.tick()
    assert said == []


def test_long_work_says_what_it_does_how_far_it_is_and_how_long_still(lines, clock, said):
    update = lines.start("Measuring 16 scores")
    for clock.now in range(1, 121):
        if clock.now % 10 == 0:
            update(clock.now * 2, 1000)
        lines.tick()
    # Of (now − 10) s since the first report came (2 · now − 20) more: two a second.
    assert said == [
        "Measuring 16 scores: 5 s so far",
        "Measuring 16 scores: 60 of 1,000, 30 s so far, about 8 min left",  # 940 / 2 = 470 s
        "Measuring 16 scores: 100 of 1,000, 55 s so far, about 8 min left",
        "Measuring 16 scores: 160 of 1,000, 80 s so far, about 7 min left",
        "Measuring 16 scores: 200 of 1,000, 105 s so far, about 7 min left",
    ]


def test_what_was_done_before_does_not_count_as_fast(lines, clock, said):
    update = lines.start("Asking under 2 policies")
    update(900, 1000)
    clock.now = 10
    update(901, 1000)
    assert said == ["Asking under 2 policies: 901 of 1,000, 10 s so far, about 16 min left"]  # 99 · 10 s


def test_the_step_that_runs_is_told_and_a_new_one_soon(lines, clock, said):
    lines.start("Loading the model")
    clock.now = 6
    lines.tick()
    update = lines.start("Measuring 16 scores")
    for clock.now in (7, 10, 11, 20, 35, 36):
        lines.tick()
    update(1, 1)
    clock.now = 61
    lines.tick()
    assert said == [
        "Loading the model: 6 s so far",
        "Measuring 16 scores: 5 s so far",
        "Measuring 16 scores: 30 s so far",
        "Loading the model: 61 s so far",
    ]


def test_hours(lines, clock, said):
    update = lines.start("Asking")
    update(0, 10)
    clock.now = 4 * 3600
    update(1, 10)
    assert said == ["Asking: 1 of 10, 4 h so far, about 36 h left"]


def test_lines_come_while_nothing_reports(lines, clock, said):
    lines.start("Loading the model")
    clock.now = 30
    with lines.ticking(seconds=0.001):
        while not said:
            time.sleep(0.001)
    assert said == ["Loading the model: 30 s so far"]


def test_commands_say_lines_where_there_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr("headcount.cli.lines.FIRST", 0.0)
    with steps() as progress:
        progress.start("Looking [up] the tasks", 2)(1, 2)
    assert "Looking [up] the tasks: 1 of 2, 0 s so far\n" in capsys.readouterr().err
