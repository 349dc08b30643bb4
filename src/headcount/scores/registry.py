"""The catalogue of score functions: one decorated function each, found by id or alias."""

import os
import runpy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from headcount.attention.measurements import (
    CALIBRATED,
    MEASURED,
    MEASUREMENTS,
    OF_TOKENS,
    RAW_TENSORS,
    LayerMeasurements,
)
from headcount.devices import out_of_memory
from headcount.errors import HeadcountError, InputError, nearest
from headcount.scores.facts import ScoreFacts, Side
from headcount.units import KINDS, KindId

ScoreFunction = Callable[[LayerMeasurements], Tensor]
#: What a decision is about.
Rows = Literal["input", "token"]
#: What the ids of scores of tokens end in.
PER_TOKEN = "/token"  # noqa: S105
#: What the ids of scores end in that are over their layer's mean.
_OF_LAYER = "_ln"


@dataclass(frozen=True, kw_only=True)
class Score(ScoreFacts):
    """A score function and the facts about it.

    ``function`` maps one layer's measurements to a number for each example and query head, ``[batch, head]``. ``per`` says
    what an example is: an input, or a token of one.
    """

    function: ScoreFunction
    needs: frozenset[str]
    aliases: tuple[str, ...] = ()
    per: Rows = "input"

    def is_of(self, kind: KindId) -> bool:
        """Whether units of a kind have it: what it reads is measured of them, and it tells those of a layer apart."""
        by_layer = self.id.removesuffix(PER_TOKEN).endswith(_OF_LAYER) and KINDS[kind].one_a_layer
        return self.needs <= MEASURED[kind] and not by_layer

    def facts(self) -> ScoreFacts:
        """Without the function."""
        return ScoreFacts(**{field.name: getattr(self, field.name) for field in fields(ScoreFacts)})

    def __call__(self, measurements: LayerMeasurements) -> Tensor:
        """Raises InputError if the function fails, or gives no numbers."""
        try:
            values = self.function(measurements)
        except Exception as error:
            if isinstance(error, HeadcountError) or out_of_memory(error):  # a smaller batch may fit
                raise
            raise InputError(
                f"Score {self.id!r} fails ({type(error).__name__}: {error}). Correct its function."
            ) from error
        if not isinstance(values, Tensor) or values.is_complex():
            kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
            raise InputError(f"Score {self.id!r} gave {kind}; a tensor of real numbers [batch, head] was expected.")
        return values

    def values(self, measurements: LayerMeasurements, shape: Sequence[int]) -> Tensor:
        """The score of every example and head ``[batch, head]``, of which ``shape`` is the shape.

        Raises:
            InputError: the function fails, or gave another shape.
        """
        values = self(measurements)
        if values.shape != torch.Size(shape):
            raise InputError(
                f"Score {self.id!r} gave shape {tuple(values.shape)}; one number for each example and query head, "
                f"{tuple(shape)}, was expected. Average over tokens with m.token_mean(…)."
            )
        return values

    def inactive(self, values: Tensor, threshold: float) -> Tensor:
        """bool, the shape of ``values``: strictly beyond ``threshold``. NaN (not measured) is never inactive."""
        return values < threshold if self.inactive_when == "low" else values > threshold


_SCORES: dict[str, Score] = {}
_NAMES: dict[str, str] = {}  # lower-case id or alias → id
_FILES: dict[Path, list[Score]] = {}  # files whose scores are registered


def score(
    id: str,
    *,
    name: str,
    needs: Iterable[str],
    inactive_when: Literal["low", "high"],
    unit: str,
    source: str,
    aliases: Iterable[str] = (),
) -> Callable[[ScoreFunction], ScoreFunction]:
    """Register the decorated function as a score.

    Args:
        id: short name, used on the command line and on disk.
        name: name for people.
        needs: the measurements it reads (fields of ``LayerMeasurements``); nothing else is computed for it.
        inactive_when: on which side of a threshold a head counts as inactive.
        unit: unit of the value ("1" for a pure number).
        source: where the definition comes from.
        aliases: other names under which it is found.

    Raises:
        InputError: an unknown measurement, direction, or a name already taken.
    """
    needs, aliases = frozenset(needs), tuple(aliases)
    if unknown := needs - MEASUREMENTS:
        raise InputError(
            f"Score {id!r} needs unknown measurements {sorted(unknown)}. {nearest(min(unknown), MEASUREMENTS)}"
        )
    if inactive_when not in ("low", "high"):
        raise InputError(f"Score {id!r}: inactive_when is 'low' or 'high', not {inactive_when!r}.")
    if odd := next((label for label in (id, *aliases) if set(label) & set("/+:@")), None):
        raise InputError(f"Score name {odd!r} has one of / + : @, which mean something in the text of a policy.")
    for label in (id, *aliases):
        if label.lower() in _NAMES:
            raise InputError(
                f"Score name {label!r} is already taken by {_NAMES[label.lower()]!r}. Choose another name."
            )

    def register(function: ScoreFunction) -> ScoreFunction:
        _SCORES[id] = Score(
            id=id, name=name, function=function, needs=needs, inactive_when=inactive_when, unit=unit, source=source,
            aliases=aliases,
        )  # fmt: skip
        _NAMES.update({label.lower(): id for label in (id, *aliases)})
        return function

    return register


def get_score(name: str) -> Score:
    """The score with this id or alias, in any case; ``ID/token`` is the same function of each token.

    Raises:
        InputError: there is none (the nearest names are said), or it is not defined for a token.
    """
    if not isinstance(name, str):
        raise InputError(f"A score is named by its id, such as 'ahon_ln', not {name!r:.60}.")
    if name.lower().endswith(PER_TOKEN):
        return _of_tokens(get_score(name[: -len(PER_TOKEN)]))
    try:
        return _SCORES[_NAMES[name.lower()]]
    except KeyError:
        known = [*_SCORES, *(alias for s in _SCORES.values() for alias in s.aliases)]
        meant = nearest(name, known)
        if meant.startswith("Known"):
            meant = f"Known: {', '.join(_SCORES)}; one of your own comes with --scores-from FILE."
        raise InputError(f"Unknown score {name!r}. {meant} `headcount scores` lists them all.") from None


def _of_tokens(score: Score) -> Score:
    if score.per == "token":
        raise InputError(f"{score.id}{PER_TOKEN} says {PER_TOKEN!r} twice. Write {score.id}.")
    if whole := score.needs & (RAW_TENSORS - OF_TOKENS):
        raise InputError(
            f"{score.id} reads the layer's {', '.join(sorted(whole))}, which say nothing of a token without those of others. "
            f"Use it per input, {score.id}."
        )
    return replace(score, id=score.id + PER_TOKEN, name=f"{score.name}, per token", per="token", aliases=())


def of_tokens(ids: Iterable[str]) -> bool:
    """Whether scores of tokens are among them."""
    return any(id.endswith(PER_TOKEN) for id in ids)


def is_registered(name: str) -> bool:
    """Whether ``get_score`` finds a score with this id or alias."""
    return name.lower().removesuffix(PER_TOKEN) in _NAMES


class Table(Protocol):
    """Values of scores: an ``xarray.Dataset`` or a ``headcount.summaries.Summary``."""

    @property
    def attrs(self) -> Mapping[Any, Any]: ...


#: The attribute of a table with the facts of scores that are not registered here, by id.
SCORE_FACTS = "score_facts"


def facts_of(name: str, table: Table) -> ScoreFacts | None:
    """What a score in a table is: as it is registered, or else as the table says; None where neither knows it.

    So that a table can be read without running the file that its score came from.
    """
    return get_score(name) if is_registered(name) else table.attrs.get(SCORE_FACTS, {}).get(name)


def inactive_when(name: str, table: Table) -> Side:
    """On which side of a threshold a score in a table is inactive. Raises InputError where that is not known."""
    if (facts := facts_of(name, table)) is None:
        raise InputError(
            f"Unknown score {name!r}: nothing says when it is inactive, as in runs that an older headcount made. Give the "
            "file that it came from with --scores-from FILE."
        )
    return facts.inactive_when


def all_scores() -> list[Score]:
    """Every registered score, in the order of registration."""
    return list(_SCORES.values())


def select_scores(scores: str | Iterable[str], kind: KindId = "head") -> list[Score]:
    """Scores of a kind of unit: ``"all"`` that need no calibration, one name, or several, distinct and in the order given.

    Raises:
        InputError: an unknown name, a score that such units do not have, or nothing given.
    """
    if scores == "all":
        return [score for score in all_scores() if score.is_of(kind) and not score.needs & CALIBRATED]
    if not isinstance(scores, Iterable):
        raise InputError(f"scores is 'all', one id or a list of them, not {scores!r:.60}.")
    names = [scores] if isinstance(scores, str) else list(scores)
    if not names:
        raise InputError("No score was given. Name at least one, or 'all'.")
    chosen = list({s.id: s for s in map(get_score, names)}.values())
    for wrong in (score for score in chosen if not score.is_of(kind)):
        known = ", ".join(score.id for score in select_scores("all", kind))
        raise InputError(f"{KINDS[kind].titled(KINDS[kind].plural)} have no {wrong.id} ({wrong.name}). Known: {known}.")
    return chosen


def load_scores(file: str | os.PathLike[str]) -> list[Score]:
    """Run a Python file that registers scores with ``@headcount.score``; the scores it added.

    Raises:
        InputError: no such file, an error in it, or no score in it.
    """
    path = Path(file).resolve()
    if path in _FILES:
        return _FILES[path]
    if not path.is_file():
        raise InputError(
            f"There is no file {str(file)!r} to load scores from. Give a Python file with @headcount.score functions."
        )
    before, names = set(_SCORES), dict(_NAMES)

    def forget() -> None:  # so that the corrected file can be loaded
        for id in _SCORES.keys() - before:
            del _SCORES[id]
        _NAMES.clear()
        _NAMES.update(names)

    try:
        runpy.run_path(str(path), run_name=path.stem)
    except (Exception, SystemExit) as error:
        forget()
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{str(file)!r} cannot be run ({type(error).__name__}: {error}). Correct it and try again."
        ) from error
    added = [entry for id, entry in _SCORES.items() if id not in before]
    if not added:
        raise InputError(f"{str(file)!r} registers no score. Decorate a function in it with @headcount.score(…).")
    _FILES[path] = added
    return added
