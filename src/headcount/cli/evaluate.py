"""``headcount evaluate``: a benchmark's accuracy under policies."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headcount.cli import app, options
from headcount.cli.console import Steps, output, steps
from headcount.errors import InputError, RunError
from headcount.policies import PolicyRequest, parse_policy
from headcount.store import Run, open_run

if TYPE_CHECKING:
    from headcount.evaluation.benchmark import Benchmark
    from headcount.interventions import Policy


@app.command()
def evaluate(
    model: options.Model,
    task: options.Task = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            "-p",
            help="ID:SHARE (threshold from measured scores), ID@THRESHOLD, random:SHARE, or ID:published:SHARE (the paper's "
            "threshold for this model); repeat for several.",
        ),
    ] = None,
    output_folder: options.Output = None,
    thresholds_from: Annotated[
        Path | None, typer.Option(help="Run whose scores give the thresholds. [default: these questions' own]")
    ] = None,
    published_model: Annotated[
        str | None, typer.Option(help="Hub id whose published thresholds to use. [default: MODEL]")
    ] = None,
    exclude_layer: Annotated[
        list[int] | None, typer.Option(help="Layer never touched, counted from 0; repeat.")
    ] = None,
    pruned: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of a checkpoint that `headcount prune` made from MODEL, to ask as well; repeat."),
    ] = None,
    scores_from: options.ScoresFrom = None,
    metric: Annotated[
        str | None, typer.Option(help="lm-eval metric for the table. [default: acc, or the task's first]")
    ] = None,
    num_fewshot: options.NumFewshot = None,
    limit: options.Limit = None,
    chat_template: options.ChatTemplate = None,
    offline: options.Offline = False,
    include_path: options.IncludePath = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    device_map: options.DeviceMap = None,
    revision: options.Revision = None,
    allow_pickle: options.AllowPickle = False,
    trust_remote_code: options.TrustRemoteCode = False,
    batch_tokens: options.BatchTokens = None,
    seed: options.Seed = 0,
) -> None:
    """Zero inactive heads, chosen anew for each input, while a benchmark runs, and compare with the untouched model."""
    if not task:
        raise InputError("Say which benchmark to run: --task NAME, such as arc_easy or mmlu.")
    requests = list(
        dict.fromkeys(
            parse_policy(text, exclude_layers=exclude_layer or (), model=published_model or model)
            for text in policy or []
        )
    )
    with steps() as progress:
        from headcount.cli.pruned import ask_pruned_into
        from headcount.cli.runs import (
            benchmark_facts,
            default_folder,
            load_model,
            model_facts,
            open_or_create,
            prepare_benchmark,
        )

        loaded = load_model(
            model, progress, offline=offline, dtype=dtype, device=device, device_map=device_map, revision=revision,
            allow_pickle=allow_pickle, trust_remote_code=trust_remote_code,
        )  # fmt: skip
        benchmark = prepare_benchmark(
            loaded, task, progress, chat_template=chat_template, offline=offline, num_fewshot=num_fewshot, limit=limit,
            include_path=include_path, batch_tokens=batch_tokens, seed=seed,
        )  # fmt: skip
        facts = {"model": model_facts(loaded), "data": benchmark_facts(benchmark, task), "settings": {"seed": seed}}
        run = open_or_create(output_folder or default_folder(model, task), facts)
        policies = resolve_policies(requests, run, benchmark, progress, thresholds_from=thresholds_from, seed=seed)
        evaluate_into(run, benchmark, policies, progress)
        for folder in pruned or ():
            ask_pruned_into(
                run,
                folder,
                loaded,
                benchmark,
                progress,
                dtype=dtype,
                device=device,
                trust_remote_code=trust_remote_code,
            )
    print_results(run, metric)
    if benchmark.num_truncated:
        output.print(
            f"{benchmark.num_truncated} inputs were longer than the model's positions: their starts were cut off, as in lm-eval."
        )


def resolve_policies(
    requests: list[PolicyRequest],
    run: Run,
    benchmark: "Benchmark",
    progress: Steps,
    *,
    thresholds_from: Path | None,
    seed: int,
) -> list["Policy"]:
    """Policies with their thresholds; measures the benchmark's own inputs into the run if their scores are not there yet."""
    from headcount.cli.measure import measure_into
    from headcount.thresholding import thresholds

    wanted = list(dict.fromkeys(request.score for request in requests if request.needs_threshold))
    if not wanted:
        return [request.resolve(None, seed=seed) for request in requests]
    source = run
    if thresholds_from is not None:
        source = open_run(thresholds_from)
        if (theirs := source.manifest["model"]["fingerprint"]) != (ours := run.manifest["model"]["fingerprint"]):
            raise RunError(
                f"{str(thresholds_from)!r} measured another model ({source.manifest['model']['name']}, {theirs}) than this one "
                f"({run.manifest['model']['name']}, {ours}). Measure this model, or leave --thresholds-from out."
            )
    else:
        measure_into(
            run,
            benchmark.lm.model,
            benchmark.inputs(),
            wanted,
            progress,
            batch_tokens=benchmark.lm.batch_tokens,
            seed=seed,
        )
    scores = source.scores()
    missing = [name for name in wanted if scores is None or name not in scores]
    if scores is None or missing:
        raise RunError(
            f"{str(source.path)!r} has no scores for {', '.join(missing)}. Measure them with "
            "`headcount measure` in a new folder and give it with --thresholds-from."
        )
    shares = sorted({request.share for request in requests if request.needs_threshold and request.share is not None})
    cuts = thresholds(scores[wanted], shares)
    if source is run:
        run.set_thresholds(thresholds(scores, sorted({*shares, *_shares_known(run)})))
    return [request.resolve(cuts, seed=seed) for request in requests]


def evaluate_into(run: Run, benchmark: "Benchmark", policies: list["Policy"], progress: Steps) -> None:
    """Run the baseline and the policies that the run does not hold yet, all at once.

    Raises:
        RunError: the run holds a policy of this name with another threshold.
        InputError: a policy was given up because the model's logits are NaN under it; the others are kept.
    """
    from headcount.evaluation.outcomes import BASELINE
    from headcount.interventions import Threshold

    outcomes = run.outcomes()
    have = {} if outcomes is None else outcomes.groupby("policy")["threshold"].first().to_dict()
    for policy in policies:
        if isinstance(policy, Threshold) and policy.threshold != have.get(policy.label, policy.threshold):
            raise RunError(
                f"{str(run.path)!r} holds {policy.label} with threshold {have[policy.label]:g}; this command gives "
                f"{policy.threshold:g}. Choose another folder with -o."
            )
    waiting = [policy for policy in policies if policy.label not in have]
    if BASELINE in have and not waiting:
        return
    # The untouched model is asked along with every policy: they share most of its passes, and are compared with it.
    asked = [None, *waiting]
    told = progress.start(f"Asking under {len(asked)} policies", len(asked) * benchmark.num_inputs)
    given = benchmark.ask(asked, progress=told)
    metrics = benchmark.metrics(given.outcomes)
    of_metrics = dict(list(metrics.groupby("policy")))
    for label, of_policy in given.outcomes.groupby("policy", sort=False):
        if label not in have:
            run.add_outcomes(str(label), of_policy, of_metrics[label])
    if given.failures:
        raise InputError(" ".join(f"{label} was given up: {why}" for label, why in given.failures.items()))


def print_results(run: Run, metric: str | None = None) -> None:
    """The tables, and where the run is."""
    from headcount.analysis.accuracy import accuracy_table
    from headcount.analysis.outcomes import metrics_of
    from headcount.analysis.removable import removable_table
    from headcount.report import print_tables

    outcomes = run.outcomes()
    assert outcomes is not None
    known = metrics_of(outcomes)
    metric = metric or ("acc" if "acc" in known or not known else known[0])
    try:
        print_tables(output, accuracy_table(outcomes, metric=metric), removable_table(outcomes, metric=metric))
    finally:  # an unknown metric must not hide where hours of work are
        output.print(f"\nRun:  {run.path}", highlight=False, soft_wrap=True, markup=False)


def _shares_known(run: Run) -> list[float]:
    cuts = run.thresholds()
    return [] if cuts is None else cuts["share"].values.tolist()
