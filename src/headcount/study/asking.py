"""What a run asks of its questions beside the untouched model, and when it is enough."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from headcount.analysis import ShareSearch, UntilDecided
from headcount.calibration import Calibration
from headcount.errors import InputError
from headcount.policies import BASELINE, Policy, Threshold, check_policy
from headcount.resolving import policy_at
from headcount.scores import of_tokens
from headcount.store import is_run


@dataclass(frozen=True, kw_only=True)
class Asking:
    """What is asked, as a whole.

    Attributes:
        policies: to ask under; those of a share get their threshold from measured scores.
        rule: when to stop asking under a policy; None asks every question.
        searched: curves (``ahon_ln``, ``ahon_ln/token+mean``) whose removable share is searched for; needs a rule.
        search: where it is searched for.
        exclude_layers: layers that a search never touches.
        thresholds_from: another run, whose scores give the thresholds; None for this run's own.
        pruned: folders of checkpoints that ``headcount prune`` made from the model, to ask as well.
        calibration: of the model, for those that need one.

    Raises:
        InputError: nothing to stop asking under, or pruned checkpoints, which are asked every question, with a rule.
    """

    policies: tuple[Policy, ...] = ()
    rule: UntilDecided | None = None
    searched: tuple[str, ...] = ()
    search: ShareSearch = field(default_factory=ShareSearch)
    exclude_layers: frozenset[int] = frozenset()
    thresholds_from: str | os.PathLike[str] | None = None
    pruned: tuple[Path, ...] = ()
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        names = [BASELINE, *(policy.label for policy in self.policies)]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise InputError(f"Two policies are called {twice!r}. Give each a name of its own.")
        for policy in (*self.policies, *(looks := self._looks())):
            check_policy(policy)
        if sought := next(
            (policy.label for policy in looks if isinstance(policy, Threshold) and policy.realised), None
        ):
            raise InputError(
                f"A search looks at shares as they come about already: leave {sought.partition(':')[0]}'s out."
            )
        if self.rule is not None and self.pruned:
            raise InputError(
                "Pruned checkpoints are asked every question: leave out --pruned, or --until-decided and --search."
            )
        if self.rule is not None and not (self.policies or self.searched):
            raise InputError("Say under which policies to ask until it is decided: --policy ID:SHARE, or --search ID.")

    def shares(self) -> list[float]:
        """At which the policies need thresholds."""
        return sorted({policy.wants.share for policy in self.policies if policy.wants})

    def scores(self) -> list[str]:
        """That thresholds come from."""
        every = (*self.policies, *self._looks())
        return list(dict.fromkeys(policy.wants.score for policy in every if policy.wants))

    def _looks(self) -> list[Policy]:
        """The first of each search."""
        return [policy_at(curve, self.search.largest, calibration=self.calibration) for curve in self.searched]

    def kept(self, folder: str | os.PathLike[str]) -> dict[str, bool]:
        """How scores are kept in a folder where no run is yet: those of tokens as summaries."""
        new = self.thresholds_from is None and not is_run(Path(folder))
        return {"summaries": True} if new and of_tokens(self.scores()) else {}
