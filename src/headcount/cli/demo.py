"""``headcount demo``: the whole pipeline on the embedded model and benchmark."""

import time
from typing import Annotated

import typer

from headcount.cli import app, options
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
        from headcount.cli.evaluate import evaluate_into, print_results, resolve_policies
        from headcount.cli.measure import measure_into
        from headcount.cli.report import write_report
        from headcount.cli.runs import (
            benchmark_facts,
            default_folder,
            load_model,
            model_facts,
            open_or_create,
            prepare_benchmark,
        )
        from headcount.policies import parse_policy
        from headcount.scores import all_scores
        from headcount.thresholding import SHARES as ALL_SHARES
        from headcount.thresholding import thresholds

        loaded = load_model("demo", progress, offline=True)
        benchmark = prepare_benchmark(
            loaded, [TASK], progress, chat_template=False, offline=True, limit=limit, seed=seed
        )
        facts = {"model": model_facts(loaded), "data": benchmark_facts(benchmark, [TASK]), "settings": {"seed": seed}}
        run = open_or_create(output_folder or default_folder("demo", [TASK]), facts)
        ids = [score.id for score in all_scores()]
        measure_into(
            run, loaded.model, benchmark.inputs(), ids, progress, batch_tokens=benchmark.lm.batch_tokens, seed=seed
        )
        scores = run.scores()
        assert scores is not None
        run.set_thresholds(thresholds(scores, ALL_SHARES))
        requests = [parse_policy(f"{score}:{share}") for score in SCORES for share in SHARES]
        policies = resolve_policies(requests, run, benchmark, progress, thresholds_from=None, seed=seed)
        evaluate_into(run, benchmark, policies, progress)
        page = write_report([run])
    model = run.manifest["model"]
    output.print(
        f"\n{model['name']}: {model['num_heads']} heads in {len(model['layers'])} layers, {model['dtype']}. "
        f"{benchmark.num_questions} questions of {TASK} ({', '.join(set(benchmark.task_set.sources.values()))}), without the "
        f"chat template, {time.monotonic() - start:.0f} s.\n",
        highlight=False,
    )
    print_results(run)
    output.print(f"Page: {page}", highlight=False, soft_wrap=True, markup=False)
