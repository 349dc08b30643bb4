"""How far answers move: finer than right and wrong, so it says something with few questions and near chance."""

import numpy as np
import pandas as pd

from headcount.analysis.accuracy import accuracy_table
from headcount.analysis.statistics import Statistics
from headcount.policies import BASELINE

_SPREAD = ("", "_low", "_high")


def divergence_table(
    outcomes: pd.DataFrame,
    *,
    confidence: float = Statistics.confidence,
    resamples: int = Statistics.resamples,
    seed: int = Statistics.seed,
) -> pd.DataFrame:
    """How far each policy moves the answers from the untouched model's, with paired bootstrap intervals.

    Arguments are those of ``accuracy_table``.

    Returns:
        One row a policy but the baseline, in order of first appearance: policy, curve, share_asked, share_realised,
        num_questions; ``kl``, the divergence of the answers' probabilities, nats (NaN where questions have no choices);
        ``gold_loglikelihood``, the change of the right answer's log-likelihood, nats, or, of texts, of theirs a token;
        each of the two with ``_low`` and ``_high``. Empty where the outcomes hold neither.

    Raises:
        InputError: no baseline, or a confidence outside 0…1.
    """
    measures = {"gold_loglikelihood": "gold_loglikelihood", "kl": "kl_from_baseline"}
    tables = {
        name: accuracy_table(outcomes, metric=measure, confidence=confidence, resamples=resamples, seed=seed).iloc[1:]
        for name, measure in measures.items()
        if measure in outcomes and outcomes.loc[outcomes["policy"] != BASELINE, measure].notna().any()
    }
    if not tables:
        return pd.DataFrame()
    shared = ["policy", "curve", "share_asked", "share_realised", "num_questions"]
    result = next(iter(tables.values()))[shared].reset_index(drop=True)
    for name in measures:
        for end in _SPREAD:
            found = tables[name].set_index("policy")[f"change{end}"] if name in tables else {}
            result[f"{name}{end}"] = np.array([found.get(policy, np.nan) for policy in result["policy"]], dtype=float)
    return result


def per_token(outcomes: pd.DataFrame) -> bool:
    """Whether log-likelihoods are those of texts, a token, and not of answers."""
    if "gold_loglikelihood" not in outcomes or "loglikelihoods" not in outcomes:
        return False
    known = outcomes.loc[outcomes["gold_loglikelihood"].notna()]
    return len(known) > 0 and bool(known["loglikelihoods"].isna().all())
