"""The calibration that a pass reads, held to the model."""

from collections.abc import Iterable, Sequence

from transformers import PreTrainedModel

from headcount.calibration import Calibration
from headcount.models.loading import fingerprint
from headcount.models.observe import units_of
from headcount.policies import Policy
from headcount.policies.policy import calibration_of
from headcount.scores import Score


def calibration_for(
    model: PreTrainedModel, policies: Sequence[Policy], scores: Iterable[Score], given: Calibration | None
) -> Calibration | None:
    """What ``calibration_of`` finds, if it is of this model.

    Raises:
        InputError: it is missing, or of another model, or there are two.
    """
    found = calibration_of(policies, scores, given)
    if found is not None:
        found.check(units_of(model), fingerprint(model))
    return found
