"""The table of checks for a device: what becomes of a check that fails, dies or hangs."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture
def acceptance(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import acceptance

    return acceptance


def row(*of):
    return f"ROW {json.dumps(of)}\n"


ENDS = {
    "ways": SimpleNamespace(
        returncode=0, stdout=row("", "torch 2", "INFO") + "a line\n" + row("all", "all", "PASS"), stderr=""
    ),
    "float32": SimpleNamespace(returncode=0, stdout=row("0", "1", "FAIL"), stderr=""),
    "bytes": SimpleNamespace(
        returncode=3, stdout=row("0", "0", "PASS"), stderr="Traceback\nRuntimeError: CUDA error: gone\n"
    ),
    "sizes": SimpleNamespace(returncode=-9, stdout="", stderr=""),
    "offload": SimpleNamespace(returncode=0, stdout="", stderr=""),
}


def asked(acceptance, monkeypatch, tmp_path, *names):
    def run(command, timeout, **_):
        name = command[command.index("--check") + 1]
        if name == "questions":
            raise subprocess.TimeoutExpired(command, timeout)
        return ENDS[name]

    monkeypatch.setattr(subprocess, "run", run)
    only = [part for name in names for part in ("--only", name)]
    monkeypatch.setattr(
        sys, "argv", ["acceptance.py", "--device", "cuda", "--json", str(tmp_path / "table.json"), *only]
    )
    with pytest.raises(SystemExit) as end:
        acceptance.main()
    rows = json.loads((tmp_path / "table.json").read_text())
    return end.value.code, [(row["check"], row["found"], row["verdict"]) for row in rows]


def test_a_table_without_a_failure_ends_with_0(acceptance, monkeypatch, tmp_path):
    assert asked(acceptance, monkeypatch, tmp_path, "ways") == (
        0,
        [("ways", "torch 2", "INFO"), ("ways", "all", "PASS")],
    )


def test_a_check_that_fails_dies_hangs_or_says_nothing_is_a_failure_and_the_table_goes_on(
    acceptance, monkeypatch, tmp_path
):
    names = ["float32", "bytes", "questions", "sizes", "offload", "ways"]
    code, rows = asked(acceptance, monkeypatch, tmp_path, *names)
    assert code == 1
    assert rows == [
        ("float32", "1", "FAIL"), ("bytes", "0", "PASS"), ("bytes", "RuntimeError: CUDA error: gone", "FAIL"),
        ("questions", "no end", "FAIL"), ("sizes", "exit code -9", "FAIL"), ("offload", "none", "FAIL"),
        ("ways", "torch 2", "INFO"), ("ways", "all", "PASS"),
    ]  # fmt: skip


def test_every_check_has_a_limit(acceptance):
    from acceptance_checks import CHECKS
    from acceptance_gpu import CHECKS as OF_GPUS

    assert {*CHECKS, *OF_GPUS} == {*acceptance.LIMITS}
    assert {*OF_GPUS} == {*acceptance.OF_GPUS}
