"""What the commands that make runs have in common: load the model, prepare the data, describe the run."""

import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headcount.cli.console import Steps
from headcount.errors import RunError
from headcount.store import Run, differences, is_run, open_run

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from headcount.evaluation.benchmark import Benchmark


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    name: str
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"


def load_model(name: str, steps: Steps, *, offline: bool = False, **options: Any) -> LoadedModel:
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: it reads this once
    done = steps.start("Loading the model", 1)
    from headcount.models.loading import load

    model, tokenizer = load(name, **options)
    done(1, 1)
    return LoadedModel(name=name, model=model, tokenizer=tokenizer)


def prepare_benchmark(
    loaded: LoadedModel,
    tasks: Sequence[str],
    steps: Steps,
    *,
    chat_template: bool | None,
    offline: bool,
    **options: Any,
) -> "Benchmark":
    from headcount.evaluation.benchmark import Benchmark
    from headcount.models.loading import is_instruct

    if chat_template is None:
        chat_template = is_instruct(loaded.name, loaded.tokenizer)
    done = steps.start("Preparing the questions", 1)
    benchmark = Benchmark(
        loaded.model, tasks, tokenizer=loaded.tokenizer, chat_template=chat_template, offline=offline or None, **options
    )
    done(1, 1)
    return benchmark


def model_facts(loaded: LoadedModel) -> dict[str, Any]:
    """The manifest's ``model``."""
    from headcount.models.instrument import head_geometry
    from headcount.models.loading import default_name, fingerprint

    geometry = head_geometry(loaded.model)
    return {
        "name": default_name(loaded.name),
        "fingerprint": fingerprint(loaded.model),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "num_heads": geometry.num_heads,
        "layers": [vars(layer) for layer in geometry.layers],
    }


def benchmark_facts(benchmark: "Benchmark", tasks: Sequence[str]) -> dict[str, Any]:
    """The manifest's ``data`` for tasks."""
    return {"tasks": list(tasks)} | benchmark.facts()


def versions() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    names = ("headcount", "torch", "transformers", "lm_eval", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def command_line() -> str:
    return shlex.join(["headcount", *sys.argv[1:]])


def default_folder(model: str, data: Sequence[str]) -> Path:
    name = "-".join([Path(model).name, *(Path(item).stem for item in data[:3])])
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)[:60]}-{stamp}"


def open_or_create(folder: Path, facts: dict[str, Any]) -> Run:
    """The run in ``folder`` if it is of the same model, data and seed; a new one if there is none.

    Raises:
        RunError: a run of something else is there.
    """
    if not is_run(folder):
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return Run.create(folder, created=now, command=command_line(), commands=[], versions=versions(), **facts)
    run = open_run(folder)
    run.manifest.setdefault("commands", []).append(command_line())
    same_model = facts["model"]["fingerprint"] == run.manifest.get("model", {}).get("fingerprint")
    parts = ("data", "settings") if same_model else ("model", "data", "settings")  # a path may be spelled another way
    differing = [
        f"{part} {difference}" for part in parts for difference in differences(facts[part], run.manifest.get(part, {}))
    ]
    if differing:
        raise RunError(
            f"{str(folder)!r} is a run of something else: {'; '.join(differing)}. Choose another folder with -o."
        )
    return run
