"""The commands, each of which has its own file, and what all of them have in common."""

import typer

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="How many of your model's attention heads actually work?",
    epilog="Looking at runs runs no code of theirs: docs/security.md says what is trusted and what is not.",
)


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
    from headcount.cli import (  # noqa: F401
        analyse,
        demo,
        evaluate,
        export,
        figures,
        measure,
        prune,
        published,
        report,
        scores,
        select,
        status,
        study,
        thresholds,
    )
