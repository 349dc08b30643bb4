"""The example that keeps a run from Python works as it stands, here with a tiny model and a task of our own."""

import re
from pathlib import Path

from tests.runs import write_tasks

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"


def test_evaluate_run(tiny, letters, tmp_path, monkeypatch):
    code = re.search(r"## From Python, into a folder\n.*?```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert code is not None
    monkeypatch.chdir(tmp_path)
    tiny().save_pretrained("model")
    letters.save_pretrained("model")
    write_tasks(tmp_path / "tasks", 6)
    ours = code[1].replace('"demo"', '"model"').replace('"arc_easy"', '"sums"')
    names = {}
    exec(ours.replace("offline=True", 'offline=True, include_path="tasks"'), names)
    assert names["outcomes"]["policy"].unique().tolist() == ["baseline", "ahon_ln:0.1", "random:0.1"]
    assert names["cuts"]["share"].values.tolist() == [0.1]
    assert names["run"].path == Path("runs/arc")
