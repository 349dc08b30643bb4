"""What measuring costs: whole forward passes of the demo model with last-position logits, relative to plain ``sdpa``.

    python benchmarks/overhead.py --dtype bfloat16 --threads 2 --json overhead.json

In every round each way runs once on the same tokens, in an order that turns from round to round. A ratio is the median
over rounds of (seconds of the way / seconds of sdpa in the same round), so that slow drift of a shared machine cancels.
Each way has its own copy of the model. The heads of ``o_proj`` are factored once for each ``instrument`` block, before
the clock starts.

Peak memory is what a pass adds to the loaded and warmed-up model: the highest resident set of a fresh process during one
pass (Linux counts it; it is reset before the pass) minus the resident set before it. Each way has its own process,
because freed memory that the allocator keeps would hide what the next way takes.

``HEADCOUNT_ATTENTION=plain|compiled|fused`` forces one way of measuring weights and entropies.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedModel

from headcount.models.instrument import instrument
from headcount.models.loading import load

WAYS = {"sdpa": None, "eager": None, "all 16 scores": "all", "ahon_ln": ["ahon_ln"], "awft": ["awft"]}


@contextmanager
def switched(model: PreTrainedModel, way: str) -> Iterator[None]:
    """The model as one way runs it, warmed up."""
    if way in ("sdpa", "eager"):
        model.set_attn_implementation(way)
        forward(model, torch.arange(5, 9)[None])
        yield
    else:
        with instrument(model, scores=WAYS[way]):
            forward(model, torch.arange(5, 9)[None])
            yield


def forward(model: PreTrainedModel, ids: torch.Tensor) -> float:
    """Seconds of one pass."""
    start = time.perf_counter()
    model(input_ids=ids, logits_to_keep=1, use_cache=False)
    return time.perf_counter() - start


def tokens(count: int, tokenizer) -> torch.Tensor:
    """``count`` tokens of text: attention to random tokens is flatter than to text."""
    text = "\n".join(path.read_text() for path in sorted((Path(__file__).parent.parent / "src").rglob("*.py")))
    ids = tokenizer(text[: 20 * count])["input_ids"]
    assert len(ids) >= count
    return torch.tensor([ids[:count]])


def measure_seconds(models: dict[str, PreTrainedModel], ids: torch.Tensor, rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {way: [] for way in models}
    for number in range(-1, rounds):
        turn = number % len(models)
        for way in [*models][turn:] + [*models][:turn]:
            taken = forward(models[way], ids)
            if number >= 0:  # the first round warms up
                seconds[way].append(taken)
    return seconds


def peak_bytes(way: str, options: argparse.Namespace) -> dict[int, int | None]:
    """Peak memory above the loaded model for each number of tokens, from a fresh process; None where Linux is not."""
    arguments = ["--memory-of", way, "--dtype", options.dtype, "--threads", str(options.threads), "--tokens"]
    command = [sys.executable, __file__, *arguments, *map(str, options.tokens)]
    # What is freed goes back to the system at once: otherwise the peak says how the allocator's heap came to be laid out.
    allocator = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    made = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | allocator)  # noqa: S603
    return {int(count): peak for count, peak in json.loads(made.stdout.splitlines()[-1]).items()}


def report_memory(way: str, options: argparse.Namespace) -> None:
    model, tokenizer = load("demo", dtype=options.dtype, device="cpu")
    peaks: dict[int, int | None] = {}
    with switched(model, way):
        forward(model, tokens(16, tokenizer))
        for count in options.tokens:
            ids = tokens(count, tokenizer)
            if not Path("/proc/self/clear_refs").exists():
                peaks[count] = None
                continue
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark of the resident set
            before = resident("VmRSS")
            forward(model, ids)
            peaks[count] = resident("VmHWM") - before
    print(json.dumps(peaks))


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 512, 1024, 2048, 4096])
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument(
        "--ways", nargs="+", default=list(WAYS), choices=list(WAYS), help="which ways to run (sdpa always)"
    )
    parser.add_argument("--short", action="store_true", help="32 and 96 tokens, 1 round, for continuous integration")
    parser.add_argument("--no-memory", action="store_true", help="time only")
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    parser.add_argument("--memory-of", choices=list(WAYS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.short:
        options.tokens, options.repeats = [32, 96], 1
    if "sdpa" not in options.ways:
        options.ways.insert(0, "sdpa")

    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    if options.memory_of:
        report_memory(options.memory_of, options)
        return

    memory = {way: {} if options.no_memory else peak_bytes(way, options) for way in options.ways}
    loaded = {way: load("demo", dtype=options.dtype, device="cpu") for way in options.ways}
    tokenizer = loaded[options.ways[0]][1]
    models = {way: model for way, (model, _) in loaded.items()}
    rows = []
    print(f"{options.dtype}, {options.threads} threads, {options.repeats} rounds")
    print(f"{'tokens':>6}  {'what':<14} {'seconds':>8} {'/ sdpa':>7} {'(range)':>13} {'peak MiB':>9}")
    stack = ExitStack()
    for way, model in models.items():
        stack.enter_context(switched(model, way))
    for count in options.tokens:
        seconds = measure_seconds(models, tokens(count, tokenizer), options.repeats)
        for way, taken in seconds.items():
            ratios = sorted(a / b for a, b in zip(taken, seconds["sdpa"], strict=True))
            row = {
                "what": way,
                "tokens": count,
                "dtype": options.dtype,
                "threads": options.threads,
                "seconds": statistics.median(taken),
                "ratio_to_sdpa": statistics.median(ratios),
                "peak_bytes": memory[way].get(count),
            }
            rows.append(row)
            peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}"
            spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
            print(
                f"{count:>6}  {way:<14} {row['seconds']:>8.3f} {row['ratio_to_sdpa']:>7.2f} {spread:>13} {peak:>9}",
                flush=True,
            )
    stack.close()
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
