"""``headcount calibrate``: what calibrated scores and replacements need of a model, measured once on texts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headcount.cli import options
from headcount.cli.app import app, grouped
from headcount.cli.console import output, said_bytes, steps
from headcount.errors import InputError

if TYPE_CHECKING:
    from headcount.calibration import Calibration
    from headcount.study.cost import CalibrationCost


@app.command()
@grouped()
def calibrate(
    output_file: Annotated[
        Path, options.path_option("--output", "-o", help="File of the calibration, safetensors.", show_default=False)
    ],
    texts: options.Texts = None,
    covariances: Annotated[
        bool,
        typer.Option(
            "--covariances/--no-covariances",
            help="Of head outputs and block inputs, for predictions; else means alone.",
        ),
    ] = True,
    sensitivity: Annotated[
        bool,
        typer.Option(
            "--sensitivity/--no-sensitivity",
            help="Of the model's predictions to what each layer's attention writes; needs gradients.",
        ),
    ] = True,
    gradients: Annotated[
        bool, typer.Option("--gradients", help="Also keep the mean outer product of these gradients, a matrix a layer.")
    ] = False,
    *,
    reading: options.Reading,
    too_long: options.TooLong = "refuse",
    loading: options.Loading,
    batch_tokens: options.BatchTokens = None,
    memory: Annotated[
        float,
        typer.Option(min=0.001, help="GB that covariances may take while they are summed, as many layers as fit."),
    ] = 2.0,
    seed: Annotated[int, typer.Option(help="Of the tokens drawn from the model's predictions.")] = 0,
) -> None:
    """Measure means, covariances and sensitivities of every attention layer, for scores and replacements that need them."""
    if not texts:
        raise InputError("Say what the model should read: --texts FILE.")
    with steps() as progress:
        from headcount.calibrating import calibrate as measure
        from headcount.calibrating import new_file
        from headcount.cli.reading import first_texts, first_tokens
        from headcount.cli.runs import command_line
        from headcount.models.batching import batch_tokens_for
        from headcount.store.parts import parts_folder
        from headcount.study.cost import calibration_cost, device_rate
        from headcount.study.subject import load_model

        new_file(output_file, sensitivity=sensitivity, gradients=gradients)
        read = first_texts(texts, reading)
        loaded = load_model(loading.spec(), announce=progress.start)
        model = loaded.model
        what = {
            "covariances": covariances, "sensitivity": sensitivity, "gradients": gradients,
            "memory": int(memory * 1e9), "batch_tokens": batch_tokens_for(model, batch_tokens),
        }  # fmt: skip

        def say(rows: list[list[int]]) -> None:
            lengths = [len(row) for row in rows]
            _say_cost(calibration_cost(model, lengths, **what), lengths, device_rate(model.device, model.dtype))
            progress.keep_in(parts_folder(output_file), output_file)

        found = measure(
            model, first_tokens(read, loaded.tokenizer, reading), seed=seed, too_long=too_long, into=output_file,
            name=loaded.name, command=command_line(), prepared=say, progress=progress.start, **what,
        )  # fmt: skip
    _say_found(found, output_file)


def _say_cost(cost: "CalibrationCost", lengths: list[int], rate: float) -> None:
    output.say(
        f"{len(lengths)} texts, {sum(lengths):,} tokens: a file of {said_bytes(cost.file_bytes)}, at most about "
        f"{said_bytes(cost.memory_bytes)} of memory beside the model, and about {_duration(cost.operations / rate)} on this "
        f"machine ({rate / 1e9:,.0f} GFLOP/s, from a matrix product just now; expect a factor of 2)."
    )


def _duration(seconds: float) -> str:
    """About how long.

    >>> _duration(200)
    '3.3 minutes'
    """
    unit, size = ("seconds", 1) if seconds < 90 else ("minutes", 60) if seconds < 5400 else ("hours", 3600)
    return f"{seconds / size:.2g} {unit}"


def _say_found(found: "Calibration", file: Path) -> None:
    facts, layer = found.facts, next(iter(found.layers.values()))
    names = {"mean": "means", "covariance": "covariances", "sensitivity": "sensitivities", "gradients": "gradients"}
    held = [noun for name, noun in names.items() if name in layer.holds]
    output.say(
        f"Calibrated {facts.units.num_units} heads in {len(found.layers)} layers of {facts.model} on {facts.num_texts} texts, "
        f"{facts.num_tokens:,} tokens: {', '.join(held)}, the first token of each text apart."
    )
    output.say(f"Calibration: {file} ({said_bytes(file.stat().st_size)}, fingerprint {found.fingerprint})")
