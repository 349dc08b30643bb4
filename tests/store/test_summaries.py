"""Summaries of shards are added up on disk."""

import numpy as np
import pytest
import xarray as xr

from headcount.store import begin_run, open_run
from headcount.store.summaries import add_summary, read_summaries, summary_files
from headcount.summaries import Summary
from tests.runs import contents
from tests.store.parts import FACTS, shard_files, table


def test_a_file_gives_back_what_was_summarised(tmp_path):
    values = np.random.default_rng(0).normal(size=(400, 3, 5)).astype(np.float32)
    whole = xr.Dataset(
        {"ahon": (("example", "layer", "head"), values), "awft": (("example", "layer", "head"), -values)},
        coords={"layer": [0, 1, 2], "head": range(5), "num_tokens": ("example", np.full(400, 7))},
    )
    summary = Summary.of(whole)
    add_summary(tmp_path / "first", 0, summary, "run")
    again = read_summaries(summary_files(tmp_path / "first"))
    xr.testing.assert_identical(again.heads, summary.heads)
    assert again.scores["awft"].quantiles([0.2]) == summary.scores["awft"].quantiles([0.2])
    add_summary(tmp_path / "again", 0, again, "run")
    assert contents(tmp_path / "again") == contents(tmp_path / "first")


def test_summaries_do_not_depend_on_the_order_of_shards(tmp_path):
    parts = [Summary.of(table(3, seed=seed)) for seed in range(5)]
    for name, order in (("a", [0, 1, 2, 3, 4]), ("b", [3, 1, 4, 0, 2])):
        with begin_run(tmp_path / name, **FACTS) as run:
            for done, shard in enumerate(order, 1):
                run.add_summary(shard, parts[shard])
                assert run.measured() == set(order[:done])
                assert run.summary().num_inputs == 3 * done
        assert [file.name[:13] for file in shard_files(run.path)] == ["000000-000004"]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_summaries_are_added_up_within_segments(run, monkeypatch):
    monkeypatch.setattr("headcount.store.summaries._SEGMENT", 2)
    for shard in range(5):
        run.add_summary(shard, Summary.of(table(3, seed=shard)))
    assert [file.name[:13] for file in shard_files(run.path)] == ["000000-000001", "000002-000003", "000004-000004"]
    assert run.summary().num_inputs == 15
    assert run.measured() == set(range(5))


def test_summaries_interrupted_while_they_are_added_up(tmp_path, monkeypatch):
    parts = [Summary.of(table(3, seed=seed)) for seed in range(3)]
    with begin_run(tmp_path / "whole", **FACTS) as run:
        for shard, part in enumerate(parts):
            run.add_summary(shard, part)
    expected = contents(run.path)
    for number, stopped in enumerate((("headcount.store.summaries.write_shard", 2), ("pathlib.Path.unlink", 1))):
        with begin_run(tmp_path / str(number), **FACTS) as run:
            run.add_summary(0, parts[0])
            with monkeypatch.context() as patch:
                stop_at_call(patch, *stopped)
                with pytest.raises(KeyboardInterrupt):
                    run.add_summary(1, parts[1])
            assert len(shard_files(run.path)) == 2 + number
            assert open_run(run.path).summary().num_inputs == 6
            assert run.measured() == {0, 1}
        with begin_run(tmp_path / str(number), **FACTS) as run:
            assert len(shard_files(run.path)) == 1
            run.add_summary(2, parts[2])
        assert contents(run.path) == expected


def stop_at_call(patch, name, number):
    """Make the ``number``-th call of a function the moment at which the process is interrupted."""
    import pydoc

    function, calls = pydoc.locate(name), []

    def call(*args, **options):
        calls.append(args)
        if len(calls) == number:
            raise KeyboardInterrupt
        return function(*args, **options)

    patch.setattr(name, call)
