import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import headcount


def test_a_study_killed_at_any_moment_ends_with_the_bytes_of_an_uninterrupted_one(subjects, tmp_path):
    for name in ("model", "tasks"):
        shutil.copytree(subjects / name, tmp_path / name)
    shutil.copy(subjects / "text.jsonl", tmp_path)
    (tmp_path / "tasks/sums.yaml").write_text(
        (tmp_path / "tasks/sums.yaml").read_text().replace(str(subjects), str(tmp_path))
    )
    root = Path(__file__).parents[2]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join([str(root), str(Path(headcount.__file__).parents[1])]),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.study.interrupt", str(tmp_path)],
        cwd=root, env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["stages"]) == 25
    assert {"measuring", "asking"} <= set(found["stages"])
    assert found["finished"] >= 8
    # 3 manifests, 3 × 3 shards of outcomes, metrics, scores; 15 tables as CSV and parquet
    assert found["files"] == 22 + 30
    assert found["differing"] == []
