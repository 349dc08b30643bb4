"""What was asked for with --until-decided and --search."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from headcount.errors import InputError

if TYPE_CHECKING:
    from headcount.analysis import ShareSearch, UntilDecided


@dataclass(frozen=True, kw_only=True)
class Early:
    """When to stop asking under a policy, and the scores whose removable share is searched for."""

    rule: "UntilDecided"
    scores: list[str]
    search: "ShareSearch"

    @classmethod
    def asked(
        cls,
        *,
        until_decided: bool,
        metric: str | None,
        higher_is_better: bool | None,
        margin: float | None,
        confidence: float | None,
        search: Sequence[str],
        largest_share: float | None,
        resolution: float | None,
    ) -> Self | None:
        """From options that may not be given; None to ask every question.

        Raises:
            InputError: an option that goes with another one that is not there, or a number that makes no sense.
        """
        from headcount.analysis import ShareSearch, UntilDecided
        from headcount.scores import select_scores

        of_rule = {"metric": metric, "margin": margin, "confidence": confidence}
        of_rule |= {"higher_is_better": higher_is_better}
        of_search = {"largest": largest_share, "resolution": resolution}
        if not search and any(value is not None for value in of_search.values()):
            raise InputError("--largest-share and --resolution go with --search: say of which score, --search ahon_ln.")
        if not (search or until_decided):
            if margin is not None or confidence is not None:
                raise InputError("--margin and --confidence go with --until-decided or --search. Add one of them.")
            return None
        return cls(
            rule=UntilDecided(**{name: value for name, value in of_rule.items() if value is not None}),
            scores=[score.id for score in select_scores("all" if "all" in search else search)] if search else [],
            search=ShareSearch(**{name: value for name, value in of_search.items() if value is not None}),
        )
