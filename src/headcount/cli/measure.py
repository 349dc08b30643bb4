"""``headcount measure``: every score of every head, or other unit, on a benchmark's questions or on texts."""

from typing import TYPE_CHECKING, Annotated

import typer

from headcount.cli import options
from headcount.cli.app import app, grouped
from headcount.cli.console import output, steps
from headcount.errors import InputError

if TYPE_CHECKING:
    from headcount.study.subject import Subject


@app.command()
@grouped()
def measure(
    task: options.Task = None,
    texts: options.Texts = None,
    output_folder: options.Output = None,
    score: Annotated[
        list[str] | None,
        typer.Option(help="Score to measure, ID, or ID/token of every token; repeat for several. [default: all]"),
    ] = None,
    unit: options.Unit = None,
    scores_from: options.ScoresFrom = None,
    text_column: options.TextColumn = "text",
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Keep this many first tokens of each text.", rich_help_panel="Data")
    ] = None,
    too_long: options.TooLong = "refuse",
    *,
    questions: options.Questions,
    loading: options.Loading,
    batch_tokens: options.BatchTokens = None,
    seed: options.Seed = 0,
    calibration: options.Calibration = None,
    scores_dtype: Annotated[
        str, typer.Option(help="float32, or float16 for half the disk.", rich_help_panel="What is kept")
    ] = "float32",
    summaries: Annotated[
        bool,
        typer.Option(
            "--summaries",
            help="Keep counts and moments of the scores instead of every score, for corpora of any size; of neurons always.",
            rich_help_panel="What is kept",
        ),
    ] = False,
) -> None:
    """Measure every attention head, or MLP neuron, while the model reads a benchmark's questions, or texts."""
    if bool(task) == bool(texts):
        raise InputError("Say what the model should read: either --task NAME or --texts FILE, not both.")
    from headcount.store.scores import DTYPES

    if scores_dtype not in DTYPES:
        raise InputError(f"Unknown --scores-dtype {scores_dtype!r}. Use {' or '.join(DTYPES)}.")
    with steps() as progress:
        from headcount.cli.runs import command_line, default_folder, keep_offline, say_template

        keep_offline(questions.offline)
        from headcount.study.evaluating import measure_run
        from headcount.study.given import named_texts
        from headcount.thresholding import not_finite, said_not_finite
        from headcount.units import KINDS

        data = texts and named_texts(
            texts, text_column=text_column, limit=questions.limit, max_length=max_length, too_long=too_long
        )
        folder = output_folder or default_folder(loading.model, task or texts or [])

        def prepared(subject: "Subject") -> None:
            say_template(subject, questions.chat_template)
            progress.keep_in(folder, output_folder)

        run = measure_run(
            folder, loading.spec(calibration), task or (), texts=data or (), scores=score or "all", **vars(questions),
            batch_tokens=batch_tokens, seed=seed, scores_dtype=scores_dtype, summaries=summaries, unit=unit,
            announce=progress.start, prepared=prepared, command=command_line(),
        )  # fmt: skip
    measured, num_inputs = run.measurements(), run.manifest.data.num_inputs
    left_out, num_scores = {} if measured is None else not_finite(measured), len(run.scores_measured() or ())
    scores = f"{num_scores} score{'s' * (num_scores != 1)}"
    inputs = f"{num_inputs} input{'s' * (num_inputs != 1)}"
    kind, units = KINDS[run.manifest.unit], run.manifest.units
    assert units is not None
    output.print(f"Measured {scores} of {units.num_units:,} {kind.plural} on {inputs}.", highlight=False)
    for name, facts in left_out.items():
        output.print(said_not_finite(name, facts), highlight=False, soft_wrap=True, markup=False)
    output.say(f"Run: {run.path}")
