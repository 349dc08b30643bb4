"""The commands, each of which has its own file, and what all of them have in common."""

import functools
import inspect
from collections.abc import Callable, Collection
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from typing import Any

import typer

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="How many of your model's attention heads actually work?",
    epilog="Looking at runs runs no code of theirs: docs/security.md says what is trusted and what is not.",
)
_COMMANDS = (
    "analyse", "calibrate", "demo", "evaluate", "export", "fetch", "figures", "lm_eval", "measure", "prune", "published",
    "report", "scores", "select", "status", "study", "thresholds",
)  # fmt: skip
_Command = Callable[..., None]


def grouped(*, without: Collection[str] = ()) -> Callable[[_Command], _Command]:
    """Spell out, for typer, the groups of options (dataclasses) that a command takes, but for options it does not have."""

    def spell(command: _Command) -> _Command:
        groups: dict[str, type] = {}
        spelled: list[inspect.Parameter] = []
        for parameter in inspect.signature(command).parameters.values():
            group = parameter.annotation
            if not is_dataclass(group):
                spelled.append(parameter.replace(kind=parameter.KEYWORD_ONLY))
                continue
            groups[parameter.name] = group  # type: ignore[assignment]  (no instance)
            spelled += [
                inspect.Parameter(
                    option.name, parameter.KEYWORD_ONLY, annotation=option.type,
                    default=parameter.empty if option.default is MISSING else option.default,
                )
                for option in fields(group)
                if option.name not in without
            ]  # fmt: skip

        @functools.wraps(command)
        def run(**given: Any) -> None:
            for name, group in groups.items():
                given[name] = group(
                    **{option.name: given.pop(option.name) for option in fields(group) if option.name in given}
                )
            command(**given)

        run.__signature__ = inspect.Signature(spelled)  # type: ignore[attr-defined]
        return run

    return spell


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"headcount {version('headcount')}")
        raise typer.Exit


@app.callback()
def _main(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    pass


def add_commands() -> None:
    """Import every command, which adds it."""
    for name in _COMMANDS:
        import_module(f"headcount.cli.{name}")
