"""Options that several commands share, alone or in groups, which a command takes as one (``grouped``)."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from headcount.errors import InputError, RunError

if TYPE_CHECKING:
    from headcount.study.spec import ModelSpec

_data = partial(typer.Option, rich_help_panel="Data")
_model = partial(typer.Option, rich_help_panel="Model")
_early = partial(typer.Option, rich_help_panel="Stopping early")
replacement_option = partial(typer.Option, rich_help_panel="Replacement")


def _place(text: str) -> Path:
    if not text.strip() or "\0" in text:
        raise RunError(f"{text!r} is no name of a file or folder. Give another, or leave the option out.")
    return Path(text)


def path_option(*names: str, help: str, **more: Any) -> Any:
    """An option that names a file or folder."""
    return typer.Option(*names, help=help, parser=_place, metavar="PATH", **more)


def _load_scores(files: list[Path] | None) -> list[Path] | None:
    if files:
        from headcount.scores import load_scores

        for file in files:
            load_scores(file)
    return files


RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)]
RunFolders = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN…", help="Folders of runs; the first is shown, the others are compared with it.", show_default=False
    ),
]
ScoresFrom = Annotated[
    list[Path] | None,
    path_option(
        "--scores-from",
        callback=_load_scores,
        help="Python file with scores of your own, which runs; repeat for several.",
    ),
]
Output = Annotated[
    Path | None, path_option("--output", "-o", help="Folder of the run. [default: runs/MODEL-DATA-TIME]")
]
Task = Annotated[list[str] | None, _data("--task", "-t", help="lm-eval task or group; repeat for several.")]
Texts = Annotated[list[str] | None, _data(help=".txt, .jsonl or .parquet files, or hub data sets; repeat for several.")]
TooLong = Annotated[str, _data(help="A text longer than the model's positions: refuse, or cut its end off.")]
TextColumn = Annotated[str, _data(help="Column or key that holds the text.")]
BatchTokens = Annotated[
    int | None, typer.Option(min=1, help="Tokens in a batch, padding included. [default: as many as suit the memory]")
]
FittingBatch = Annotated[int, typer.Option("--batch-tokens", min=1, help="Tokens in a batch, padding included.")]
Calibration = Annotated[
    Path | None,
    path_option(
        "--calibration",
        help="File that `headcount calibrate` made of MODEL, for scores and replacements that need one.",
        rich_help_panel="Model",
    ),
]
Unit = Annotated[
    Literal["head", "group", "attention", "neuron", "mlp"]
    | None,  # as headcount.units.KINDS, which imports too much here
    typer.Option(
        help="What is measured and off: head, group, attention, neuron or mlp. A run is of one kind. [default: that of the "
        "run, or head]",
        metavar="KIND",
    ),
]
Seed = Annotated[int, typer.Option(help="Of random heads and few-shot samples.")]


@dataclass(frozen=True, kw_only=True)
class Loading:
    """Which model, and how it is loaded."""

    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Hub id, local folder, .gguf file, **demo** or **gemma**.", show_default=False
        ),
    ]
    dtype: Annotated[str, _model(help="auto (the checkpoint's own), float32, bfloat16 or float16.")] = "auto"
    device: Annotated[str, _model(help="auto, cpu, cuda, cuda:1, …")] = "auto"
    device_map: Annotated[
        str | None, _model(help="Spread the model over devices, as in transformers: auto, balanced, …")
    ] = None
    revision: Annotated[str | None, _model(help="Branch, tag or commit on the hub.")] = None
    allow_pickle: Annotated[bool, _model("--allow-pickle", help="Load pickle weights, which can run any code.")] = False
    trust_remote_code: Annotated[
        bool, _model("--trust-remote-code", help="Run code that comes with the checkpoint.")
    ] = False

    def spec(self, calibration: Path | None = None) -> "ModelSpec":
        from headcount.study.spec import ModelSpec

        return ModelSpec.model_construct(**vars(self), calibration=calibration and str(calibration))


@dataclass(frozen=True, kw_only=True)
class Questions:
    """Of tasks: how many, how they are put, and where they come from."""

    num_fewshot: Annotated[int | None, _data(min=0, help="Examples in each prompt. [default: the task's]")] = None
    limit: Annotated[float | None, _data(help="Questions a task (or a share of them below 1), or texts.")] = None
    chat_template: Annotated[
        bool | None,
        _data(
            "--chat-template/--no-chat-template",
            help="Put prompts into the model's chat template. [default: for instruct models]",
        ),
    ] = None
    offline: Annotated[
        bool, _data("--offline", help="Never use the network: benchmarks from the benchmark package.")
    ] = False
    include_path: Annotated[
        Path | None,
        path_option(
            "--include-path",
            help="Folder with lm-eval task files of your own. A task file is code: one that is asked for runs.",
            rich_help_panel="Data",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Judging:
    """What accuracy is."""

    metric: Annotated[
        str | None, typer.Option(help="lm-eval metric for accuracy. [default: acc, or the first that can be judged]")
    ] = None
    higher_is_better: Annotated[
        bool | None,
        typer.Option(
            "--higher-is-better/--lower-is-better",
            help="Which way the metric is better. [default: as its task says]",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Replacing:
    """What replaces removed heads."""

    replace: Annotated[
        Literal["zero", "mean", "refit"] | None,
        replacement_option(
            help="What replaces removed heads: zero (nothing), mean (their mean output, in a bias), or refit (the heads that "
            "stay, by ridge regression). [default: refit; zero for neurons, which have no refit]",
        ),
    ] = None
    ridge: Annotated[float, replacement_option(help="Of the refit, in units of the mean variance.")] = 0.01

    def how(self, kind: str) -> Literal["zero", "mean", "refit"]:
        """What replaces removed units of the kind."""
        return self.replace or ("zero" if kind == "neuron" else "refit")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Which texts are learnt from, and how much of each."""

    text_column: TextColumn = "text"
    num_texts: Annotated[int, _data(min=1, help="Texts, in all.")] = 128
    max_length: Annotated[int, _data(min=2, help="First tokens of each text.")] = 512


@dataclass(frozen=True, kw_only=True)
class Stopping:
    """When to stop asking under a policy, and the scores whose removable share is searched for."""

    until_decided: Annotated[
        bool,
        _early(
            "--until-decided",
            help="Ask in random order, and stop asking under a policy once it is known whether its fall is within --margin.",
        ),
    ] = False
    margin: Annotated[
        float | None,
        _early(help="Fall of the metric that is tolerated, as a fraction: 0.01 is one point. [default: 0.01]"),
    ] = None
    confidence: Annotated[float | None, _early(help="Of each policy's verdict. [default: 0.95]")] = None
    search: Annotated[
        list[str] | None,
        _early(
            metavar="ID",
            help="Find the removable share of this score, asking at one share after the other, each until it is decided; "
            "repeat for several, or all.",
        ),
    ] = None
    largest_share: Annotated[float | None, _early(help="Of the search; it is asked first. [default: 0.30]")] = None
    resolution: Annotated[
        float | None, _early(help="The search ends when the share is known to this. [default: 0.01]")
    ] = None

    def asked(self, judging: Judging) -> dict[str, Any]:
        """For ``evaluate_run``: rule, scores and range of the search; nothing to ask every question.

        Raises:
            InputError: an option that goes with another one that is not there, or a number that makes no sense.
        """
        from headcount.analysis import ShareSearch, UntilDecided

        of_rule: dict[str, Any] = {"margin": self.margin, "confidence": self.confidence}
        of_search = {"largest": self.largest_share, "resolution": self.resolution}
        if not self.search and any(value is not None for value in of_search.values()):
            raise InputError("--largest-share and --resolution go with --search: say of which score, --search ahon_ln.")
        if not (self.search or self.until_decided):
            if any(value is not None for value in of_rule.values()):
                raise InputError("--margin and --confidence go with --until-decided or --search. Add one of them.")
            return {}
        of_rule |= vars(judging)
        return {
            "until_decided": UntilDecided(**{name: value for name, value in of_rule.items() if value is not None}),
            "search": self.search or (),
            "search_range": ShareSearch(**{name: value for name, value in of_search.items() if value is not None}),
        }
