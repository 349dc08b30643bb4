"""Whether headcount does on a device what it does on a processor: one table of checks, each in a process of its own.

    python benchmarks/acceptance.py --device cuda --json acceptance.json

Needs no network, but the demo model and the embedded benchmarks (``make demo``). It ends after about 39 minutes at most on a GPU,
where every check takes all the time it may (``LIMITS``); how long it does take there was not measured. A check that fails,
hangs or dies is FAIL, and the table goes on; INFO is a number that nothing was expected of. The exit code is 1 if any check
failed. ``--short`` asks the same of fewer texts; on a processor the checks that only a GPU can answer are left out.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

#: Name → seconds that it may take on a GPU; a processor has three times as many.
LIMITS = {
    "ways": 240, "float32": 150, "reduced": 120, "bfloat16": 120, "batches": 120, "bytes": 90, "shapes": 240, "waits": 90,
    "time": 330, "memory": 120, "full": 120, "sizes": 60, "offload": 120, "questions": 150, "generation": 120, "workers": 240,
}  # fmt: skip
#: What only a GPU can answer.
OF_GPUS = ("waits", "time", "memory", "full", "workers")


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    check: str
    expected: str
    found: str
    verdict: str
    seconds: float


def checked(name: str, device: str, short: bool) -> list[Row]:
    """The rows of one check, done in a child process."""
    begun, limit = time.perf_counter(), LIMITS[name] * (3 if device == "cpu" else 1)
    command = [sys.executable, __file__, "--device", device, "--check", name, *(["--short"] if short else [])]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    try:
        done = subprocess.run(  # noqa: S603
            command, env=environment, capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return [Row(name, f"within {limit} s", "no end", "FAIL", limit)]
    seconds = round(time.perf_counter() - begun, 1)
    lines = [line.removeprefix("ROW ") for line in done.stdout.splitlines() if line.startswith("ROW ")]
    rows = [Row(name, *json.loads(line), seconds) for line in lines]
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        rows.append(Row(name, "no error", said[:300], "FAIL", seconds))
    return rows or [Row(name, "an answer", "none", "FAIL", seconds)]


def answer(name: str, device: str, short: bool) -> None:
    """Do one check in this process, and print its rows for the one that asked."""
    sys.path.insert(0, str(Path(__file__).parent))
    from acceptance_checks import CHECKS

    checks = dict(CHECKS)
    if name in OF_GPUS:
        import acceptance_gpu

        checks |= acceptance_gpu.CHECKS
    try:
        for expected, found, verdict in checks[name](device, short):
            word = "INFO" if verdict is None else "PASS" if verdict else "FAIL"
            print("ROW", json.dumps([expected, found, word]), flush=True)
    except Exception:
        traceback.print_exc()
        sys.exit(3)


def main() -> None:
    """Check all, print the table, and exit with 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu")
    parser.add_argument("--short", action="store_true", help="fewer texts and questions")
    parser.add_argument("--only", action="append", choices=list(LIMITS), help="this check; repeat")
    parser.add_argument("--json", type=Path, help="write the table there too")
    parser.add_argument("--check", choices=list(LIMITS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.check:
        return answer(given.check, given.device, given.short)
    rows: list[Row] = []
    print("check | expected | found | verdict | s")
    for name in given.only or LIMITS:
        if given.device == "cpu" and name in OF_GPUS:
            continue
        for row in checked(name, given.device, given.short):
            rows.append(row)
            print(" | ".join(map(str, asdict(row).values())), flush=True)
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    failed = sum(row.verdict == "FAIL" for row in rows)
    print(f"{len(rows)} rows, {failed} failed, {sum({row.check: row.seconds for row in rows}.values()):.0f} s")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
