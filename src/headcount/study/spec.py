"""What a study is: models × data × scores × shares, as a YAML file or from Python, checked before anything starts."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from headcount.analysis import ShareSearch, UntilDecided
from headcount.errors import InputError, nearest
from headcount.policies import is_random, read_curve, score_of
from headcount.scores import is_registered, load_scores, of_tokens, select_scores
from headcount.store.names import check_folder_name, slug
from headcount.strict_yaml import read_yaml
from headcount.thresholding import SHARES
from headcount.units import KINDS, KindId

_EXAMPLES = files("headcount.study") / "examples"
_MOST_SAID = 20


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _named(field: str) -> BeforeValidator:
    """A bare string stands for the section with nothing but this field."""
    return BeforeValidator(lambda given: {field: given} if isinstance(given, str) else given)


_Names = Annotated[
    tuple[str, ...], BeforeValidator(lambda given: [given] if isinstance(given, str) else given), Field(min_length=1)
]


class ModelSpec(_Spec):
    """A model, as ``headcount.load`` takes it.

    Attributes:
        model: hub id, local folder, ``.gguf`` file, ``demo`` or ``gemma``.
        name: of its folder in the study; made from ``model`` if not given.
        dtype: ``auto`` (the checkpoint's own), ``float32``, ``bfloat16`` or ``float16``; the study's if not given.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, …
        device_map: spread the model over devices, as in transformers.
        revision: branch, tag or commit on the hub.
        chat_template: put benchmark prompts into its chat template; by its name if not given.
        allow_pickle: load pickle weights, which can run any code.
        trust_remote_code: run code that comes with the checkpoint.
        calibration: file that ``headcount calibrate`` made of it, for scores and replacements that need one.
    """

    model: str = Field(min_length=1)
    name: str | None = Field(default=None, min_length=1)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    device: str = "auto"
    device_map: str | None = None
    revision: str | None = None
    chat_template: bool | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    calibration: str | None = None

    @property
    def label(self) -> str:
        return self.name or self.model


class Tasks(_Spec):
    """Questions of lm-eval tasks: measured, then asked with heads off.

    Attributes:
        tasks: lm-eval tasks or groups.
        name: of their folder in the study; made from ``tasks`` if not given.
        num_fewshot: examples in each prompt; the task's own number if not given.
        limit: questions a task (the first ones), or a share of them below 1.
    """

    tasks: _Names
    name: str | None = Field(default=None, min_length=1)
    num_fewshot: int | None = Field(default=None, ge=0)
    limit: float | None = Field(default=None, gt=0)

    @field_validator("limit")
    @classmethod
    def _countable(cls, limit: float | None) -> float | None:
        if limit is not None and limit >= 1 and not limit.is_integer():
            raise ValueError(f"a whole number of questions, or a share of them below 1, is expected, not {limit}")
        return limit

    @property
    def label(self) -> str:
        return self.name or "+".join(self.tasks)


class Texts(_Spec):
    """Texts, which are only measured.

    Attributes:
        texts: files, or hub data sets, as for ``headcount measure --texts``.
        name: of their folder in the study; made from ``texts`` if not given.
        text_column: column or key that holds the text.
        limit: texts in all.
        max_length: tokens kept of each text, its first.
        too_long: what to do with a text longer than the model's positions.
    """

    texts: _Names
    name: str | None = Field(default=None, min_length=1)
    text_column: str = "text"
    limit: int | None = Field(default=None, ge=1)
    max_length: int | None = Field(default=None, ge=1)
    too_long: Literal["refuse", "cut"] = "refuse"

    @property
    def label(self) -> str:
        return self.name or "+".join(Path(text).stem for text in self.texts)


def _kind(given: Any) -> str:
    return "texts" if isinstance(given, Texts) or (isinstance(given, dict) and "texts" in given) else "tasks"


_Data = Annotated[Annotated[Tasks, Tag("tasks")] | Annotated[Texts, Tag("texts")], Discriminator(_kind)]


#: ``true`` stands for the section as it is by default, ``false`` for none.
_SWITCH = BeforeValidator(lambda given: {} if given is True else None if given is False else given)


class Study(_Spec):
    """Models × data × scores × shares: every pair of a model and data is one run, measured once for all scores.

    For each run every score is measured with no head off, thresholds are taken at ``shares`` of its own scores, and
    the questions are asked of the untouched model, with the heads beyond each threshold off, and with random heads
    off. Share 0 is the untouched model.

    Attributes:
        name: of the study, and of its folder.
        models: models, or their names.
        data: tasks and texts, or names of tasks.
        unit: what is measured and off: ``head``, ``group``, ``attention``, ``neuron`` or ``mlp``.
        scores: ids or aliases, or ``all``. ``random`` among them asks for random heads. ``ID/token`` decides for each token;
            ``ID+mean``, ``ID+linear`` and ``ID+kept`` replace heads by something else than 0, and ``ID+keep-first`` keeps each
            text's first token.
        shares: shares of heads at which thresholds are taken, and which are off; between 0 and 1.
        ask: ask the questions of tasks. Without, they are only measured.
        until_decided: ask in random order, and stop asking under a policy once it is known whether its fall is within a
            margin: ``true``, or a section with ``metric``, ``margin``, ``confidence``, ``questions_a_look`` and, where the
            metric's tasks do not say it, ``higher_is_better``.
        search: find the removable share of each score by asking at one share after the other, each until it is decided,
            instead of asking at every share: ``true``, or a section with ``largest`` and ``resolution``.
        seeds: the first is that of few-shot examples and of the random score; random heads are drawn once for each.
        dtype: of every model that does not say otherwise.
        batch_tokens: tokens in a batch, padding included; a number, so that batches and the last digits are always the same.
        scores_dtype: ``float32``, or ``float16`` for half the disk.
        summaries: keep counts and moments of scores instead of every score.
        shard: inputs, or questions, whose results are written together.
        exclude_layers: layers never touched.
        scores_from: Python files with scores of one's own, which run when the study does.
        include_path: folder with task files of one's own; those that are asked for are code, and run.
        offline: never use the network.

    Raises:
        InputError: fields that are wrong, all of them named.
    """

    name: Annotated[str, AfterValidator(check_folder_name)] = "study"
    models: tuple[Annotated[ModelSpec, _named("model")], ...] = Field(min_length=1)
    data: tuple[Annotated[_Data, _named("tasks")], ...] = Field(min_length=1)
    scores_from: tuple[str, ...] = ()  # before scores, which may be among them
    unit: KindId = "head"  # before scores, which are of it
    scores: _Names = ("all",)
    shares: tuple[Annotated[float, Field(ge=0, le=1)], ...] = SHARES
    ask: bool = True
    until_decided: Annotated[UntilDecided | None, _SWITCH] = None
    search: Annotated[ShareSearch | None, _SWITCH] = None
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    batch_tokens: int = Field(default=4096, ge=1)
    scores_dtype: Literal["float32", "float16"] = "float32"
    summaries: bool = False
    shard: int = Field(default=256, ge=1)
    exclude_layers: tuple[Annotated[int, Field(ge=0)], ...] = ()
    include_path: str | None = None
    offline: bool = False

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise InputError(_sentence(error)) from None

    @classmethod
    def read(cls, file: str | os.PathLike[str]) -> Self:
        """A study from a YAML file, or by the name of one that comes with headcount (``demo``, ``paper``, …).

        Raises:
            InputError: no such file, not YAML, or wrong fields, all of them named.
        """
        path = Path(file)
        shipped = {entry.name.removesuffix(".yaml"): entry for entry in _EXAMPLES.iterdir()}
        source = path if path.is_file() else shipped.get(os.fspath(file).removesuffix(".yaml"))
        if source is None:
            raise InputError(
                f"There is no study {os.fspath(file)!r}. Give a YAML file, or one that comes with headcount: "
                f"{', '.join(sorted(shipped))}."
            )
        fields = read_yaml(source)
        if not isinstance(fields, dict):
            raise InputError(f"{os.fspath(file)!r} holds no fields; a study has at least `models:` and `data:`.")
        fields.setdefault("name", slug(path.stem))
        try:
            return cls(**fields)
        except InputError as error:
            raise InputError(f"{os.fspath(file)}: {error}") from None

    @classmethod
    def saved(cls, fields: Mapping[str, Any]) -> Self:
        """A study as its folder says what it was. Nothing is looked up or run: its scores are names."""
        named = {field: tuple(map(str, fields[field])) for field in ("scores_from", "scores")}
        return cls(**{name: value for name, value in fields.items() if name not in named}).model_copy(update=named)

    @field_validator("scores_from")
    @classmethod
    def _there(cls, scores_from: tuple[str, ...]) -> tuple[str, ...]:
        for file in scores_from:
            if not Path(file).is_file():
                raise ValueError(f"There is no file {file!r} to load scores from")
        return scores_from

    @field_validator("scores")
    @classmethod
    def _known(cls, scores: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if scores == ("all",):
            return scores
        own = [name for name in scores if not is_registered(score_of(name))] if info.data.get("scores_from") else []
        unit, curves = info.data.get("unit", "head"), [name if name in own else read_curve(name) for name in scores]
        select_scores([of for name in curves if name not in own and not is_random(of := score_of(name))] or "all", unit)
        return tuple(dict.fromkeys(curves))

    def with_own_scores(self) -> Self:
        """The same, with the scores of its files registered, which runs them: to measure and to ask, not to look.

        Raises:
            InputError: a file that cannot be run, or a score that none of them has.
        """
        for file in self.scores_from:
            load_scores(file)
        scores = self.scores if self.scores == ("all",) else tuple(dict.fromkeys(map(read_curve, self.scores)))
        return self.model_copy(update={"scores": scores})

    @field_validator("models", "data")
    @classmethod
    def _told_apart(cls, entries: tuple[Any, ...]) -> tuple[Any, ...]:
        labels = [slug(entry.label) for entry in entries]
        alike = Counter(label.casefold() for label in labels)  # as some file systems compare
        if twice := sorted(label for label in labels if alike[label.casefold()] > 1):
            raise ValueError(f"two of them are called {twice[0]!r}: give one a `name:` of its own")
        return entries

    def curves(self) -> list[str]:
        """What is asked at each share: scores, or scores with what stands for heads that are off."""
        return [score.id for score in select_scores("all", self.unit)] if self.scores == ("all",) else list(self.scores)

    def score_ids(self) -> list[str]:
        """What is measured."""
        return list(dict.fromkeys(map(score_of, self.curves())))

    @property
    def summarised(self) -> bool:
        """Whether counts and moments are kept instead of every score; of tokens and of neurons they always are."""
        return self.summaries or of_tokens(self.score_ids()) or KINDS[self.unit].many

    def rule(self) -> UntilDecided | None:
        """When to stop asking under a policy; None to ask every question."""
        return self.until_decided or (UntilDecided() if self.search else None)

    def num_policies(self, scores: Sequence[str] = ()) -> int:
        """Policies to ask under, the untouched model among them; 0 if nothing is to be asked. Of ``scores``, if given.

        A search asks under some it chooses: here as many as bisection would, which is more than it takes on average.
        """
        if not self.ask or not (self.shares or self.search):
            return 0
        ids = scores or self.curves()
        if search := self.search:
            return 1 + len(ids) * search.bisections()
        random = sum(map(is_random, ids))
        return 1 + len({share for share in self.shares if share > 0}) * (len(ids) - random + random * len(self.seeds))

    def cells(self) -> Iterator[tuple[ModelSpec, Tasks | Texts]]:
        """Every pair of a model and data, models outermost."""
        return ((model, data) for model in self.models for data in self.data)


def _sentence(error: ValidationError) -> str:
    """Every wrong field: where it is, what is wrong, what was given."""
    errors = error.errors()
    places = [details["loc"] for details in errors]

    def follows(details: Any) -> bool:  # a list whose entries are wrong counts as too short as well
        place = details["loc"]
        return details["type"] == "too_short" and any(other[: len(place)] == place != other for other in places)

    errors = [details for details in errors if not follows(details)]
    count = "a wrong field" if len(errors) == 1 else f"{len(errors)} wrong fields"
    more = [f"And {len(errors) - _MOST_SAID} more."] * (len(errors) > _MOST_SAID)
    return f"The study has {count}. {' '.join([*map(_wrong, errors[:_MOST_SAID]), *more])}"


def _wrong(details: Any) -> str:
    place = list(details["loc"])
    kind = place.pop(2) if place[0] == "data" and len(place) > 2 else None
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    cause = details.get("ctx", {}).get("error")
    if details["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        data = Texts if kind == "texts" else Tasks
        parts = {"models": ModelSpec, "data": data, "until_decided": UntilDecided, "search": ShareSearch}
        spec = Study if len(place) == 1 else parts[place[0]]
        said = f"there is no such field. {nearest(str(place[-1]), signature(spec).parameters)}"
    elif details["type"] == "missing":
        said = "is missing."
    elif details["type"] == "too_short":
        said = "is empty; at least one is expected."
    elif isinstance(cause, Exception):
        said = str(cause).rstrip(".") + "."
    else:
        said = f"{details['msg'][:1].lower()}{details['msg'][1:]}, not {details['input']!r:.60}."
    return f"{where}: {said}"
