"""``headcount evaluate``: a benchmark's accuracy under policies."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headcount.cli import options
from headcount.cli.app import app, grouped
from headcount.cli.console import output, steps
from headcount.errors import InputError

if TYPE_CHECKING:
    from headcount.store import Run
    from headcount.study.subject import Subject


@app.command()
@grouped()
def evaluate(
    task: options.Task = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            "-p",
            help="ID:SHARE (threshold from measured scores), ID@THRESHOLD, random:SHARE, or ID:published:SHARE (the paper's "
            "threshold for this model); repeat for several. ID/token decides for each token; ID+mean, ID+linear, ID+kept and "
            "ID+keep-first say what stands in place of 0, and where.",
        ),
    ] = None,
    output_folder: options.Output = None,
    thresholds_from: Annotated[
        Path | None,
        options.path_option(
            "--thresholds-from", help="Run whose scores give the thresholds. [default: these questions' own]"
        ),
    ] = None,
    published_model: Annotated[
        str | None, typer.Option(help="Hub id whose published thresholds to use. [default: MODEL]")
    ] = None,
    exclude_layer: Annotated[
        list[int] | None, typer.Option(help="Layer never touched, counted from 0; repeat.")
    ] = None,
    pruned: Annotated[
        list[Path] | None,
        options.path_option(
            "--pruned", help="Folder of a checkpoint that `headcount prune` made from MODEL, to ask as well; repeat."
        ),
    ] = None,
    unit: options.Unit = None,
    scores_from: options.ScoresFrom = None,
    calibration: options.Calibration = None,
    *,
    judging: options.Judging,
    stopping: options.Stopping,
    questions: options.Questions,
    loading: options.Loading,
    batch_tokens: options.BatchTokens = None,
    seed: options.Seed = 0,
) -> None:
    """Switch inactive heads (or neurons) off, anew for each input, while a benchmark runs, and compare with none off."""
    from headcount.resolving import read_policy

    if not task:
        raise InputError("Say which benchmark to run: --task NAME, such as arc_easy or mmlu.")
    excluded = frozenset(exclude_layer or ())
    policies = [
        read_policy(text, exclude_layers=excluded, seed=seed, model=published_model or loading.model)
        for text in policy or ()
    ]
    asked, read = stopping.asked(judging), []
    with steps() as progress:
        from headcount.cli.runs import command_line, default_folder, keep_offline, say_template

        keep_offline(questions.offline)
        from headcount.study.evaluating import evaluate_run

        folder = output_folder or default_folder(loading.model, task)

        def prepared(subject: "Subject") -> None:
            read.append(subject.benchmark)
            say_template(subject, questions.chat_template)
            progress.keep_in(folder, output_folder)

        run = evaluate_run(
            folder, loading.spec(calibration), task, policies, **vars(questions), **asked, batch_tokens=batch_tokens, seed=seed,
            exclude_layers=excluded, thresholds_from=thresholds_from, pruned=pruned or (), unit=unit,
            announce=progress.start, prepared=prepared, command=command_line(),
        )  # fmt: skip
    print_results(run, judging.metric, judging.higher_is_better)
    if num_truncated := read[0].num_truncated:
        output.print(
            f"{num_truncated} inputs were longer than the model's positions: their starts were cut off, as in lm-eval."
        )


def print_results(run: "Run", metric: str | None = None, higher_is_better: bool | None = None) -> None:
    """The tables, where the run is, and what it lacks."""
    from headcount.cli.runs import say_whats_left
    from headcount.report import print_decided, print_divergence, print_tables
    from headcount.study.analysing import read_tables
    from headcount.units import KINDS

    tables = read_tables(run, metric=metric, higher_is_better=higher_is_better)
    units = KINDS[run.manifest.unit].short
    answers, decided = tables.answers, tables.decided
    try:
        if decided is not None:
            print_decided(output, decided, units=units)
        elif answers is not None and answers.metric is None:  # perplexity is one number of all texts together
            print_divergence(output, answers.divergence, title=f"How far answers move with {units} off")
        elif answers is not None:
            print_tables(output, answers.accuracy, answers.removable, answers.judged, units=units)
    finally:  # an unknown metric must not hide where hours of work are
        output.print()
        output.say(f"Run:  {run.path}")
        say_whats_left([run])
