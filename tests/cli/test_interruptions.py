import json
import os
import subprocess
import sys
from pathlib import Path

import headcount as package


def test_prune_calibrate_and_export_killed_at_any_moment_end_with_the_bytes_of_uninterrupted_ones(
    headcount, checkpoint, text, tmp_path
):
    for name, limit in (("run", 5), ("other", 3)):
        assert headcount("measure", checkpoint(), "--texts", text, "--limit", limit, "-o", tmp_path / name)[0] == 0
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), str(Path(package.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-m", "tests.cli.interrupt", str(tmp_path)], cwd=root, capture_output=True, text=True, timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": paths}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == {"prune", "calibrate", "export", "export over an older one"}
    for name, of_kind in found.items():
        assert of_kind["wrong"] == [], name
        assert of_kind["kills"] == 12
        assert of_kind["leftovers"] > 2, "killed too early or too late to leave anything"
    assert found["prune"]["files"] >= 6
