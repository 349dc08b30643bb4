"""``headcount demo``: the whole pipeline on the embedded model and benchmark."""

import time
from typing import Annotated

import typer

from headcount.cli import options
from headcount.cli.app import app
from headcount.cli.console import output, steps

TASK = "arc_easy"
SCORES = ("ahon_ln", "awft", "random")
SHARES = (0.05, 0.10, 0.20, 0.30)


@app.command()
def demo(
    output_folder: options.Output = None,
    limit: Annotated[int, typer.Option(min=2, help="Questions of ARC-Easy.")] = 150,
    seed: options.Seed = 0,
) -> None:
    """Measure the demo model on ARC-Easy, zero its inactive heads, and show what that costs. A few minutes."""
    start = time.monotonic()
    with steps() as progress:
        from headcount.cli.evaluate import print_results
        from headcount.cli.report import write_report
        from headcount.cli.runs import command_line, default_folder, keep_offline

        keep_offline(True)
        from headcount.resolving import policy_at
        from headcount.scores import all_scores
        from headcount.study.asking import Asking
        from headcount.study.cuts import find_thresholds
        from headcount.study.evaluating import ask, begun
        from headcount.study.spec import ModelSpec, Tasks
        from headcount.study.stages import measure_inputs
        from headcount.study.subject import load_model, read_data
        from headcount.study.units import LocalEngine
        from headcount.thresholding import SHARES as ALL_SHARES

        loaded, data = load_model(ModelSpec(model="demo"), announce=progress.start), Tasks(tasks=(TASK,), limit=limit)
        subject = read_data(loaded, data, chat_template=False, offline=True, seed=seed, announce=progress.start)
        folder, facts = output_folder or default_folder("demo", [TASK]), subject.facts()
        progress.keep_in(folder, output_folder)
        policies = tuple(policy_at(score, share, seed=seed) for score in SCORES for share in SHARES)
        with begun(folder, facts, seed=seed, command=command_line()) as run:
            scores = [score.id for score in all_scores()]
            measure_inputs(run, LocalEngine(subject), scores, num_inputs=facts.num_inputs, announce=progress.start)
            find_thresholds(run, ALL_SHARES)
            ask(run, subject, Asking(policies=policies), progress.start)
        page = write_report([run])
    model = run.manifest.model
    output.print(
        f"\n{model.name}: {model.num_heads} heads in {len(model.layers)} layers, {model.dtype}. "
        f"{facts.num_questions} questions of {TASK} ({', '.join(set(facts.data['sources'].values()))}), without the "
        f"chat template, {time.monotonic() - start:.0f} s.\n"
    )
    print_results(run)
    output.say(f"Page: {page}")
