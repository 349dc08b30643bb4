"""Policies: which units are off on an input, decided layer by layer from what the layer measures. One file a kind."""

import re
from collections.abc import Iterable
from typing import Any

from headcount.calibration import Calibration
from headcount.errors import InputError
from headcount.policies.fixed import Fixed
from headcount.policies.policy import (
    BASELINE,
    POLICY_COLUMNS,
    PRUNED,
    UNTOUCHED,
    Policy,
    PolicyFacts,
    check_policy,
)
from headcount.policies.random import RANDOM, Random, is_random
from headcount.policies.ranked import Ranked
from headcount.policies.seen import Seen
from headcount.policies.threshold import Threshold

__all__ = [
    "BASELINE", "POLICY_COLUMNS", "PRUNED", "RANDOM", "UNTOUCHED", "Fixed", "Policy", "PolicyFacts", "Random", "Ranked",
    "Seen",
    "Threshold", "Written", "check_policy", "is_random", "parse_policy", "policy_facts", "policy_list",
    "read_curve", "score_of",
]  # fmt: skip

#: Kinds of policies that can be written as text. The first that understands a text has it.
WRITTEN = (Random, Ranked, Threshold)
Written = Random | Ranked | Threshold


def parse_policy(text: str, *, exclude_layers: Iterable[int] = (), seed: int = 0) -> Written:
    """``ID:SHARE``, ``ID@THRESHOLD``, ``random:SHARE``, ``ID:rank:SHARE``, ``ID:published:SHARE`` or ``ID:published/TASK:SHARE``.

    ``ID/token`` and ``random/token`` decide for each token. ``+mean``, ``+linear`` and ``+kept`` after the name say what stands
    in place of 0, and ``+keep-first`` that every text's first token stays as it is: ``ahon_ln/token+mean+keep-first:0.20``.

    Args:
        text: the policy.
        exclude_layers: layers never touched.
        seed: of random heads.

    Raises:
        InputError: another form, an unknown score, or a share outside 0…1.
    """
    for kind in WRITTEN:
        if (policy := kind.parse(text, exclude_layers=exclude_layers, seed=seed)) is not None:
            return policy
    raise InputError(
        f"Policy {text!r} is not understood. Write ID:SHARE (ahon_ln:0.10), ID@THRESHOLD (awft@0.8), random:SHARE, "
        "ID:rank:SHARE, ID:realised:SHARE or ID:published:SHARE."
    )


def read_curve(text: str) -> str:
    """A curve as it is called: a score, or several words of it, such as ``ahon_ln/token+mean+keep-first``.

    Raises:
        InputError: as ``parse_policy``.
    """
    return parse_policy(f"{text}:0.5").facts().curve


def score_of(curve: str) -> str:
    """The id of the score that a curve decides by.

    >>> score_of("ahon_ln/token+mean"), score_of("ahon_ln:rank")
    ('ahon_ln/token', 'ahon_ln')
    """
    return re.split(r"[+: ]", curve, maxsplit=1)[0]


def policy_list(policies: Any, calibration: Calibration | None = None) -> list[Any]:
    """Policies as a list, each with the calibration if it needs one and has none. Raises InputError for what is no list."""
    if isinstance(policies, str) or not isinstance(policies, Iterable):
        raise InputError(f"policies is a list, such as [Random(0.1)], not {policies!r:.60}.")
    return [policy.calibrated(calibration) if isinstance(policy, Policy) else policy for policy in policies]


def policy_facts(policy: Policy | None) -> PolicyFacts:
    """How tables name a policy; None is the untouched model."""
    return UNTOUCHED if policy is None else policy.facts()
