import json
import os
import signal
import subprocess
import sys

import pytest

from headcount.errors import RunError
from headcount.store import begin_run, open_run

FACTS = {"model": {"fingerprint": "ab"}, "data": {}, "settings": {}}
WORKER = """
import sys, time
from headcount.store import begin_run
with begin_run(sys.argv[1], model={"fingerprint": "ab"}, data={}, settings={}, command="headcount study demo.yaml"):
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def worker(tmp_path):
    """Another process at work on the run ``tmp_path / "run"``."""
    process = subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_two_processes_on_one_run_are_told_apart(worker, tmp_path):
    with (
        pytest.raises(RunError, match=rf"worked on by process {worker.pid} on .* since .*`headcount study demo.yaml`"),
        begin_run(tmp_path / "run", **FACTS),
    ):
        pass
    assert open_run(tmp_path / "run").holder()["pid"] == worker.pid  # reading needs no lock


def test_a_killed_process_leaves_no_lock(worker, tmp_path):
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    assert open_run(tmp_path / "run").holder() is None
    with begin_run(tmp_path / "run", **FACTS) as run:
        assert run.holder()["pid"] == os.getpid()
    assert run.holder() is None


def test_two_writers_in_one_process_are_told_apart_too(tmp_path):
    with (
        begin_run(tmp_path / "run", **FACTS),
        pytest.raises(RunError, match=f"process {os.getpid()}"),
        begin_run(tmp_path / "run", **FACTS),
    ):
        pass


def test_a_holder_that_cannot_be_read_is_another_process(tmp_path):
    with begin_run(tmp_path / "run", **FACTS) as run:
        (run.path / ".holder.json").write_text("{")
        assert run.holder() == {}
        with pytest.raises(RunError, match="worked on by another process"), begin_run(tmp_path / "run", **FACTS):
            pass
        (run.path / ".holder.json").write_text(json.dumps([1]))
        assert run.holder() == {}
