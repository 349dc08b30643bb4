"""A run's tables in other tools' formats."""

import csv

import numpy as np
import pandas as pd
import pytest

from headcount.store.export import export_run, table_csv
from tests.store.parts import metrics, outcomes, table

FORMULAS = ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "\nx", "＝1+1", "＋1", "－1", "＠x"]


@pytest.mark.parametrize("name", FORMULAS)
def test_no_text_in_an_exported_csv_is_a_formula(run, tmp_path, name):
    measured = table(3).rename(awft=name)
    run.add_scores(0, measured)
    run.add_outcomes([name], range(3), outcomes(name).assign(target=name, **{name: name}))
    run.set_metrics(metrics(name))
    for file in export_run(run, tmp_path / "tables", "csv"):
        with file.open(encoding="utf-8", newline="") as stream:
            cells = [cell for row in csv.reader(stream) for cell in row]
        assert not [cell for cell in cells if cell == name]
        assert f"'{name}" in cells


def test_text_of_any_kind_of_column_is_inert():
    kinds = {"category": pd.Categorical(["=1", "b"]), "string": pd.array(["=1", None], "string"), "mixed": ["=1", 2.5]}
    lines = table_csv(pd.DataFrame(kinds)).split("\r\n")
    assert lines == ["category,string,mixed", "'=1,'=1,'=1", "b,,2.5", ""]


def test_exported_numbers_keep_every_digit(run, tmp_path):
    run.add_scores(0, table(4))
    run.add_outcomes(["awft:0.1"], range(3), outcomes("awft:0.1"))
    export_run(run, tmp_path / "tables", "csv")
    found = pd.read_csv(tmp_path / "tables/scores.csv", dtype={"awft": np.float32})
    np.testing.assert_array_equal(found["awft"], table(4)["awft"].values.ravel())
    back = pd.read_csv(tmp_path / "tables/outcomes.csv")
    assert back["share_off"].tolist() == [0.0, 0.5, 1 / 3]
