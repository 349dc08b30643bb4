"""What a run's manifest says of its scores: enough to show them without running the file that they came from."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import xarray as xr

from headcount.errors import RunError
from headcount.scores import SCORE_FACTS, ScoreFacts, get_score, is_registered
from headcount.store.manifest import NotedScore
from headcount.summaries import Summary

_Measured = TypeVar("_Measured", xr.Dataset, Summary)


def noted_facts(ids: Iterable[str]) -> dict[str, dict[str, str]]:
    """The facts of registered scores, for a manifest."""
    of_score = {id: asdict(get_score(id).facts()) for id in ids}
    return {id: {name: value for name, value in facts.items() if name != "id"} for id, facts in of_score.items()}


def described(measured: _Measured, noted: Mapping[str, NotedScore], folder: Path) -> _Measured:
    """What was measured, with the facts that the run notes of scores that are not registered here.

    Raises:
        RunError: a score is another one here.
    """
    facts = {
        id: ScoreFacts(id=id, name=of.name, inactive_when=of.inactive_when, unit=of.unit, source=of.source)
        for id, of in noted.items()
    }
    for id, there in facts.items():
        if is_registered(id) and (here := get_score(id)).inactive_when != there.inactive_when:
            raise RunError(
                f"{str(folder)!r} says that {id} is inactive when {there.inactive_when}; here it is inactive when "
                f"{here.inactive_when}. It is another score of that name, or the manifest was altered."
            )
    own = {id: entry for id, entry in facts.items() if not is_registered(id)}
    if own:
        measured.attrs[SCORE_FACTS] = own
    return measured
