"""The example that keeps a run from Python works as it stands, here with a tiny model and a task of our own."""

import re
from pathlib import Path

import pytest

from tests.runs import write_tasks

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"


@pytest.fixture
def names_of(tiny, letters, tmp_path, monkeypatch):
    """What the example under a heading leaves behind."""

    def run(heading):
        code = re.search(rf"## {heading}\n.*?```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
        assert code is not None
        monkeypatch.chdir(tmp_path)
        tiny().save_pretrained("model")
        letters.save_pretrained("model")
        write_tasks(tmp_path / "tasks", 6)
        ours = code[1].replace('"demo"', '"model"').replace('"arc_easy"', '"sums"')
        names = {"__name__": "example"}
        exec(ours.replace("offline=True", 'offline=True, include_path="tasks"'), names)
        return names

    return run


def test_evaluate_run(names_of):
    names = names_of("From Python, into a folder")
    assert names["outcomes"]["policy"].unique().tolist() == ["baseline", "ahon_ln:0.1", "random:0.1"]
    assert names["cuts"]["share"].values.tolist() == [0.1]
    assert names["run"].path == Path("runs/arc")


def test_a_policy_of_ones_own(names_of):
    outcomes = names_of("A policy of your own")["run"].outcomes()
    shares = outcomes.groupby("policy", sort=False)["share_off"].unique().map(list).to_dict()
    assert shares == {"baseline": [0.0], "lowest:0.25": [0.25], "lowest:0.5": [0.5]}
    assert set(outcomes["curve"]) == {"", "lowest"}
