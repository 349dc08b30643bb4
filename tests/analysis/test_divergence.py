"""How far answers move, worked by hand."""

import numpy as np
import pandas as pd
import pytest

from headcount.analysis import divergence_table
from headcount.errors import InputError


def rows(policy, gold, kl, *, score="", share=np.nan, zeroed=0.0):
    return pd.DataFrame({
        "policy": policy, "curve": score, "share_asked": share, "task": "t", "doc_id": np.arange(len(gold)),
        "share_off": zeroed, "gold_loglikelihood": gold, "kl_from_baseline": kl,
    })  # fmt: skip


BASE = rows("baseline", [-1.0, -2.0, -3.0, -4.0], [0.0] * 4)
MOVED = rows("ahon_ln:0.1", [-1.5, -2.0, -2.5, -6.0], [0.1, 0.0, 0.2, 0.5], score="ahon_ln", share=0.1, zeroed=0.12)


def test_means_of_the_changes_on_the_same_questions():
    (row,) = divergence_table(pd.concat([MOVED, BASE])).to_dict("records")
    assert (row["policy"], row["curve"], row["share_asked"], row["num_questions"]) == ("ahon_ln:0.1", "ahon_ln", 0.1, 4)
    assert row["share_realised"] == pytest.approx(0.12)
    assert row["kl"] == pytest.approx(0.2)
    assert row["gold_loglikelihood"] == pytest.approx((-0.5 + 0 + 0.5 - 2) / 4)
    assert row["kl_low"] < 0.2 < row["kl_high"]
    assert row["gold_loglikelihood_low"] < row["gold_loglikelihood"] < row["gold_loglikelihood_high"]


def test_texts_have_log_likelihoods_alone():
    outcomes = pd.concat([BASE, MOVED]).assign(kl_from_baseline=np.nan)
    (row,) = divergence_table(outcomes).to_dict("records")
    assert np.isnan([row["kl"], row["kl_low"], row["kl_high"]]).all()
    assert row["gold_loglikelihood"] == pytest.approx(-0.5)


def test_answers_in_words_have_neither():
    outcomes = pd.concat([BASE, MOVED]).assign(kl_from_baseline=np.nan, gold_loglikelihood=np.nan)
    assert divergence_table(outcomes).empty


def test_the_untouched_model_is_needed():
    with pytest.raises(InputError, match="baseline"):
        divergence_table(MOVED)
