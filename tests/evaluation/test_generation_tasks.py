"""GSM8K and IFEval as lm-eval defines them, with questions of our own and lm-eval's own answers beside."""

import json
from pathlib import Path

import lm_eval
import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from headcount.evaluation.evaluate import evaluate
from headcount.policies import Random
from headcount.tasks import quiet

SUMS = [
    {
        "question": f"Ann has {a} pens and buys {b} more. How many has she?",
        "answer": f"{a} + {b} = {a + b}.\n#### {a + b}",
    }
    for a, b in [(2, 3), (4, 4), (10, 1), (6, 7), (1, 8), (20, 22)]
]
INSTRUCTIONS = [
    ("Name three colours, without a comma.", ["punctuation:no_comma"], [{}]),
    (
        "Write in lower case only, and end with the word farewell.",
        ["change_case:english_lowercase", "startend:end_checker"],
        [{}, {"end_phrase": "farewell"}],
    ),
    (
        "Say hello in at least 300 words.",
        ["length_constraints:number_words"],
        [{"num_words": 300, "relation": "at least"}],
    ),
]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """lm-eval's GSM8K (2 examples in the prompt) and IFEval over files, with answers of at most 8 tokens."""
    folder = tmp_path_factory.mktemp("generation")
    rows = {
        "gsm8k": SUMS,
        "ifeval": [
            {"key": key, "prompt": prompt, "instruction_id_list": ids, "kwargs": kwargs}
            for key, (prompt, ids, kwargs) in enumerate(INSTRUCTIONS)
        ],
    }
    root = Path(lm_eval.__file__).parent / "tasks"
    for name, of_task in rows.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in of_task))
        split = {"gsm8k": "test_split: train\nnum_fewshot: 2", "ifeval": ""}[name]
        (folder / f"{name}.yaml").write_text(
            f"include: {root / name / name}.yaml\ntask: {name}_here\ntag: null\ndataset_path: json\ndataset_name: null\n"
            f"dataset_kwargs: {{data_files: {{train: {data}}}}}\n{split}\n"
            'generation_kwargs: {until: ["Question:"], do_sample: false, temperature: 0.0, max_gen_toks: 8}\n'
        )
    return folder


@pytest.mark.demo
@pytest.mark.parametrize("task", ["gsm8k_here", "ifeval_here"])
def test_answers_and_metrics_are_those_of_lm_eval(demo, tasks, task):
    model, tokenizer = demo
    policy = Random(0.4)
    result = evaluate(model, [task], policies=[policy], tokenizer=tokenizer, include_path=tasks, offline=True, limit=2)
    with quiet():
        theirs = lm_eval.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1),
            tasks=[task],
            task_manager=TaskManager(include_path=str(tasks)),
            limit=2,
            bootstrap_iters=0,
        )
    metrics = result.metrics[result.metrics["policy"] == "baseline"].set_index("metric")["value"].to_dict()
    expected = {
        name.replace(",none", ""): value for name, value in theirs["results"][task].items() if isinstance(value, float)
    }
    assert expected
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    outcomes = result.outcomes.set_index(["policy", "doc_id"]).sort_index()
    responses = {s["doc_id"]: s["resps"][0][0] for s in theirs["samples"][task]}
    assert outcomes.loc["baseline", "response"].to_dict() == responses

    under = outcomes.loc[policy.label]
    assert under["share_off"].between(0.25, 0.55).all()
    for heads, share in zip(under["heads_off"], under["share_off"], strict=True):
        assert len(heads) == pytest.approx(share * 270)  # decided on the prompt, off for the whole answer
    assert (under["response"] != outcomes.loc["baseline", "response"]).any()
