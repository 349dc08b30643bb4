"""``headcount measure``: every score of every head on a benchmark's questions or on texts."""

from typing import Annotated, Any

import typer

from headcount.cli import app, options
from headcount.cli.console import Steps, output, steps
from headcount.errors import InputError
from headcount.store import Run

#: Inputs measured between two writes to disk.
SHARD = 512


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
) -> None:
    """Measure every attention head while the model reads a benchmark's questions, or texts."""
    if bool(task) == bool(texts):
        raise InputError("Say what the model should read: either --task NAME or --texts FILE, not both.")
    with steps() as progress:
        from headcount.cli.runs import (
            benchmark_facts,
            default_folder,
            load_model,
            model_facts,
            open_or_create,
            prepare_benchmark,
        )
        from headcount.scores import select_scores

        ids = [chosen.id for chosen in select_scores(score or "all")]
        prepared_texts = _texts(texts, text_column, limit) if texts else None
        loaded = load_model(
            model, progress, offline=offline, dtype=dtype, device=device, device_map=device_map, revision=revision,
            allow_pickle=allow_pickle, trust_remote_code=trust_remote_code,
        )  # fmt: skip
        if prepared_texts is not None:
            from headcount.measure import token_ids
            from headcount.models.batching import data_fingerprint

            rows = [row[:max_length] for row in token_ids(prepared_texts, loaded.tokenizer)]
            data: dict[str, Any] = {
                "texts": texts,
                "text_column": text_column,
                "limit": limit,
                "max_length": max_length,
            }
            data |= {"num_inputs": len(rows), "fingerprint": data_fingerprint(rows)}
        else:
            assert task is not None
            benchmark = prepare_benchmark(
                loaded, task, progress, chat_template=chat_template, offline=offline, num_fewshot=num_fewshot, limit=limit,
                include_path=include_path, batch_tokens=batch_tokens, seed=seed,
            )  # fmt: skip
            rows, data = benchmark.inputs(), benchmark_facts(benchmark, task)
        facts = {"model": model_facts(loaded), "data": data, "settings": {"seed": seed}}
        run = open_or_create(output_folder or default_folder(model, task or texts or []), facts)
        if (before := run.scores()) is not None and (
            set(before.data_vars) != set(ids) or before.sizes["example"] >= len(rows)
        ):
            raise InputError(f"{str(run.path)!r} already holds scores. Choose another folder with -o.")
        measure_into(run, loaded.model, rows, ids, progress, batch_tokens=batch_tokens, seed=seed, too_long=too_long)
    output.print(
        f"Measured {len(ids)} scores of {facts['model']['num_heads']} heads on {len(rows)} inputs.", highlight=False
    )
    output.print(f"Run: {run.path}", highlight=False, soft_wrap=True, markup=False)


def measure_into(
    run: Run,
    model: Any,
    rows: list[list[int]],
    ids: list[str],
    progress: Steps,
    *,
    batch_tokens: int | None,
    seed: int,
    too_long: str = "refuse",
) -> None:
    """Measure the rows that the run does not hold yet, and keep them in it, a shard at a time.

    A measurement that was stopped goes on with the scores that it began with.
    """
    from headcount.measure import measure_heads
    from headcount.models.batching import check_lengths

    rows, _ = check_lengths(rows, model, too_long=too_long)
    first = 0
    if (before := run.scores()) is not None:
        ids, first = [str(name) for name in before.data_vars], before.sizes["example"]
    if first >= len(rows):
        return
    update = progress.start(f"Measuring {len(ids)} score{'s' * (len(ids) > 1)}", len(rows))
    for start in range(first, len(rows), SHARD):
        table = measure_heads(
            model, rows[start : start + SHARD], scores=ids, batch_tokens=batch_tokens, seed=seed,
            progress=lambda done, _, start=start: update(start + done, len(rows)),
        )  # fmt: skip
        run.add_scores(table)


def _texts(sources: list[str], column: str, limit: float | None) -> list[str]:
    from headcount.texts import load_texts

    if limit is not None and not limit.is_integer():
        raise InputError(f"--limit is a whole number of texts, not {limit}.")
    return load_texts(sources, column=column, limit=None if limit is None else int(limit))
