"""Task files of our own, over local Parquet data, for tests of evaluation."""

from pathlib import Path

import pandas as pd
import pytest

GROUPS = """
group: {name}
task: [{tasks}]
aggregate_metric_list: [{{metric: acc, weight_by_size: {weighted}}}]
"""
CHOICE = """
task: {name}
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}} ="
doc_to_choice: ["0", "1", "2", "3"]
doc_to_target: answer
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
SPELL = """
task: spell
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "Spell {{{{question}}}}:"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 5, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""
PROSE = """
task: prose
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}} and nothing more"
metric_list: [{{metric: word_perplexity}}, {{metric: bits_per_byte}}]
"""


@pytest.fixture(autouse=True)
def _no_description_of_the_machine(monkeypatch):
    """lm-eval's describes it with each result, by programs that take longer than our questions."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


@pytest.fixture(scope="session")
def own_tasks(tmp_path_factory) -> Path:
    """Tasks sums_a (5 questions), sums_b (2), times_a (5), times_b (2), spell (generation), prose (perplexity).

    The group ``sums`` weighs its tasks by size, the group ``times`` does not.
    """
    folder = tmp_path_factory.mktemp("tasks")

    def task(name: str, template: str, size: int) -> None:
        data = folder / f"{name}.parquet"
        answers = [(i * i) % 4 for i in range(size)]
        frame = pd.DataFrame({"question": [f"{name} {a}+{i}" for i, a in enumerate(answers)], "answer": answers})
        frame.to_parquet(data)
        (folder / f"{name}.yaml").write_text(template.format(name=name, data=data), encoding="utf-8")

    for group in ("sums", "times"):
        task(f"{group}_a", CHOICE, 5)
        task(f"{group}_b", CHOICE, 2)
        text = GROUPS.format(name=group, tasks=f"{group}_a, {group}_b", weighted=str(group == "sums").lower())
        (folder / f"{group}.yaml").write_text(text, encoding="utf-8")
    task("spell", SPELL, 3)
    task("prose", PROSE, 3)
    return folder


@pytest.fixture
def ask(tiny, letters, own_tasks):
    """Evaluate the tiny Llama on tasks of our own."""
    from headcount.evaluation.evaluate import evaluate

    def ask(tasks, policies=(), **options):
        return evaluate(tiny(), tasks, policies, tokenizer=letters, offline=True, include_path=own_tasks, **options)

    return ask
