"""Benchmarks of our own on disk, and what a run leaves there."""

import json
from pathlib import Path

SUMS = """
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}} ="
doc_to_choice: ["5", "2", "17"]
doc_to_target: a
num_fewshot: 0
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
SPELL = """
task: spell
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{q}}}} ="
doc_to_target: a
num_fewshot: 0
generation_kwargs: {{until: ["\\n"], max_gen_toks: 2}}
metric_list: [{{metric: exact_match}}]
"""
ERRS = (
    SUMS.replace("task: sums", "task: errs").split("metric_list")[0]
    + """
process_results: !function own.results
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: err, aggregation: mean, higher_is_better: false}}
  - {{metric: f1, aggregation: mean, higher_is_better: false}}
"""
)
OWN = """
import numpy as np

def results(doc, results):
    right = float(np.argmax([nats for nats, _ in results]) == doc["a"])
    return {"acc": right, "err": 1 - right, "f1": 1 - right, "unsaid": 2 + 8 * (1 - right)}
"""
PROSE = """
task: prose
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{q}}}} and nothing more"
metric_list: [{{metric: bits_per_byte}}]
"""


def write_tasks(folder: Path, questions: int) -> None:
    """The tasks ``sums`` (three choices), ``spell`` (generation) and ``prose`` (texts)."""
    folder.mkdir()
    lines = [json.dumps({"q": f"{i}+{5 - i}" if i % 2 else f"{i}-{i}+2", "a": (i + 1) % 2}) for i in range(questions)]
    (folder / "sums.jsonl").write_text("\n".join(lines))
    for name, template in (("sums", SUMS), ("spell", SPELL), ("prose", PROSE)):
        (folder / f"{name}.yaml").write_text(template.format(data=folder / "sums.jsonl"))


def write_errors(folder: Path, questions: int) -> None:
    """The task ``errs``: ``acc``, the same as errors under two names, one of which is better when higher elsewhere, and
    ``unsaid``, of which nobody says which way it is better, and which is no share."""
    write_tasks(folder, questions)
    (folder / "own.py").write_text(OWN)
    (folder / "errs.yaml").write_text(ERRS.format(data=folder / "sums.jsonl"))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes, but for the record of how a run was made."""
    files = {str(file.relative_to(folder)): file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}
    for name in [name for name in files if Path(name).name in ("history.jsonl", ".lock", ".holder.json")]:
        del files[name]
    for name in [name for name in files if Path(name).name in ("run.json", "study.json")]:
        made = json.loads(files[name])
        files[name] = json.dumps({key: made[key] for key in made if key not in ("created", "command")}).encode()
    return files
