"""A run's manifest, ``run.json``: what the run is of and what was asked for, typed and parsed here alone.

It carries a checksum of its content, as a study's does, by which damage and careless editing are found; who computes it
anew can forge it, so everything in it is checked as if a stranger had written it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)

from headcount.errors import RunError
from headcount.files import checksum, read_file
from headcount.store.files import NOTED, damaged
from headcount.units import KINDS, Count, KindId, LayerUnits, MlpUnits, UnitMap

#: Inputs, or questions, whose results are written together.
SHARD = 256
_DEEPEST = 32

Share = Annotated[float, Field(ge=0, le=1)]


class Facts(BaseModel):
    """Facts that are known by name, and others, which are kept as they are."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    def facts(self) -> dict[str, Any]:
        """For JSON: what was given, without defaults."""
        return self.model_dump(exclude_unset=True)


def _fits(layer: LayerUnits) -> LayerUnits:
    heads, groups, index = layer.num_attention_heads, layer.num_key_value_heads, layer.key_value_index
    if index is None and heads % groups:
        raise ValueError(f"{heads} query heads cannot share {groups} key-value heads evenly")
    if index is not None and (len(index) != heads or max(index) >= groups):
        raise ValueError(f"each of {heads} query heads uses one of {groups} key-value heads")
    return layer


Layer = Annotated[LayerUnits, AfterValidator(_fits), PlainSerializer(LayerUnits.facts)]
_Mlp = Annotated[MlpUnits, PlainSerializer(MlpUnits.facts)]


class ModelFacts(Facts):
    name: str = ""
    fingerprint: str | None = None
    dtype: str | None = None
    num_heads: Count | None = None
    layers: list[Layer] = Field(default=[], max_length=10_000)
    mlps: list[_Mlp] = Field(default=[], max_length=10_000)  # of runs of neurons and MLPs

    @field_validator("layers", "mlps")
    @classmethod
    def _once_each(cls, layers: list[Any]) -> list[Any]:
        if len({layer.index for layer in layers}) < len(layers):
            raise ValueError("a layer is there twice")
        return layers


class DataFacts(Facts):
    tasks: list[str] = []
    texts: list[str] = []
    num_inputs: Count | None = None
    num_questions: Annotated[int, Field(ge=0, le=10**7)] = 0
    num_fewshot: Count | None = None
    chat_template: bool | None = None


class Settings(Facts):
    seed: int = 0
    shard: Annotated[int, Field(ge=1, le=10**9)] = SHARD
    unit: KindId = "head"  # what is measured and off; runs of older formats, and those of heads, do not say
    scores_dtype: Literal["float32", "float16"] = "float32"
    summaries: bool = False
    metric: str | None = None
    higher_is_better: bool | None = None


class NotedScore(Facts):
    """As ``headcount.scores.ScoreFacts``."""

    name: str
    unit: str
    inactive_when: Literal["low", "high"]
    source: str


class Measured(Facts):
    scores: list[str]
    num_inputs: Count
    calibration: str | None = None  # its fingerprint, where a score read one


class LeftOut(Facts):
    """Of one score, as ``headcount.thresholding.not_finite`` counts it."""

    not_finite: Annotated[int, Field(ge=0)]
    of: Annotated[int, Field(ge=0)]
    layers: list[Count]


class Thresholds(Facts):
    """Of each score at each share."""

    share: list[Share]
    scores: dict[str, list[Annotated[float, Field(allow_inf_nan=True)]]]
    not_finite: dict[str, LeftOut] = {}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name, values in self.scores.items():
            if len(values) != len(self.share) or any(value != value for value in values):
                raise ValueError(f"{name} has no threshold for each of {len(self.share)} shares")
        if len(set(self.share)) < len(self.share):
            raise ValueError("a share is there twice")
        return self


def curve_of_old(policy: Any, score: Any) -> tuple[Any, Any]:
    """The curve and the score of a policy up to format 3, whose label alone told its source and the layers left alone."""
    if score == "pruned":  # the score of a pruned checkpoint, which has none
        return score, ""
    if not score or not isinstance(score, str) or not isinstance(policy, str):
        return score, score
    at_share, excepted, layers = policy.partition(" except layer ")
    source = at_share.removeprefix(f"{score}:").rpartition(":")[0]
    return (f"{score}:{source}" if source else score) + excepted + layers, score


class NotedPolicy(Facts):
    """As ``headcount.policies.PolicyFacts``."""

    policy: str
    curve: str = ""
    score: str = ""
    share_asked: float | None = None
    threshold: float | None = None
    decides: str = ""

    @model_validator(mode="before")
    @classmethod
    def _of_old(cls, facts: Any) -> Any:
        if not isinstance(facts, dict) or "curve" in facts:
            return facts
        curve, score = curve_of_old(facts.get("policy"), facts.get("score") or "")
        return {**facts, "curve": curve, "score": score}


class RuleFacts(Facts):
    """When asking stops under a policy, as ``headcount.UntilDecided``."""

    metric: str
    margin: Annotated[float, Field(ge=0, lt=1)]
    confidence: Annotated[float, Field(gt=0, lt=1)]
    questions_a_look: Annotated[int, Field(ge=1, le=10**9)]
    higher_is_better: bool | None = None


class Found(Facts):
    within: Share | None
    beyond: Share | None


class Searched(Facts):
    """Where removable shares were looked for, as ``headcount.analysis.ShareSearch``, and between which ends they lie."""

    largest: Share
    resolution: Annotated[float, Field(gt=0, lt=1)]
    scores: dict[str, Found]


class Sealed(Facts):
    """Facts of a run or study in a file of their own, with its checksum. An older format, that had none, is read too."""

    formats: ClassVar[tuple[int, ...]]
    """That can be read, this headcount's last. The first had no checksum."""
    holds: ClassVar[str]  # what tells it from other files

    format: int
    created: str = ""
    command: str = ""
    environment: dict[str, str | bool | None] = {}

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Self:
        """Out of plain facts, in this format. Raises ValueError, which names what is wrong with them."""
        try:
            return cls.model_validate(plain({"format": cls.formats[-1], **facts}))
        except ValidationError as error:
            raise ValueError(first_fault(error)) from None

    @classmethod
    def read(cls, file: Path) -> Self:
        """Out of a file.

        Raises:
            FileNotFoundError: it is not there.
            Damaged: it is not what was written, or another file.
            RunError: another format.
        """
        try:
            facts = _read_json(file)
            if not isinstance(facts.get(cls.holds), dict):
                raise ValueError(f"it says of no {cls.holds}")
            if "checksum" in facts or facts.get("format") in cls.formats[1:]:
                facts = unsealed(facts)  # first: a format that was damaged is no other headcount's
            _check_format(file.parent, facts.get("format"), cls.formats)
            return cls.of(facts)
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(f"There is no {file}") from None
        except (OSError, ValueError) as error:
            raise damaged(file, str(error)) from error

    def changed(self, **facts: Any) -> Self:
        """With other facts, in this headcount's format."""
        return self.of(self.facts() | facts | {"format": self.formats[-1]})

    def content(self) -> bytes:
        """For a file."""
        return sealed(self.facts())


class Manifest(Sealed):
    """What a run is of, how it was begun, and what was asked for so far."""

    formats = (2, 3, 4, 5)
    holds = "model"

    format: int = 5
    model: ModelFacts = ModelFacts()
    data: DataFacts = DataFacts()
    settings: Settings = Settings()
    batch_tokens: Count | None = None
    """Tokens in a batch, which the last digits depend on."""
    scores: dict[str, NotedScore] = {}
    measured: Measured | None = None
    thresholds: Thresholds | None = None
    until_decided: RuleFacts | None = None
    policies: list[NotedPolicy] = []
    searched: Searched | None = None
    metrics: str | None = None
    """The checksum of metrics.parquet."""
    files: list[Annotated[str, Field(max_length=300)]] = []
    """Every shard when this was written, as FOLDER/NAME; those that came since are in ``written.txt``."""

    @field_validator("files")
    @classmethod
    def _shards(cls, files: list[str]) -> list[str]:
        if strange := [name for name in files if not NOTED.fullmatch(name)]:
            raise ValueError(f"{strange[0]!r} is no shard of a run")
        return files

    @property
    def unit(self) -> KindId:
        """The kind of unit that the run is of."""
        return self.settings.unit

    @property
    def units(self) -> UnitMap | None:
        """The units of the run's kind that its model has; None where that is not said."""
        of_attention = KINDS[self.unit].site == "attention"
        layers = tuple(self.model.layers) if of_attention else tuple(self.model.mlps)
        return UnitMap(layers=layers, kind=self.unit) if layers else None

    @property
    def subject(self) -> str:
        """A fingerprint of what the run is of, by which its shards are known."""
        model, data, settings = self.model.fingerprint, self.data.facts(), self.settings.facts()
        return digest({"model": model, "data": data, "settings": settings})


def sealed(facts: Mapping[str, Any]) -> bytes:
    """Facts as JSON, with their checksum; ``created`` and ``command``, in which equal runs differ, have one of their own."""
    made, rest = _apart(facts)
    created = {"at": made["created"], "checksum": digest(made)}
    return json.dumps({**facts, "created": created, "checksum": digest(rest)}, indent=1).encode()


def unsealed(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts out of JSON. Raises ValueError unless they are those that were sealed."""
    try:
        found = {**facts, "created": facts["created"]["at"]}
        known = facts["created"]["checksum"], found.pop("checksum")
    except (LookupError, TypeError):
        known, found = None, {}
    if known != tuple(map(digest, _apart(found))):
        raise ValueError("it was altered since it was written")
    return found


def _apart(facts: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    made = {name: facts.get(name, "") for name in ("created", "command")}
    return made, {name: value for name, value in facts.items() if name not in made}


def digest(facts: Mapping[str, Any]) -> str:
    return checksum(json.dumps(facts, sort_keys=True).encode())


def _read_json(file: Path) -> dict[str, Any]:
    """An object. Raises OSError, or ValueError for anything else."""
    try:
        facts = plain(json.loads(read_file(file)))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(facts, dict):
        raise ValueError("it holds no facts")
    return facts


def _check_format(folder: Path, found: Any, readable: Sequence[int]) -> None:
    """Raise RunError unless this headcount reads the format."""
    if type(found) is not int or found not in readable:
        older = type(found) is int and found < min(readable)
        raise RunError(
            f"{str(folder)!r} has format {found}, this headcount reads format {max(readable)}. "
            + ("It was made by an older headcount: make it again." if older else "Upgrade headcount.")
        )


def plain(value: Any, depth: int = 0) -> Any:
    """As JSON keeps it; a file name that is not UTF-8 with its odd bytes spelled out."""
    if depth > _DEEPEST:
        raise ValueError("it is nested too deeply")
    if isinstance(value, Mapping):
        return {plain(str(name)): plain(entry, depth + 1) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry, depth + 1) for entry in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value).encode("utf-8", "backslashreplace").decode()


def first_fault(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where or 'it'}: {first['msg'][:1].lower()}{first['msg'][1:]}"
