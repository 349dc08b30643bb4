"""Every metric that lm-eval registers, and what tasks make of their own: held to lm-eval's own run of its own model."""

import io
import json
import math
from pathlib import Path

import lm_eval
import numpy as np
import pandas as pd
import pytest
from lm_eval.api.registry import HIGHER_IS_BETTER_REGISTRY
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from headcount.errors import TaskError
from headcount.evaluation.benchmark import Benchmark
from headcount.evaluation.items import decode_items, encode_items
from headcount.metrics import BY_NAME, directions_of
from headcount.policies import Random
from headcount.store import begin_run, open_run
from headcount.store.outcomes import encode_outcomes
from headcount.tasks import quiet
from tests.store.parts import FACTS

DOCS = [
    {"q": "Sky is", "choices": ["blue", "red", "green"], "gold": 0},
    {"q": "Grass is", "choices": ["blue", "crimson", "green"], "gold": 2},
    {"q": "Blood is", "choices": ["blue", "red", "green"], "gold": 1},
    {"q": "Snow is", "choices": ["white", "red", "black"], "gold": 0},
    {"q": "Coal is", "choices": ["blue", "red", "black"], "gold": 2},
]
CHOICE = {"output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": "{{choices}}",
          "doc_to_target": "gold"}  # fmt: skip
SPELL = {"output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "{{choices[gold]}}",
         "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": False}}  # fmt: skip
OWN = """
import numpy as np

def results(doc, results):
    nats = [nats for nats, _ in results]
    right = np.argmax(nats) == doc["gold"]  # a numpy bool
    found = {
        "acc": float(right), "err": 1.0 - right, "numpy_bool": right, "numpy_float": np.float32(nats[0] / 7),
        "score": float(right) / 3, "undeclared": float(right) * 2, "holes": float("nan") if doc["gold"] == 1 else 1.0,
        "all_of": float("nan") if doc["gold"] == 1 else 1.0, "middle": -nats[1], "nats": nats[0],
        "tuples": (doc["gold"], right), "keyed": {(doc["gold"], "gold"): nats, 3: {"a", "b"}},
        "array": np.array([nats], np.float32), "text": doc["q"], "mixed": nats[0] if right else None, "counts": int(right),
    }
    return found | ({"sometimes": 1.0} if doc["gold"] else {})

def tuples(items):
    assert all(isinstance(item, tuple) for item in items)
    return sum(gold * right for gold, right in items)

def keyed(items):
    return sum(sum(next(iter(item.values()))) + len(item[3]) for item in items)

def array(items):
    assert all(item.dtype == np.float32 for item in items)
    return np.concatenate(items).mean()  # a float32

def text(items):
    return len("".join(items))

def mixed(items):
    return len(items) + sum(item for item in items if item is not None)

def counts(items):
    return int(np.bincount(items)[0])  # of whole numbers alone

def own_mean(items):
    return sum(items) / len(items)

def of_likelihoods(items):
    return float(np.mean([nats[gold] for gold, nats in items]))
"""


def metric(name, aggregation=None, better=None, **more):
    known = {"aggregation": aggregation, "higher_is_better": better}
    return {"metric": name} | {key: value for key, value in known.items() if value is not None} | more


def own(name):
    return f"!function own.{name}"


TASKS = {
    "choice": CHOICE | {"metric_list": [metric(name) for name in (
        "acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "mcc", "brier_score")]},
    "pairs": CHOICE | {"doc_to_choice": ["blue", "red"], "doc_to_target": "{{gold % 2}}",
              "metric_list": [metric("f1"), metric("mcc"), metric("brier_score")]},
    "ragged": CHOICE | {"metric_list": [metric(name) for name in ("acc", "acc_norm", "mcc")]},
    "likelihood": CHOICE | {"metric_list": [metric("acc"), metric("likelihood", own("of_likelihoods"), True)]},
    "cloze": {"output_type": "loglikelihood", "doc_to_text": "{{q}}", "doc_to_target": "{{choices[gold]}}",
              "metric_list": [metric("acc"), metric("perplexity")]},
    "prose": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{q}} what it is",
              "metric_list": [metric(name) for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")]},
    "spell": SPELL | {"metric_list": [
        metric("exact_match", "mean", True, ignore_case=True, regexes_to_ignore=["[a-z]"]),
        *(metric(name) for name in ("bleu", "chrf", "chrf++", "ter"))]},
    "passed": SPELL | {"metric_list": [metric("bypass")]},
    "filtered": SPELL | {"repeats": 2, "metric_list": [metric("exact_match", "mean", False)], "filter_list": [
        {"name": "first", "filter": [{"function": "take_first"}]},
        {"name": "lower", "filter": [{"function": "lowercase"}, {"function": "take_first"}]}]},
    "own": CHOICE | {"process_results": own("results"), "metric_list": [
        metric("acc", "mean", True), metric("err", "mean", False), metric("numpy_bool", "mean", True),
        metric("numpy_float", "mean", True), metric("score", "mean", False), metric("holes", "nanmean", True),
        metric("all_of", "mean", True), metric("middle", "median", False), metric("nats", "perplexity", False),
        metric("mixed", own("mixed"), True), metric("counts", own("counts"), True), metric("sometimes", own("own_mean"), False),
        *(metric(name, own(name), True) for name in ("tuples", "keyed", "array", "text"))]},
}  # fmt: skip
GROUPS = {"sized": True, "plain": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("metrics")
    (folder / "own.py").write_text(OWN, encoding="utf-8")

    def write(name, config, docs):
        data = folder / f"{name}.jsonl"
        data.write_text("\n".join(map(json.dumps, docs)), encoding="utf-8")
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        text = json.dumps({"task": name} | source | config, indent=1)
        for function in (
            "results",
            "of_likelihoods",
            "own_mean",
            "tuples",
            "keyed",
            "array",
            "text",
            "mixed",
            "counts",
        ):
            text = text.replace(f'"{own(function)}"', own(function))
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")

    for name, config in TASKS.items():
        ragged = [doc | {"choices": doc["choices"] + ["grey"] * (number % 2)} for number, doc in enumerate(DOCS)]
        write(name, config, ragged if name == "ragged" else DOCS)
    for group, weighted in GROUPS.items():  # of subtasks of different sizes, of which one lacks a metric
        write(f"{group}_a", TASKS["ragged"], DOCS[:4])
        write(f"{group}_b", CHOICE | {"metric_list": [metric("acc")]}, DOCS[2:])
        listed = [metric(name, weight_by_size=weighted) for name in ("acc", "acc_norm")]
        text = json.dumps({"group": group, "task": [f"{group}_a", f"{group}_b"], "aggregate_metric_list": listed})
        (folder / f"{group}.yaml").write_text(text, encoding="utf-8")
    return folder


def by_lm_eval(model, tokenizer, task, folder):
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    with quiet():
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
        results = lm_eval.simple_evaluate(lm, tasks=[task], task_manager=manager, bootstrap_iters=0)
    return {
        (name, key.removesuffix(",none")): value
        for name, metrics in results["results"].items()
        for key, value in metrics.items()
        if "," in key and "_stderr" not in key
    }


def stored(outcomes: pd.DataFrame, folder: Path) -> pd.DataFrame:
    policies = outcomes["policy"].unique().tolist()
    with begin_run(folder / "run", **FACTS) as run:
        run.add_outcomes(policies, range(len(outcomes) // len(policies)), outcomes)
    kept = open_run(folder / "run").outcomes()
    assert kept is not None
    return kept


@pytest.mark.parametrize("task", [*TASKS, *GROUPS])
def test_every_metric_aggregates_to_lm_evals_own_value(tiny, letters, folder, tmp_path, task):
    model = tiny()
    benchmark = Benchmark(model, [task], tokenizer=letters, offline=True, include_path=folder)
    outcomes = benchmark.ask([None, Random(0.5)]).outcomes
    theirs = by_lm_eval(model, letters, task, folder)
    assert theirs
    for table in (outcomes, stored(outcomes, tmp_path)):
        metrics = benchmark.metrics(table)
        ours = metrics[metrics["policy"] == "baseline"]
        found = {(row.task, row.metric): row.value for row in ours.itertuples()}
        assert found == pytest.approx(theirs, rel=1e-4, nan_ok=True)
        assert directions_of(table) == directions_of(outcomes)
    again = benchmark.ask([None, Random(0.5)]).outcomes
    parts = [encode_outcomes(table, {}) for table in (outcomes, again)]
    assert parts[0] == parts[1]


def test_what_a_task_says_of_its_metrics_travels_with_them(tiny, letters, folder):
    benchmark = Benchmark(tiny(), ["own", "filtered", "cloze"], tokenizer=letters, offline=True, include_path=folder)
    outcomes = benchmark.ask([None]).outcomes
    said = directions_of(outcomes)
    assert said["own"] == {
        "acc": True, "err": False, "numpy_bool": True, "numpy_float": True, "score,none": False, "holes": True,
        "all_of": True, "middle": False, "tuples": True, "keyed": True, "array": True, "text": True,
        "sometimes": False,  # its own aggregation is a mean
        # lm-eval has no mean of these, or nobody says.
        "nats": False, "mixed": None, "counts": None, "undeclared": None,
    }  # fmt: skip
    assert said["filtered"] == {"exact_match,first": False, "exact_match,lower": False}
    assert said["cloze"] == {"acc": True, "perplexity": False}
    # What lm-eval makes of log-likelihoods is no number a question, and a name that is taken is not written over.
    assert not {"nats", "perplexity"} & set(outcomes)
    assert set(outcomes["score"]) == {""}
    assert outcomes["score,none"].notna().sum() == len(DOCS)


def test_choices_without_their_question_are_no_choices(tiny, letters, folder):
    outcomes = Benchmark(tiny(), ["choice"], tokenizer=letters, offline=True, include_path=folder).ask([None]).outcomes
    assert outcomes["loglikelihoods"].map(len).eq(3).all()


def test_what_lm_eval_cannot_aggregate_is_nan_and_said(tiny, letters, folder, tmp_path):
    # brier_score takes as many choices of every question, and the mean of what "likelihood" gathers is none.
    text = (folder / "ragged.yaml").read_text().replace('"ragged"', '"unequal"')
    text = text.replace('"acc_norm"', '"brier_score"').replace('"mcc"', '"likelihood"')
    (tmp_path / "unequal.yaml").write_text(text)
    benchmark = Benchmark(tiny(), ["unequal"], tokenizer=letters, offline=True, include_path=tmp_path)
    outcomes = benchmark.ask([None]).outcomes
    with pytest.warns(UserWarning, match="cannot aggregate (brier_score|likelihood) of unequal under baseline") as told:
        metrics = benchmark.metrics(outcomes).set_index("metric")["value"]
    assert len(told) == 2
    assert metrics.isna().to_dict() == {"acc": False, "brier_score": True, "likelihood": True}


def test_items_come_back_as_they_were():
    items = {
        "tuple": (1, "a", [2.5, None], (True,)), "keys": {1: "a", (2, 3): {"b": 4}, "c": {5}}, "tag": {"__kind__": "x"},
        "array": np.arange(6, dtype=np.float32).reshape(2, 3), "scalar": np.int16(3), "whole": 3, "real": 3.0,
        "infinite": [math.inf, -math.inf], "bytes": b"\x00\xff", "day": pd.Timestamp(2026, 1, 2).date(),
    }  # fmt: skip
    back = decode_items(encode_items(items))
    np.testing.assert_array_equal(back["array"], items["array"])
    assert [back["array"].dtype, type(back["scalar"]), type(back["whole"]), type(back["real"])] == [
        np.dtype("float32"), np.int16, int, float,
    ]  # fmt: skip
    del back["array"], items["array"]
    assert back == items
    assert math.isnan(decode_items(encode_items({"x": float("nan")}))["x"])
    assert decode_items('{"x": [1, 2]}') == {"x": [1, 2]}  # as an older headcount wrote it
    with pytest.raises(TaskError, match=r"'x' gives a _io.StringIO for a question, which cannot be kept"):
        encode_items({"x": [io.StringIO()]})


def test_names_mean_what_lm_eval_registers():
    theirs = {name: way for name, way in HIGHER_IS_BETTER_REGISTRY.items() if name not in ("perplexity", "bypass")}
    assert {name: BY_NAME.get(name) for name in theirs} == theirs
