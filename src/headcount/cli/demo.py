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
        from headcount.cli.evaluate import evaluate_into, print_results
        from headcount.cli.report import write_report
        from headcount.cli.runs import command_line, default_folder, load_model, read_data, run_settings
        from headcount.policies import parse_policy
        from headcount.scores import all_scores
        from headcount.store import begin_run
        from headcount.study.cuts import find_thresholds
        from headcount.study.spec import Tasks
        from headcount.study.stages import measure_run
        from headcount.study.units import LocalEngine
        from headcount.thresholding import SHARES as ALL_SHARES

        loaded = load_model("demo", progress, offline=True)
        subject = read_data(
            loaded, Tasks(tasks=(TASK,), limit=limit), progress, chat_template=False, offline=True, seed=seed,
        )  # fmt: skip
        folder, facts = output_folder or default_folder("demo", [TASK]), subject.facts()
        progress.keep_in(folder, output_folder)
        ids = [score.id for score in all_scores()]
        with begin_run(
            folder, model=facts.model, data=facts.data, settings=run_settings(folder, facts, seed=seed), command=command_line()
        ) as run:  # fmt: skip
            measure_run(
                run, LocalEngine(subject), num_inputs=facts.num_inputs, scores=ids, seed=seed,
                progress=progress.start(f"Measuring {len(ids)} scores", facts.num_inputs),
            )  # fmt: skip
            find_thresholds(run, ALL_SHARES)
            requests = [parse_policy(f"{score}:{share}", seed=seed) for score in SCORES for share in SHARES]
            evaluate_into(run, subject, requests, progress, seed=seed)
        page = write_report([run])
    model = run.manifest.model
    output.print(
        f"\n{model.name}: {model.num_heads} heads in {len(model.layers)} layers, {model.dtype}. "
        f"{facts.num_questions} questions of {TASK} ({', '.join(set(facts.data['sources'].values()))}), without the "
        f"chat template, {time.monotonic() - start:.0f} s.\n"
    )
    print_results(run)
    output.say(f"Page: {page}")
