"""Options that several commands share."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from headcount.errors import InputError, RunError

if TYPE_CHECKING:
    from headcount.study.spec import ModelSpec

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Hub id, local folder, .gguf file, or **demo**.", show_default=False)
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)]

RunFolders = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN…", help="Folders of runs; the first is shown, the others are compared with it.", show_default=False
    ),
]


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
Task = Annotated[
    list[str] | None,
    typer.Option("--task", "-t", help="lm-eval task or group; repeat for several.", rich_help_panel="Data"),
]
NumFewshot = Annotated[
    int | None,
    typer.Option("--num-fewshot", min=0, help="Examples in each prompt. [default: the task's]", rich_help_panel="Data"),
]
Limit = Annotated[
    float | None,
    typer.Option("--limit", help="Questions a task (or a share of them below 1), or texts.", rich_help_panel="Data"),
]
Offline = Annotated[
    bool,
    typer.Option(
        "--offline", help="Never use the network: benchmarks from the benchmark package.", rich_help_panel="Data"
    ),
]
IncludePath = Annotated[
    Path | None,
    path_option(
        "--include-path",
        help="Folder with lm-eval task files of your own. A task file is code: one that is asked for runs.",
        rich_help_panel="Data",
    ),
]
ChatTemplate = Annotated[
    bool | None,
    typer.Option(
        "--chat-template/--no-chat-template",
        help="Put prompts into the model's chat template. [default: for instruct models]",
        rich_help_panel="Data",
    ),
]
Dtype = Annotated[
    str, typer.Option(help="auto (the checkpoint's own), float32, bfloat16 or float16.", rich_help_panel="Model")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …", rich_help_panel="Model")]
DeviceMap = Annotated[
    str | None,
    typer.Option(help="Spread the model over devices, as in transformers: auto, balanced, …", rich_help_panel="Model"),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.", rich_help_panel="Model")]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Load pickle weights, which can run any code.", rich_help_panel="Model")
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the checkpoint.", rich_help_panel="Model")
]
BatchTokens = Annotated[
    int | None, typer.Option(min=1, help="Tokens in a batch, padding included. [default: as many as suit the memory]")
]
Seed = Annotated[int, typer.Option(help="Of random heads and few-shot samples.")]
Metric = Annotated[
    str | None, typer.Option(help="lm-eval metric for accuracy. [default: acc, or the first that can be judged]")
]
HigherIsBetter = Annotated[
    bool | None,
    typer.Option(
        "--higher-is-better/--lower-is-better",
        help="Which way the metric is better. [default: as its task says]",
    ),
]
_EARLY = "Stopping early"
UntilDecided = Annotated[
    bool,
    typer.Option(
        "--until-decided",
        help="Ask in random order, and stop asking under a policy once it is known whether its fall is within --margin.",
        rich_help_panel=_EARLY,
    ),
]
Margin = Annotated[
    float | None,
    typer.Option(
        help="Fall of the metric that is tolerated, as a fraction: 0.01 is one point. [default: 0.01]",
        rich_help_panel=_EARLY,
    ),
]
Confidence = Annotated[
    float | None, typer.Option(help="Of each policy's verdict. [default: 0.95]", rich_help_panel=_EARLY)
]
SearchFor = Annotated[
    list[str] | None,
    typer.Option(
        "--search",
        metavar="ID",
        help="Find the removable share of this score, asking at one share after the other, each until it is decided; "
        "repeat for several, or all.",
        rich_help_panel=_EARLY,
    ),
]
LargestShare = Annotated[
    float | None, typer.Option(help="Of the search; it is asked first. [default: 0.30]", rich_help_panel=_EARLY)
]
Resolution = Annotated[
    float | None,
    typer.Option(help="The search ends when the share is known to this. [default: 0.01]", rich_help_panel=_EARLY),
]
CalibrationBatch = Annotated[int, typer.Option("--batch-tokens", min=1, help="Tokens in a batch, padding included.")]
Texts = Annotated[
    list[str] | None,
    typer.Option(help=".txt, .jsonl or .parquet files, or hub data sets; repeat for several.", rich_help_panel="Data"),
]
TextColumn = Annotated[str, typer.Option(help="Column or key that holds the text.", rich_help_panel="Data")]
NumTexts = Annotated[int, typer.Option(min=1, help="Texts, in all.", rich_help_panel="Data")]
CalibrationLength = Annotated[int, typer.Option(min=2, help="First tokens of each text.", rich_help_panel="Data")]
Replace = Annotated[
    Literal["zero", "mean", "refit"],
    typer.Option(
        help="What replaces removed heads: zero (nothing), mean (their mean output, in a bias), or refit (the heads that "
        "stay, by ridge regression).",
        rich_help_panel="Replacement",
    ),
]
Distill = Annotated[
    int,
    typer.Option(
        help="Then train what replaces the heads, in so many passes over the texts, towards the original model's "
        "predictions; needs gradients. 0 for none.",
        min=0,
        rich_help_panel="Replacement",
    ),
]
LearningRate = Annotated[
    float | None,
    typer.Option(help="For --distill: of AdamW, at its highest. [default: 3e-4]", rich_help_panel="Replacement"),
]
Ridge = Annotated[
    float, typer.Option(help="Of the refit, in units of the mean variance.", rich_help_panel="Replacement")
]


@dataclass(frozen=True, kw_only=True)
class Loading:
    """Which model, and how it is loaded."""

    model: Model
    dtype: Dtype = "auto"
    device: Device = "auto"
    device_map: DeviceMap = None
    revision: Revision = None
    allow_pickle: AllowPickle = False
    trust_remote_code: TrustRemoteCode = False

    def spec(self) -> "ModelSpec":
        from headcount.study.spec import ModelSpec

        return ModelSpec.model_construct(**vars(self))


@dataclass(frozen=True, kw_only=True)
class Questions:
    """Of tasks: how many, how they are put, and where they come from."""

    num_fewshot: NumFewshot = None
    limit: Limit = None
    chat_template: ChatTemplate = None
    offline: Offline = False
    include_path: IncludePath = None


@dataclass(frozen=True, kw_only=True)
class Judging:
    """What accuracy is."""

    metric: Metric = None
    higher_is_better: HigherIsBetter = None


@dataclass(frozen=True, kw_only=True)
class Stopping:
    """When to stop asking under a policy, and the scores whose removable share is searched for."""

    until_decided: UntilDecided = False
    margin: Margin = None
    confidence: Confidence = None
    search: SearchFor = None
    largest_share: LargestShare = None
    resolution: Resolution = None

    def asked(self, judging: Judging) -> dict[str, Any]:
        """For ``Asking``: rule, scores and range of the search; nothing to ask every question.

        Raises:
            InputError: an option that goes with another one that is not there, or a number that makes no sense.
        """
        from headcount import analysis
        from headcount.scores import select_scores

        of_rule: dict[str, Any] = {"margin": self.margin, "confidence": self.confidence}
        of_search = {"largest": self.largest_share, "resolution": self.resolution}
        if not self.search and any(value is not None for value in of_search.values()):
            raise InputError("--largest-share and --resolution go with --search: say of which score, --search ahon_ln.")
        if not (self.search or self.until_decided):
            if any(value is not None for value in of_rule.values()):
                raise InputError("--margin and --confidence go with --until-decided or --search. Add one of them.")
            return {}
        of_rule |= vars(judging)
        ids = select_scores("all" if "all" in self.search else self.search) if self.search else []
        return {
            "rule": analysis.UntilDecided(**{name: value for name, value in of_rule.items() if value is not None}),
            "searched": tuple(score.id for score in ids),
            "search": analysis.ShareSearch(**{name: value for name, value in of_search.items() if value is not None}),
        }
