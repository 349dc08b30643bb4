"""The command line: one file a command, each of which parses, calls the library and prints."""

import errno
import logging
import sys
import warnings

import typer
from rich.text import Text

from headcount.cli.console import PlainRecord, errors, show_warning
from headcount.errors import HeadcountError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="How many of your model's attention heads actually work?",
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


def main() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 2."""
    from headcount.cli import (  # noqa: F401  (each adds its command)
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

    warnings.showwarning = show_warning
    logging.setLogRecordFactory(PlainRecord)
    try:
        app()
    except HeadcountError as error:
        _stop(str(error))
    except OSError as error:
        if error.errno not in _USERS or error.filename is None:
            raise
        _stop(f"{str(error.filename)!r} cannot be used: {error.strerror}. Choose another file or folder.")
    except KeyboardInterrupt:
        errors.print("Stopped.")
        sys.exit(130)


#: Failures of files that a user can do something about.
_USERS = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENOTDIR, errno.EISDIR)


def _stop(why: str) -> None:
    errors.say(" ".join(why.split()), heading=Text("Error: ", style="bold red"))
    sys.exit(2)
