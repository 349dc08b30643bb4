"""``headcount prune``: a checkpoint without the selected heads or neurons."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.text import Text

from headcount.cli import options
from headcount.cli.app import app, grouped
from headcount.cli.console import output, steps
from headcount.errors import InputError
from headcount.whole_table import WholeTable

if TYPE_CHECKING:
    from headcount.removal.plan import NeuronPlan, Plan
    from headcount.removal.pruned import Pruned, Savings


@app.command()
@grouped(without=["device_map"])
def prune(
    heads: Annotated[
        Path, options.path_option("--heads", help="Selection, as from `headcount select`.", show_default=False)
    ],
    output_folder: Annotated[
        Path | None,
        options.path_option("--output", "-o", help="New folder of the checkpoint. Without it, only show the plan."),
    ] = None,
    texts: options.Texts = None,
    *,
    replacing: options.Replacing,
    reading: options.Reading,
    distill: Annotated[
        int,
        options.replacement_option(
            help="Then train what replaces the heads, in so many passes over the texts, towards the original model's "
            "predictions; needs gradients. 0 for none.",
            min=0,
        ),
    ] = 0,
    learning_rate: Annotated[
        float | None, options.replacement_option(help="For --distill: of AdamW, at its highest. [default: 3e-4]")
    ] = None,
    format: Annotated[
        Literal["transformers", "gguf", "zeros"],
        typer.Option(
            help="transformers cuts the weights; gguf does so for llama.cpp (Llama, Mistral and Qwen2); zeros keeps their "
            "shapes, loads anywhere and saves nothing."
        ),
    ] = "transformers",
    uneven: Annotated[
        Literal["index", "repeat", "keep"] | None,
        typer.Option(
            help="Groups that lose different numbers of heads: index (exact, no cost), repeat key-value heads (exact, larger "
            "cache), or keep as many selected heads as evens them out. [default: index; repeat for gguf]"
        ),
    ] = None,
    gguf_tokenizer: Annotated[
        Path | None,
        options.path_option(
            "--gguf-tokenizer",
            help="For gguf: a GGUF file of the original model, for its tokenizer. [default: MODEL if it is one]",
        ),
    ] = None,
    gguf_type: Annotated[
        Literal["f32", "f16", "bf16", "q8_0", "q4_1"], typer.Option(help="For gguf: type of the matrices.")
    ] = "bf16",
    loading: options.Loading,
    batch_tokens: options.FittingBatch = 4096,
    seed: Annotated[int, typer.Option(help="For --distill: of the order of texts.")] = 0,
) -> None:
    """Cut heads or neurons out of a model: show the plan, replace what they did, write a checkpoint, load it and compare."""
    with steps() as progress:
        from headcount.cli.reading import first_texts, first_tokens
        from headcount.cli.runs import command_line
        from headcount.models.gguf import gguf_file
        from headcount.models.loading import default_name
        from headcount.removal.fitting import Distillation, Fitting
        from headcount.removal.prune import Checkpoint, plan_of, prune_heads
        from headcount.removal.pruned import savings
        from headcount.removal.selection import Selection
        from headcount.store.whole import check_writable, refuse_taken
        from headcount.study.subject import load_model

        if format == "gguf" and uneven == "index":
            raise InputError("A GGUF file has no place for an index. Choose --uneven repeat or keep.")
        selection = Selection.load(heads)
        replace = replacing.how(selection.part)
        distillation = None
        if distill:
            rate = Distillation.learning_rate if learning_rate is None else learning_rate
            step = min(batch_tokens, Distillation.step_tokens)
            distillation = Distillation(epochs=distill, learning_rate=rate, step_tokens=step)
        elif learning_rate is not None:
            raise InputError("--learning-rate is for training: say how long with --distill 3.")
        if output_folder is not None:
            refuse_taken(output_folder)
            check_writable(output_folder)
            if replace != "zero" and not texts:
                raise InputError(
                    f"Replacing {selection.part}s by {replace} needs calibration texts: give --texts FILE, or --replace zero."
                )
            if distill and not texts:
                raise InputError("--distill needs texts to learn from: give --texts FILE.")
        loaded = load_model(loading.spec(), announce=progress.start)
        name = default_name(loaded.name)
        selection.check(loaded.model, name)
        uneven = uneven or ("repeat" if format == "gguf" else "index")
        plan = plan_of(loaded.model, selection, uneven)
        cut = format != "zeros"
        saved = savings(loaded.model, plan, biases=replace != "zero" or distill > 0) if cut else None
        print_plan(plan, saved, choices="keep" if format == "gguf" else "keep or index")
        if output_folder is None:
            return
        rows = []
        if texts and (replace != "zero" or distill):
            rows = first_tokens(first_texts(texts, reading), loaded.tokenizer, reading)
        tokenizer_from = gguf_tokenizer or gguf_file(loading.model)
        result = prune_heads(
            loaded.model, selection, output_folder,
            Fitting(rows=rows, ridge=replacing.ridge, batch_tokens=batch_tokens, seed=seed),
            how=replace, distillation=distillation,
            checkpoint=Checkpoint(format=format, uneven=uneven, tokenizer_from=tokenizer_from, precision=gguf_type),
            tokenizer=loaded.tokenizer, name=name, command=command_line(),
            progress=lambda step: progress.start(step, len(rows)),
        )  # fmt: skip
    print_result(result)


def print_result(result: "Pruned") -> None:
    """How the checkpoint compares, where it is, and how it is loaded."""
    if result.loaded == "llama.cpp":
        compared, load = "The cut weights, compared", f"llama-cli -m {result.folder / 'model.gguf'}"
    else:
        trust = "" if result.loaded == "stock" else ", trust_remote_code=True"
        compared = "Loaded again and compared"
        load = f'AutoModelForCausalLM.from_pretrained("{result.folder}"{trust})'
    output.print(f"{compared} with the masked model: {result.verification}.")
    output.say(f"Checkpoint: {result.folder}")
    output.say(f"Load it: {load}")


def print_plan(plan: "Plan | NeuronPlan", savings: "Savings | None", *, choices: str) -> None:
    """What goes, what stays and what that saves; None for weights that keep their shapes.

    ``choices`` are the ways for uneven groups that need no more cache.
    """
    from headcount.removal.plan import Plan
    from headcount.units import KINDS

    table = WholeTable(box=None, header_style="bold", title="Plan", title_justify="left")
    for heading in ("", "before", "after", "change"):
        table.add_column(heading, justify="left" if not heading else "right")

    def row(what: str, old: int, new: int) -> None:
        table.add_row(what, f"{old:,}", f"{new:,}", f"{100 * (new - old) / old:+.1f}%")

    kind, total = ("head" if isinstance(plan, Plan) else "neuron"), plan.num_parts
    row(KINDS[kind].plural, total, total - len(plan.removed))
    if savings is not None:
        if isinstance(plan, Plan):
            row("key-value heads", *plan.key_value_heads)
        row("parameters", *savings.num_parameters)
        if savings.key_value_bytes is not None:
            row("key-value cache, bytes a token", *savings.key_value_bytes)
    output.print(table)
    if savings is None:
        output.print("Zero-filled: every shape stays, and nothing gets faster or smaller.")
        return
    if not isinstance(plan, Plan):
        if plan.uniform is None:
            output.print("Layers keep different numbers of neurons: a modelling file in the checkpoint builds them.")
        return
    before, after = plan.key_value_heads
    if plan.emptied:
        output.print(f"Layers that lose all heads: {', '.join(map(str, plan.emptied))}.")
    if stay := plan.kept_after_all:
        output.print(
            f"{len(stay)} of {len(plan.asked)} selected heads stay: their groups keep others, and groups must have one size."
        )
    if indexed := sum(layer.index is not None for layer in plan.layers):
        output.print(
            f"{indexed} layers have groups of different sizes: an index in the checkpoint says which head uses which keys."
        )
    if after > before:
        output.print(
            Text.assemble(
                ("Repeating key-value heads costs more cache than the removal saves.", "yellow"),
                f" Choose --uneven {choices}, or select whole groups with `headcount select --unit group`.",
            )
        )
