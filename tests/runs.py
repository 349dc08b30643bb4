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


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes, but for the record of how a run was made."""
    files = {str(file.relative_to(folder)): file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}
    for name in [name for name in files if Path(name).name in ("history.jsonl", ".lock", ".holder.json")]:
        del files[name]
    for name in [name for name in files if Path(name).name in ("run.json", "study.json")]:
        made = json.loads(files[name])
        files[name] = json.dumps({key: made[key] for key in made if key not in ("created", "command")}).encode()
    return files
