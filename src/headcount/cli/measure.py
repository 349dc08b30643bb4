"""``headcount measure``: every score of every head on a benchmark's questions or on texts."""

from typing import Annotated

import typer

from headcount.cli import options
from headcount.cli.app import app
from headcount.cli.console import output, steps
from headcount.errors import InputError


@app.command()
def measure(
    model: options.Model,
    task: options.Task = None,
    texts: Annotated[
        list[str] | None,
        typer.Option(
            help=".txt, .jsonl or .parquet files, or hub data sets; repeat for several.", rich_help_panel="Data"
        ),
    ] = None,
    output_folder: options.Output = None,
    score: Annotated[
        list[str] | None, typer.Option(help="Score to measure; repeat for several. [default: all]")
    ] = None,
    scores_from: options.ScoresFrom = None,
    num_fewshot: options.NumFewshot = None,
    limit: options.Limit = None,
    text_column: Annotated[
        str, typer.Option(help="Column or key that holds the text.", rich_help_panel="Data")
    ] = "text",
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Keep this many first tokens of each text.", rich_help_panel="Data")
    ] = None,
    too_long: Annotated[
        str,
        typer.Option(
            help="A text longer than the model's positions: refuse, or cut its end off.", rich_help_panel="Data"
        ),
    ] = "refuse",
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
    scores_dtype: Annotated[
        str, typer.Option(help="float32, or float16 for half the disk.", rich_help_panel="What is kept")
    ] = "float32",
    summaries: Annotated[
        bool,
        typer.Option(
            "--summaries",
            help="Keep counts and moments of the scores instead of every score, for corpora of any size.",
            rich_help_panel="What is kept",
        ),
    ] = False,
) -> None:
    """Measure every attention head while the model reads a benchmark's questions, or texts."""
    if bool(task) == bool(texts):
        raise InputError("Say what the model should read: either --task NAME or --texts FILE, not both.")
    from headcount.store.scores import DTYPES

    if scores_dtype not in DTYPES:
        raise InputError(f"Unknown --scores-dtype {scores_dtype!r}. Use {' or '.join(DTYPES)}.")
    with steps() as progress:
        from headcount.cli.runs import command_line, default_folder, load_model, questions_of, read_data, run_settings
        from headcount.scores import select_scores
        from headcount.store import begin_run
        from headcount.study.spec import Texts
        from headcount.study.stages import measure_run
        from headcount.study.subject import read_texts
        from headcount.study.units import LocalEngine
        from headcount.thresholding import not_finite, said_not_finite

        ids = [chosen.id for chosen in select_scores(score or "all")]
        if texts:
            data = Texts.model_construct(
                texts=tuple(texts), text_column=text_column, limit=_whole(limit), max_length=max_length,
                too_long=too_long,
            )  # fmt: skip
            read_texts(data)  # what is wrong with them is said before the model is loaded
        else:
            data = questions_of(
                task or (), progress, limit=limit, num_fewshot=num_fewshot, include_path=include_path, offline=offline
            )  # fmt: skip
        loaded = load_model(
            model, progress, offline=offline, dtype=dtype, device=device, device_map=device_map, revision=revision,
            allow_pickle=allow_pickle, trust_remote_code=trust_remote_code,
        )  # fmt: skip
        subject = read_data(
            loaded, data, progress, chat_template=chat_template, offline=offline,
            include_path=None if include_path is None else str(include_path), batch_tokens=batch_tokens, seed=seed,
        )  # fmt: skip
        folder, facts = output_folder or default_folder(model, task or texts or []), subject.facts()
        progress.keep_in(folder, output_folder)
        settings = run_settings(folder, facts, seed=seed, scores_dtype=scores_dtype, summaries=summaries)
        with begin_run(
            folder, model=facts.model, data=facts.data, settings=settings, command=command_line()
        ) as run:  # fmt: skip
            measure_run(
                run, LocalEngine(subject), num_inputs=facts.num_inputs, scores=ids, seed=seed,
                progress=progress.start(f"Measuring {len(ids)} score{'s' * (len(ids) > 1)}", facts.num_inputs),
            )  # fmt: skip
    measured = run.measurements()
    left_out = {} if measured is None else not_finite(measured)
    scores = f"{len(ids)} score{'s' * (len(ids) != 1)}"
    inputs = f"{facts.num_inputs} input{'s' * (facts.num_inputs != 1)}"
    output.print(f"Measured {scores} of {facts.model['num_heads']} heads on {inputs}.")
    for name, facts in left_out.items():
        output.print(said_not_finite(name, facts), highlight=False, soft_wrap=True, markup=False)
    output.say(f"Run: {run.path}")


def _whole(limit: float | None) -> int | None:
    if limit is not None and not limit.is_integer():
        raise InputError(f"--limit is a whole number of texts, not {limit}.")
    return None if limit is None else int(limit)
