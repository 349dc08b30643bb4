"""``headcount lm-eval``: lm-eval's own command line, with headcount's model class in it."""

import typer

from headcount.cli.app import app


@app.command(
    "lm-eval",
    add_help_option=False,  # lm-eval's own
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def lm_eval(context: typer.Context) -> None:
    """lm-evaluation-harness with `--model headcount`: `headcount lm-eval run --help` lists its options."""
    from headcount.evaluation.harness import run_lm_eval

    run_lm_eval(context.args)
