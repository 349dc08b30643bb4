"""``headcount select``: which heads to remove."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from headcount.cli import options
from headcount.cli.app import app, grouped
from headcount.cli.console import output, steps
from headcount.errors import InputError
from headcount.whole_table import WholeTable

if TYPE_CHECKING:
    import pandas as pd


@app.command()
@grouped(without=["device_map"])
def select(
    output_file: Annotated[
        Path, options.path_option("--output", "-o", help="File of the selection, JSON.", show_default=False)
    ],
    texts: options.Texts = None,
    task: options.Task = None,
    share: Annotated[
        float | None,
        typer.Option(
            help="Share of the model's query heads to remove, or of each layer's neurons; with --budget, the largest to try."
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help='Fall of accuracy that is tolerated on held-out questions, such as "1 point of arc_easy,piqa". '
            "Finds the largest share that keeps it."
        ),
    ] = None,
    step: Annotated[float, typer.Option(help="For --budget: share of heads between two trials.")] = 0.05,
    questions: Annotated[
        int | None, typer.Option(min=1, help="For --budget: held-out questions a task. [default: all]")
    ] = None,
    confidence: Annotated[float, typer.Option(help="For --budget: of the statement, one-sided.")] = 0.95,
    score: Annotated[
        str | None,
        typer.Option(
            help="taylor (needs gradients), or the id of a registered score, such as ahon_ln. "
            "[default: taylor; rms_res for neurons]"
        ),
    ] = None,
    unit: Annotated[
        Literal["head", "group", "attention", "neuron"],
        typer.Option(
            help="What goes as a whole: a query head, a key-value group (saves cache), a layer's attention, or an MLP neuron "
            "(as many in each layer)."
        ),
    ] = "head",
    aggregate: Annotated[
        Literal["mean", "max", "quantile", "inactive"],
        typer.Option(
            help="Over texts: the mean; the text that needs a head most (max), or a quantile towards it, as a guard for heads "
            "that matter rarely but much; or how often it is inactive."
        ),
    ] = "mean",
    quantile: Annotated[float, typer.Option(help="For --aggregate quantile.")] = 0.9,
    rounds: Annotated[int, typer.Option(min=1, help="Measure again after each of so many steps.")] = 1,
    exclude_layer: Annotated[
        list[int] | None, typer.Option(help="Layer that keeps its heads, counted from 0; repeat.")
    ] = None,
    *,
    replacing: options.Replacing,
    reading: options.Reading,
    scores_from: options.ScoresFrom = None,
    calibration: options.Calibration = None,
    asked: options.Questions,
    loading: options.Loading,
    batch_tokens: options.FittingBatch = 2048,
    seed: options.Seed = 0,
) -> None:
    """Choose the heads, or MLP neurons, that texts or a benchmark's questions need least, for `headcount prune`."""
    if not texts and not task:
        raise InputError("Say what to choose on: --texts FILE, or --task NAME.")
    if share is None and budget is None:
        raise InputError('Say how much to remove: --share 0.2, or --budget "1 point of arc_easy,piqa".')
    if output_file.exists() or output_file.is_symlink():
        raise InputError(f"{str(output_file)!r} exists already. Choose another file with -o, or remove it first.")
    with steps() as progress:
        from headcount.cli.reading import first_texts, first_tokens
        from headcount.cli.runs import keep_offline, say_template

        keep_offline(asked.offline)
        from headcount.models.loading import default_name
        from headcount.removal.budget import Budget, select_within_budget
        from headcount.removal.choose import NOT_FINITE, check_options, check_share, default_score, select_heads
        from headcount.removal.fitting import Fitting
        from headcount.store.whole import check_writable
        from headcount.study.given import named_tasks
        from headcount.study.subject import load_model, read_calibration, read_data
        from headcount.units import KINDS

        check_writable(output_file)
        if share is not None:
            check_share(share)
        score = score or default_score(unit)
        check_options(score, aggregate, quantile, rounds, read_calibration(calibration), unit)
        if budget and unit == "neuron":
            raise InputError("A budget is found for heads, not for neurons. Say how many to remove: --share 0.1.")
        wanted = Budget.parse(budget) if budget else None
        named = partial(
            named_tasks, num_fewshot=asked.num_fewshot, include_path=asked.include_path, announce=progress.start
        )
        chosen = named(task, limit=asked.limit) if task else None
        kept = named(wanted.tasks, limit=None) if wanted else None
        loaded = load_model(loading.spec(calibration), announce=progress.start)
        read = partial(
            read_data, loaded, chat_template=asked.chat_template, offline=asked.offline, include_path=asked.include_path,
            batch_tokens=batch_tokens, seed=seed, announce=progress.start,
        )  # fmt: skip
        rows: list[list[int]] = []
        used: list[tuple[str, int]] = []
        if texts:
            rows = first_tokens(first_texts(texts, reading), loaded.tokenizer, reading)
        if chosen:
            chosen_on = read(chosen)
            say_template(chosen_on, asked.chat_template)
            rows += [row for row in chosen_on.rows if len(row) > 1]
            used = chosen_on.benchmark.questions if chosen_on.benchmark else []
        held_out = None
        if kept:
            asked_on = read(kept)
            say_template(asked_on, asked.chat_template)
            held_out = asked_on.benchmark
        fitting = Fitting(rows=rows, ridge=replacing.ridge, batch_tokens=batch_tokens, seed=seed)
        selection = select_heads(
            loaded.model, fitting, share=share or 0.5, score=score, kind=unit, aggregate=aggregate, quantile=quantile,
            rounds=rounds, how=replacing.how(unit), exclude_layers=exclude_layer or (),
            calibration=loaded.calibration, name=default_name(loaded.name),
            progress=lambda step: progress.start(step, len(rows)),
        )  # fmt: skip
        trials = None
        if wanted and held_out:
            selection, trials = select_within_budget(
                loaded.model, selection, held_out, fitting, margin=wanted.margin, used=used, num_questions=questions,
                step=step, confidence=confidence, how=replacing.how(unit), progress=progress.start,
            )  # fmt: skip
        selection.save(output_file)
    if trials is not None:
        print_trials(trials, confidence)
    total = selection.num_parts
    output.say(
        f"Selected {len(selection.heads):,} of {total:,} {KINDS[selection.part].plural} "
        f"({100 * len(selection.heads) / total:.1f}%), chosen on {len(rows)} texts. "
        f"See what that saves: headcount prune {loading.model} --heads {output_file}",
    )  # fmt: skip
    if left := selection.chosen.get(NOT_FINITE):
        output.say(
            f"{left} of its units ({unit}) have no finite {score} score on some text: they were not chosen from."
        )


def print_trials(trials: "pd.DataFrame", confidence: float) -> None:
    """What each removal that was tried cost on the held-out questions."""
    from headcount.report.wording import judged_in, metric_name

    metric = judged_in(trials)
    name, side = metric_name(metric.name), "below" if metric.sign < 0 else "above"
    table = WholeTable(box=None, header_style="bold", title="On held-out questions", title_justify="left")
    for heading in ("heads removed", name, "change, points", f"{side}, {100 * confidence:g}%", "within budget"):
        table.add_column(heading, justify="right")
    for trial in trials.to_dict("records"):
        table.add_row(
            f"{trial['num_heads']} ({100 * trial['share']:.1f}%)",
            f"{100 * trial['accuracy']:.1f}%",
            f"{100 * trial['change']:+.1f}",
            f"{100 * trial['change_bound']:+.1f}",
            f"{trial['within_margin']} ({100 * trial['confidence_within']:.0f}%)",
        )
    output.print(table)
