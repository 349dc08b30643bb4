"""``headcount evaluate``: a benchmark's accuracy under policies."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headcount.cli import options
from headcount.cli.app import app
from headcount.cli.console import Steps, output, steps
from headcount.cli.early import Early
from headcount.errors import InputError, RunError

if TYPE_CHECKING:
    import xarray as xr

    from headcount.policies import Written
    from headcount.store import Run
    from headcount.study.subject import Subject
    from headcount.study.units import LocalEngine
    from headcount.summaries import Summary


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
    scores_from: options.ScoresFrom = None,
    metric: options.Metric = None,
    higher_is_better: options.HigherIsBetter = None,
    until_decided: options.UntilDecided = False,
    margin: options.Margin = None,
    confidence: options.Confidence = None,
    search: options.SearchFor = None,
    largest_share: options.LargestShare = None,
    resolution: options.Resolution = None,
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
    from headcount.resolving import read_policy

    if not task:
        raise InputError("Say which benchmark to run: --task NAME, such as arc_easy or mmlu.")
    requests = list(
        dict.fromkeys(
            read_policy(text, exclude_layers=exclude_layer or (), seed=seed, model=published_model or model)
            for text in policy or []
        )
    )
    early = Early.asked(
        until_decided=until_decided, metric=metric, higher_is_better=higher_is_better, margin=margin,
        confidence=confidence, search=search or (), largest_share=largest_share, resolution=resolution,
    )  # fmt: skip
    if early is not None and pruned:
        raise InputError(
            "Pruned checkpoints are asked every question: leave out --pruned, or --until-decided and --search."
        )
    if early is not None and not (requests or early.scores):
        raise InputError("Say under which policies to ask until it is decided: --policy ID:SHARE, or --search ID.")
    with steps() as progress:
        from headcount.cli.pruned import ask_pruned_into, check_pruned
        from headcount.cli.runs import command_line, default_folder, load_model, questions_of, read_data, run_settings
        from headcount.store import begin_run

        data = questions_of(
            task, progress, limit=limit, num_fewshot=num_fewshot, include_path=include_path, offline=offline
        )
        loaded = load_model(
            model, progress, offline=offline, dtype=dtype, device=device, device_map=device_map, revision=revision,
            allow_pickle=allow_pickle, trust_remote_code=trust_remote_code,
        )  # fmt: skip
        for checkpoint in pruned or ():
            check_pruned(checkpoint, loaded, trust_remote_code=trust_remote_code)
        subject = read_data(
            loaded, data, progress, chat_template=chat_template, offline=offline,
            include_path=None if include_path is None else str(include_path), batch_tokens=batch_tokens, seed=seed,
        )  # fmt: skip
        folder, facts = output_folder or default_folder(model, task), subject.facts()
        progress.keep_in(folder, output_folder)
        with begin_run(
            folder, model=facts.model, data=facts.data, settings=run_settings(folder, facts, seed=seed), command=command_line()
        ) as run:  # fmt: skip
            evaluate_into(
                run, subject, requests, progress, thresholds_from=thresholds_from, seed=seed, early=early,
                exclude_layers=frozenset(exclude_layer or ()),
            )  # fmt: skip
            for checkpoint in pruned or ():
                ask_pruned_into(
                    run, checkpoint, subject, progress, dtype=dtype, device=device, trust_remote_code=trust_remote_code
                )
    print_results(run, metric, higher_is_better)
    assert subject.benchmark is not None
    if subject.benchmark.num_truncated:
        output.print(
            f"{subject.benchmark.num_truncated} inputs were longer than the model's positions: their starts were cut off, "
            "as in lm-eval."
        )


def evaluate_into(
    run: "Run",
    subject: "Subject",
    requests: "list[Written]",
    progress: Steps,
    *,
    thresholds_from: Path | None = None,
    seed: int = 0,
    early: Early | None = None,
    exclude_layers: frozenset[int] = frozenset(),
) -> None:
    """Ask the questions untouched and under each policy, where that is not done; measures first what thresholds need.

    Raises:
        RunError: the run holds a policy of this name with another threshold, or was asked in another way.
        InputError: a policy was given up because the model's logits are NaN under it; the others are kept.
    """
    from headcount.policies import RANDOM
    from headcount.study.cuts import find_thresholds
    from headcount.study.deciding import ask_until_decided, policies_at, search_run
    from headcount.study.stages import aggregate_run, ask_run
    from headcount.study.units import LocalEngine
    from headcount.thresholding import thresholds

    engine, facts = LocalEngine(subject), subject.facts()
    by_share = [request.wants for request in requests if request.wants is not None]
    searched = [] if early is None else [score for score in early.scores if score != RANDOM]
    wanted = list(dict.fromkeys([*(wanted.score for wanted in by_share), *searched]))
    measured = _measured(wanted, run, engine, facts.num_inputs, progress, thresholds_from, seed) if wanted else None
    shares = sorted({wanted.share for wanted in by_share})
    cuts = None
    if shares and measured is not None:
        cuts = find_thresholds(run, shares) if thresholds_from is None else thresholds(measured, shares)
    policies = [request.found(cuts) for request in requests]
    if early is None or policies:
        count = facts.num_questions * (len(policies) + 1)
        told = progress.start(f"Asking under {len(policies) + 1} policies", count)
        if early is None:
            ask_run(run, engine, policies, workload=facts.workload, progress=told)
        else:
            ask_until_decided(
                run, engine, policies, workload=facts.workload, rule=early.rule, progress=told
            )  # fmt: skip
    if early is not None and early.scores:
        search_run(
            run, engine, early.scores, policy_at=policies_at(measured, seed=seed, exclude_layers=exclude_layers),
            workload=facts.workload, rule=early.rule, search=early.search, announce=progress.start,
        )  # fmt: skip
    aggregate_run(run, engine)
    asked = {policy.label for policy in policies} if early is None or not early.scores else set(run.policies())
    if failures := {label: why for label, why in run.failures().items() if label in asked}:
        raise InputError(" ".join(f"{label} was given up: {why}" for label, why in failures.items()))


def _measured(
    wanted: list[str],
    run: "Run",
    engine: "LocalEngine",
    num_inputs: int,
    progress: Steps,
    thresholds_from: Path | None,
    seed: int,
) -> "xr.Dataset | Summary":
    """The scores that give thresholds, of this run or of another one."""
    from headcount.store import open_run
    from headcount.study.stages import inputs_left, measure_run

    if thresholds_from is None:
        ids = run.scores_measured() or wanted
        _check_has(wanted, ids, run)
        if inputs_left(run, num_inputs):
            told = progress.start(f"Measuring {len(ids)} score{'s' * (len(ids) > 1)}", num_inputs)
            measure_run(run, engine, num_inputs=num_inputs, scores=ids, seed=seed, progress=told)
        source = run
    else:
        source = open_run(thresholds_from)
        theirs, ours = source.manifest.model, run.manifest.model
        if theirs.fingerprint != ours.fingerprint:
            raise RunError(
                f"{str(thresholds_from)!r} measured another model ({theirs.name}, {theirs.fingerprint}) than this "
                f"one ({ours.name}, {ours.fingerprint}). Measure this model, or leave --thresholds-from out."
            )
        _check_has(wanted, source.scores_measured() or (), source)
    measured = source.measurements()
    if measured is None:
        raise RunError(f"{str(source.path)!r} holds no scores. Measure some with `headcount measure … -o FOLDER`.")
    return measured[wanted]


def _check_has(wanted: list[str], measured: Collection[str], source: "Run") -> None:
    if missing := [name for name in wanted if name not in measured]:
        raise RunError(
            f"{str(source.path)!r} has no scores for {', '.join(missing)}. Measure them with "
            "`headcount measure` in a new folder and give it with --thresholds-from."
        )


def print_results(run: "Run", metric: str | None = None, higher_is_better: bool | None = None) -> None:
    """The tables, where the run is, and what it lacks."""
    from headcount.cli.runs import say_whats_left
    from headcount.report import print_decided, print_divergence, print_tables
    from headcount.study.analysing import read_tables

    tables = read_tables(run, metric=metric, higher_is_better=higher_is_better)
    answers, decided = tables.answers, tables.decided
    try:
        if decided is not None:
            print_decided(output, decided)
        elif answers is not None and answers.metric is None:  # perplexity is one number of all texts together
            print_divergence(output, answers.divergence, title="How far answers move with heads zeroed")
        elif answers is not None:
            print_tables(output, answers.accuracy, answers.removable, answers.judged)
    finally:  # an unknown metric must not hide where hours of work are
        output.print()
        output.say(f"Run:  {run.path}")
        say_whats_left([run])
