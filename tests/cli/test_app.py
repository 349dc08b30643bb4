"""Groups of options, which commands take as one."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from headcount.cli.app import grouped


@dataclass(frozen=True, kw_only=True)
class Place:
    city: Annotated[str, typer.Argument()]
    street: Annotated[str, typer.Option(help="Of the house.")] = "High"
    floors: Annotated[list[int] | None, typer.Option("--floor")] = None


@pytest.fixture
def call():
    """Runs a command that takes a group between two options of its own; gives its exit code and what it was given."""

    def call(*arguments, without=()):
        app, given = typer.Typer(), []

        @app.command()
        @grouped(without=without)
        def command(
            first: Annotated[int, typer.Option()] = 1, *, place: Place, last: Annotated[bool, typer.Option()] = False
        ) -> None:
            """Of a place."""
            given.append((first, place, last))

        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "100", "TERMINAL_WIDTH": "100"})
        return result.exit_code, given or result.output

    return call


def test_a_group_arrives_whole(call):
    assert call("Bern") == (0, [(1, Place(city="Bern"), False)])
    options = ("--last", "--floor", "2", "--street", "Low", "Bern", "--floor", "3", "--first", "7")
    assert call(*options) == (0, [(7, Place(city="Bern", street="Low", floors=[2, 3]), True)])


def test_its_options_are_shown_where_it_stands(call):
    code, shown = call("--help")
    assert code == 0
    places = [
        shown.index(text) for text in ("Of a place.", "--first", "--street", "Of the house.", "--floor", "--last")
    ]
    assert places == sorted(places)


def test_an_option_left_out_keeps_its_default(call):
    assert call("Bern", without=["street"]) == (0, [(1, Place(city="Bern"), False)])
    assert call("Bern", "--street", "Low", without=["street"])[0] == 2
    assert call()[0] == 2  # an argument without a default is asked for
