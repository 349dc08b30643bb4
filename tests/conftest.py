"""Models that tests share: the demo model, and tiny random ones built from configurations.

PyTorch and transformers are imported where they are used: the process that only hands tests to others needs neither.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.runs import write_tasks

os.environ["TRITON_INTERPRET"] = "1"  # read by Triton when it is first imported, by whichever test

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from headcount.study.folder import StudyFolder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was skipped, in a line for each reason."""
    skipped = terminalreporter.stats.get("skipped", [])
    for reason, count in Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped).items():
        terminalreporter.write_line(f"{count} skipped: {reason}")


@pytest.fixture(scope="session")
def demo() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The demo model in float32, and its tokenizer."""
    from headcount.models.loading import load

    return load("demo", dtype="float32")


@pytest.fixture(scope="session")
def gemma() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Gemma 3 270M in float32, and its tokenizer, where somebody has agreed to its terms and installed it."""
    from headcount.embedded import EMBEDDED
    from headcount.models.loading import load

    if not EMBEDDED["gemma"].installed:
        pytest.skip("Gemma 3 270M is not installed (`headcount fetch gemma` names its terms and installs it)")
    return load("gemma", dtype="float32")


def _build(model_type: str = "llama", *, seed: int = 0, **changes: object) -> PreTrainedModel:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.models.families import COMMON

    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **(COMMON | changes))
    return AutoModelForCausalLM.from_config(config).float().eval()


@pytest.fixture
def tiny() -> Iterator[Callable[..., PreTrainedModel]]:
    """Builds a tiny random model: ``tiny()`` a Llama, ``tiny("qwen2", num_hidden_layers=1)`` another."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine threads waiting for each other take longer than these models
    yield _build
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def letters() -> PreTrainedTokenizerBase:
    """A tokenizer with one token for each printable ASCII character, within the tiny models' vocabulary."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {token: i for i, token in enumerate([*special, "\n", *map(chr, range(32, 127))])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="session")
def subjects(tmp_path_factory: pytest.TempPathFactory, letters: PreTrainedTokenizerBase) -> Path:
    """A folder with ``model`` and ``other`` (tiny Llamas), ``tasks`` (10 questions) and ``text.jsonl`` (9 texts)."""
    folder = tmp_path_factory.mktemp("subjects")
    for seed, name in enumerate(("model", "other")):
        _build(seed=seed, num_hidden_layers=2).save_pretrained(folder / name)
        letters.save_pretrained(folder / name)
    write_tasks(folder / "tasks", questions=10)
    (folder / "text.jsonl").write_text("\n".join(json.dumps({"text": "heads " * n}) for n in range(1, 10)))
    return folder


def _fields(subjects: Path) -> dict[str, Any]:
    return {
        "models": [str(subjects / "model")], "data": ["sums"], "scores": ["ahon_ln", "awft", "random"],
        "shares": [0, 0.1, 0.3], "include_path": str(subjects / "tasks"), "offline": True, "shard": 4,
    }  # fmt: skip


@pytest.fixture
def fields(subjects: Path) -> dict[str, Any]:
    """The fields of a small study."""
    return _fields(subjects)


@pytest.fixture(scope="session")
def _done(subjects: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from headcount.study.running import run_study
    from headcount.study.spec import Study

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the tests that continue it: sums may depend on it
    path = run_study(Study(**_fields(subjects)), tmp_path_factory.mktemp("done") / "study").path
    torch.set_num_threads(threads)
    return path


@pytest.fixture
def done(_done: Path, tmp_path: Path) -> StudyFolder:
    """The finished study of these fields, to change or continue: a copy of its own in ``tmp_path / "study"``."""
    from headcount.study.folder import open_study

    return open_study(shutil.copytree(_done, tmp_path / "study"))
