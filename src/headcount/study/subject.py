"""One loaded model with what it is to read: what units of work are done on."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headcount.calibration import Calibration
from headcount.evaluation.workload import PART_BATCHES, Workload, even_size
from headcount.models.batching import batch_tokens_for, check_lengths, data_fingerprint
from headcount.models.chat import expects_chat
from headcount.models.loading import default_name, fingerprint, load
from headcount.models.observe import scores_of, units_of
from headcount.study.progress import Announce, announced, silent
from headcount.study.spec import ModelSpec, Tasks, Texts
from headcount.units import KINDS, KindId

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from headcount.evaluation.benchmark import Benchmark


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    spec: ModelSpec
    """How it was loaded."""
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    calibration: Calibration | None = None
    """For scores and replacements that need one; raises ModelError if it is of another model."""

    def __post_init__(self) -> None:
        if self.calibration is not None:  # before minutes of work
            self.calibration.check(units_of(self.model), fingerprint(self.model))

    @property
    def name(self) -> str:
        """For people and for manifests."""
        return default_name(self.spec.model)

    def facts(self, unit: KindId) -> dict[str, Any]:
        """The manifest's ``model``."""
        units = units_of(self.model)
        of_mlps = KINDS[unit].site == "mlp"
        return {
            "name": self.name,
            "fingerprint": fingerprint(self.model),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "num_heads": units.num_units,
            "expects_chat": dict(zip(("answer", "why"), self.expects_chat(), strict=True)),
            "layers": [layer.facts() for layer in units.layers],
            **({"mlps": [layer.facts() for layer in units_of(self.model, unit).layers]} if of_mlps else {}),
        }

    def expects_chat(self) -> tuple[bool, str]:
        """Whether prompts go into its chat template unless something else is asked for, and why."""
        return expects_chat(self.name, self.tokenizer)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A loaded model and its inputs.

    Attributes:
        model: the model.
        data: the manifest's ``data``.
        rows: token ids of every input.
        benchmark: what is asked; None for texts.
        batch_tokens: tokens in a batch.
        unit: what is measured and off.
    """

    model: LoadedModel
    data: dict[str, Any]
    rows: list[list[int]]
    benchmark: "Benchmark | None"
    batch_tokens: int
    unit: KindId = "head"

    def workload(self) -> Workload:
        if self.benchmark is not None:
            return self.benchmark.workload()
        return Workload(tokens=(), at_once=PART_BATCHES * self.batch_tokens)

    def facts(self) -> "SubjectFacts":
        return SubjectFacts(
            model=self.model.facts(self.unit), data=self.data, inputs=tuple(map(len, self.rows)), workload=self.workload(),
            batch_tokens=self.batch_tokens, unit=self.unit,
            all_scores=tuple(score.id for score in scores_of(self.model.model, "all", self.unit)),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SubjectFacts:
    """What a subject is, for those who do not hold it: the manifest's ``model`` and ``data``, and how much there is."""

    model: dict[str, Any]
    data: dict[str, Any]
    inputs: tuple[int, ...]
    """Tokens of each."""
    workload: Workload
    """Of the questions; of none for texts."""
    batch_tokens: int
    unit: KindId
    """What is measured and off."""
    all_scores: tuple[str, ...]
    """Those that ``all`` stands for."""

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_questions(self) -> int:
        return len(self.workload.tokens)

    def shard(self, most: int) -> int:
        """Inputs that are measured at a time: ``most``, or fewer where they are long."""
        return even_size(self.inputs, at_once=self.workload.at_once, most=most)


def load_model(spec: ModelSpec, *, dtype: str = "auto", announce: Announce = silent) -> LoadedModel:
    """Load a model; ``dtype`` is for one that does not say its own."""
    with announced(announce, "Loading the model"):
        model, tokenizer = load(
            spec.model, dtype=spec.dtype or dtype, device=spec.device, device_map=spec.device_map,
            revision=spec.revision, allow_pickle=spec.allow_pickle, trust_remote_code=spec.trust_remote_code,
        )  # fmt: skip
    return LoadedModel(spec=spec, model=model, tokenizer=tokenizer, calibration=read_calibration(spec.calibration))


def read_calibration(path: str | os.PathLike[str] | None) -> Calibration | None:
    """A calibration from its file, read once however many ask for it; None for None."""
    if path is None:
        return None
    try:
        changed = os.stat(path).st_mtime_ns
    except OSError:
        changed = 0  # `load` says what is wrong
    return _load_calibration(os.fspath(path), changed)


@functools.lru_cache(maxsize=1)
def _load_calibration(path: str, changed: int) -> Calibration:
    return Calibration.load(path)


def read_data(
    loaded: LoadedModel,
    data: Tasks | Texts,
    *,
    chat_template: bool | None = None,
    offline: bool = False,
    include_path: str | Path | None = None,
    batch_tokens: int | None = None,
    seed: int = 0,
    unit: KindId = "head",
    announce: Announce = silent,
) -> Subject:
    """Prepare what a model is to read.

    Arguments are those of ``Benchmark``, and:

    Args:
        loaded: the model.
        data: tasks or texts.
        chat_template: None puts prompts into the model's chat template if it is an instruct model.
        offline: never use the network.
        unit: what is to be measured and off.
        announce: begins a step of progress.

    Raises:
        InputError: texts that cannot be read or are too long, or a chat template that the model lacks.
        TaskError: a task that cannot be had.
    """
    batch_tokens = batch_tokens_for(
        loaded.model, batch_tokens
    )  # once: all shards of a run are read in the same batches
    if isinstance(data, Texts):
        with announced(announce, "Reading the texts"):
            rows = text_rows(loaded, data)
        facts = data.model_dump(mode="json", exclude={"name"})
        facts |= {"num_inputs": len(rows), "fingerprint": data_fingerprint(rows)}
        return Subject(model=loaded, data=facts, rows=rows, benchmark=None, batch_tokens=batch_tokens, unit=unit)
    with announced(announce, "Preparing the questions"):
        from headcount.evaluation.benchmark import Benchmark

        benchmark = Benchmark(
            loaded.model, list(data.tasks), tokenizer=loaded.tokenizer, num_fewshot=data.num_fewshot, limit=data.limit,
            chat_template=loaded.expects_chat()[0] if chat_template is None else chat_template,
            batch_tokens=batch_tokens, seed=seed, offline=offline or None, include_path=include_path,
            calibration=loaded.calibration, unit=unit,
        )  # fmt: skip
        facts = {"tasks": list(data.tasks)} | benchmark.facts()
    return Subject(
        model=loaded, data=facts, rows=benchmark.inputs(), benchmark=benchmark, batch_tokens=batch_tokens, unit=unit
    )


def read_texts(data: Texts) -> tuple[str, ...]:
    """The texts, read once however many models read them."""
    return _read(data.texts, data.text_column, data.limit)


@functools.lru_cache(maxsize=4)
def _read(texts: tuple[str, ...], column: str, limit: int | None) -> tuple[str, ...]:
    from headcount.texts import load_texts

    return tuple(load_texts(texts, column=column, limit=limit))


def text_rows(loaded: LoadedModel, data: Texts) -> list[list[int]]:
    """The texts as token ids, as long as they may be."""
    from headcount.measure import token_ids

    rows = [row[: data.max_length] for row in token_ids(read_texts(data), loaded.tokenizer)]
    return check_lengths(rows, loaded.model, too_long=data.too_long)[0]
