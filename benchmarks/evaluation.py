"""What a benchmark under intervention costs: the demo model's questions, relative to lm-eval's own untouched run.

    python benchmarks/evaluation.py --dtype bfloat16 --threads 2 --json evaluation.json

The same lm-eval requests are answered, encoding included, by lm-eval's ``HFLM`` with the untouched model (batch sizes 8
and 1), and by headcount with no policy, with one per-input policy (``ahon_ln`` at 10%), with a fixed set of as many heads,
with one policy per token, whose heads are off or replaced by their mean, a linear prediction or one from the heads that
stay, and with the baseline and seven shares of ``ahon_ln`` at once. Every way runs once a round, in an order that turns from
round to round; a ratio is the median over rounds of (seconds of the way / seconds of HFLM's faster batch size in the same
round). Thresholds are measured before the clock starts.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM

from headcount.calibrating import calibrate
from headcount.evaluation import HeadcountLM
from headcount.measure import measure_heads, summarise_heads
from headcount.models.loading import load
from headcount.policies import Fixed, Threshold
from headcount.replacements import Kept, Linear, Mean, Zero
from headcount.tasks import load_tasks, quiet
from headcount.thresholding import SHARES, thresholds

#: task → questions, few-shot examples
TASKS = {"arc_easy": (200, 0), "hellaswag": (100, 0), "mmlu": (40, 5)}

#: Inputs that per-token thresholds and replacements come from.
CALIBRATED = 16


def requests_of(task: str, questions: int, shots: int) -> list[Any]:
    """lm-eval's requests for a task's first questions; of a group ten from each of as many tasks as that takes."""
    loaded = [*load_tasks([task], num_fewshot=shots, offline=True).tasks.values()]
    number = min(len(loaded), max(1, questions // 10))
    chosen = loaded[:: len(loaded) // number][:number]
    requests = []
    for one in chosen:
        one.build_all_requests(limit=questions // len(chosen), rank=0, world_size=1)
        requests += one.instances
    return requests


def ways(model, tokenizer, requests: list[Any]) -> tuple[dict[str, Callable[[], Any]], int]:
    """Every way to answer the requests, and how many tokens their distinct inputs have."""
    ours = HeadcountLM(model, tokenizer=tokenizer)
    theirs = {size: HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size) for size in (8, 1)}
    inputs = ours.inputs_of("loglikelihood", requests)
    table = measure_heads(model, inputs, scores=["ahon_ln"])
    cuts = thresholds(table, SHARES)["ahon_ln"]
    policies = [Threshold("ahon_ln", cuts.sel(share=share).item(), share=share) for share in SHARES]
    mean = table["ahon_ln"].mean("example").values
    worst = np.argsort(mean, axis=None)[: mean.size // 10]
    fixed = Fixed([divmod(int(place), mean.shape[1]) for place in worst])
    calibration = calibrate(model, inputs[:CALIBRATED], sensitivity=False)
    of_tokens = thresholds(summarise_heads(model, inputs[:CALIBRATED], scores=["ahon_ln/token"]), [0.1])
    per_token = {
        instead: Threshold(
            "ahon_ln/token", of_tokens["ahon_ln/token"].item(), share=0.1, instead=kind, calibration=calibration
        )
        for instead, kind in {"": Zero(), ", mean": Mean(), ", linear": Linear(), ", kept": Kept()}.items()
    }

    def answer(*chosen: Any) -> Callable[[], Any]:
        def run() -> Any:
            ours._encoded.clear()  # encoding is part of the work
            return ours.respond("loglikelihood", requests, chosen)

        return run

    found = {
        f"HFLM, batch size {size}": lambda lm=lm: lm.loglikelihood(requests, disable_tqdm=True)
        for size, lm in theirs.items()
    }
    found |= {
        "no policy": answer(None),
        "ahon_ln": answer(policies[2]),
        "fixed": answer(fixed),
        **{f"per token{instead}": answer(policy) for instead, policy in per_token.items()},
        "baseline and ahon_ln": answer(None, policies[2]),
        "baseline and 7 shares": answer(None, *policies),
    }
    return found, sum(map(len, inputs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--questions", type=int, help="Of each task. [default: as many as suit it]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--short", action="store_true", help="2 questions a task, 1 round, for continuous integration")
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, tokenizer = load("demo", dtype=options.dtype, device="cpu")
    rows = []
    print(f"{options.dtype}, {options.threads} threads, {1 if options.short else options.rounds} rounds")
    print(f"{'task':<10} {'what':<22} {'seconds':>8} {'/ HFLM':>7} {'(range)':>13}")
    for task in options.tasks:
        questions, shots = options.questions or TASKS[task][0], TASKS[task][1]
        with quiet():
            requests = requests_of(task, 2 if options.short else questions, shots)
            answer, tokens = ways(model, tokenizer, requests)
            answer["no policy"]()  # warms up, and finds out what the model's passes can be cut into
            seconds: dict[str, list[float]] = {name: [] for name in answer}
            for number in range(1 if options.short else options.rounds):
                names = [*answer]
                for name in names[number % len(names) :] + names[: number % len(names)]:
                    start = time.perf_counter()
                    answer[name]()
                    seconds[name].append(time.perf_counter() - start)
        best = np.minimum(seconds["HFLM, batch size 8"], seconds["HFLM, batch size 1"])
        for name, taken in seconds.items():
            ratios = np.array(taken) / best
            row = {
                "what": name,
                "task": task,
                "dtype": options.dtype,
                "threads": options.threads,
                "seconds": statistics.median(taken),
                "ratio_to_hflm": float(np.median(ratios)),
                "tokens": tokens,
            }
            rows.append(row)
            spread = f"{ratios.min():.2f} to {ratios.max():.2f}"
            print(f"{task:<10} {name:<22} {row['seconds']:>8.2f} {row['ratio_to_hflm']:>7.2f} {spread:>13}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
