"""What a calibration was made of, as its file says it."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from headcount.units import Count, LayerUnits, UnitMap

_Said = Annotated[str, Field(max_length=10_000)]
_Tokens = Annotated[int, Field(ge=1, lt=2**63)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class CalibrationTexts(_Strict):
    """Texts that were read in one go: their fingerprint and how many there were."""

    fingerprint: _Said
    num_texts: Count
    num_tokens: _Tokens


class CalibrationFacts(_Strict):
    """What a calibration was made of.

    Attributes:
        model: its name, for people.
        model_fingerprint: as of ``models.loading.fingerprint``.
        dtype: that the model computed in.
        hidden_size: of the residual stream.
        layers: every attention layer of the model.
        texts: one entry for each call that read some.
        seed: of the labels that were drawn for gradients.
        versions: of headcount and of the libraries that the numbers depend on.
    """

    model: _Said
    model_fingerprint: _Said
    dtype: _Said
    hidden_size: Annotated[int, Field(ge=1, le=10**6)]
    layers: Annotated[tuple[LayerUnits, ...], Field(min_length=1)]
    texts: Annotated[tuple[CalibrationTexts, ...], Field(min_length=1)]
    seed: Annotated[int, Field(ge=-(2**127), lt=2**127)]
    versions: dict[str, _Said]

    @property
    def units(self) -> UnitMap:
        return UnitMap(layers=self.layers)

    @property
    def num_texts(self) -> int:
        return sum(texts.num_texts for texts in self.texts)

    @property
    def num_tokens(self) -> int:
        return sum(texts.num_tokens for texts in self.texts)


class Counts(_Strict):
    """The numbers of a layer that are no tensors."""

    count: _Tokens
    first_count: _Tokens
    sensitivity: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None


class FileFacts(_Strict):
    """All that a file says beside its tensors."""

    format: Literal[1]
    fingerprint: _Said
    facts: CalibrationFacts
    counts: dict[str, Counts]
