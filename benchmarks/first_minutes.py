"""The first minutes: `make demo` in a fresh copy of the repository, set-up and demo apart, and the demo once more.

    python benchmarks/first_minutes.py --rounds 3 --json first_minutes.json

Each round copies what git tracks, sets up with an empty cache of headcount's own (downloads stay where pip and uv keep
them), and starts the demo twice. Wall seconds, processor seconds (user and system, of all processes) and peak memory of the
largest process, medians over rounds; of the demo also the seconds until the first result is printed. ``--avx2`` keeps
PyTorch's libraries and the compiler to AVX2 and computes in float32, as on a processor with nothing newer.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
FIRST_RESULT = "Inactive by"
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "CC": "cc -mno-avx512f",
}  # fmt: skip


def measured(command: Sequence[str | Path], folder: Path, environment: Mapping[str, str]) -> dict[str, float]:
    """What a command took; it must succeed."""
    start, first = time.monotonic(), None
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(  # noqa: S603 - commands of ours
            command, cwd=folder, env=os.environ | environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(FIRST_RESULT):
                first = time.monotonic() - start
        _, status, used = os.wait4(process.pid, 0)
        if status:
            errors.seek(0)
            raise SystemExit(f"{' '.join(map(str, command))} failed:\n{errors.read()}")
    found = {
        "wall_s": time.monotonic() - start,
        "cpu_s": used.ru_utime + used.ru_stime,
        "peak_mb": used.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3),  # macOS counts bytes, Linux kilobytes
    }
    return found if first is None else found | {"first_result_s": first}


def round_of(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    folder = Path(tempfile.mkdtemp(prefix="headcount-first-minutes-", dir=options.folder))
    try:
        listing = ["git", "ls-files", "-z"]
        tracked = subprocess.run(listing, cwd=REPOSITORY, check=True, capture_output=True, text=True)  # noqa: S603
        for name in filter(None, tracked.stdout.split("\0")):
            (folder / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / "copy" / name)
        environment = {"HEADCOUNT_CACHE": str(folder / "cache")} | (AVX2 if options.avx2 else {})
        demo = [folder / "copy" / ".venv/bin/headcount", "demo", *(["--dtype", "float32"] if options.avx2 else [])]
        if options.questions:
            demo += ["--questions", str(options.questions)]
        found = {"set-up": measured(["scripts/setup.sh", "demo"], folder / "copy", environment)}
        if options.avx2:  # what set-up prepared is in the processor's own dtype
            measured([*demo[:2], "--prepare", "--dtype", "float32"], folder / "copy", environment)
        for name in ("demo", "demo again"):
            found[name] = measured(demo, folder / "copy", environment)
        return found
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--questions", type=int, help="of the demo, if not its own number")
    parser.add_argument("--avx2", action="store_true")
    parser.add_argument("--folder", help="for the copies: 4 GB each, one at a time; the temporary folder if not given")
    parser.add_argument("--json", type=Path, help="write every round there as well")
    options = parser.parse_args()
    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(options.rounds):
        rounds.append(round_of(options))
        for name, of_command in rounds[-1].items():
            print(number + 1, name, {key: round(value, 1) for key, value in of_command.items()}, flush=True)
    medians: dict[str, Any] = {
        name: {key: statistics.median(of_round[name][key] for of_round in rounds) for key in of_command}
        for name, of_command in rounds[0].items()
    }
    print("\n| | wall, s | processor, s | first result, s | peak memory, MB |\n|---|---|---|---|---|")
    for name, of_command in medians.items():
        first = f"{of_command['first_result_s']:.0f}" if "first_result_s" in of_command else "–"
        print(
            f"| {name} | {of_command['wall_s']:.0f} | {of_command['cpu_s']:.0f} | {first} | {of_command['peak_mb']:.0f} |"
        )
    if options.json:
        options.json.write_text(json.dumps({"rounds": rounds, "medians": medians}, indent=1))


if __name__ == "__main__":
    main()
