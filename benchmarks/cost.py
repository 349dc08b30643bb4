"""Holds the cost model of headcount.study.cost to what runs take here, on the demo model.

For each benchmark: measuring all scores, asking the untouched model, asking under one policy, and under six shares of one
score. Operations are those of the cost model; time is processor time on one thread, beside that of a matrix product, so
that other work on the machine matters little. ``python benchmarks/cost.py --json cost.json``
"""

import argparse
import json
import time
from pathlib import Path

import torch

from headcount.models.batching import no_progress
from headcount.policies import Threshold
from headcount.scores import all_scores
from headcount.study.cost import ModelSize
from headcount.study.spec import ModelSpec, Tasks
from headcount.study.subject import load_model, read_data
from headcount.study.units import AskShard, MeasureShard
from headcount.thresholding import thresholds

DATA = [
    Tasks(tasks=("arc_easy",), limit=24),
    Tasks(tasks=("hellaswag",), limit=12),
    Tasks(tasks=("mmlu_anatomy",), num_fewshot=5, limit=6),
]
SHARES = [0.05, 0.10, 0.15, 0.20, 0.25, 0.30]


def product_rate(dtype: torch.dtype) -> float:
    """Operations a second of processor time in a large matrix product."""
    matrix = torch.ones(1024, 1024, dtype=dtype)
    begun = time.process_time()
    for _ in range(5):
        matrix @ matrix
    return 5 * 2 * 1024**3 / (time.process_time() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_model(ModelSpec(model="demo"), dtype=options.dtype)
    size = ModelSize.of(loaded.model)
    rows = []
    for data in DATA:
        subject = read_data(loaded, data, chat_template=False, offline=True)
        assert subject.benchmark is not None
        lengths = [len(row) for row in subject.rows]
        questions = tuple(range(subject.benchmark.num_questions))
        measuring = MeasureShard(
            shard=0,
            first=0,
            last=len(lengths),
            scores=tuple(score.id for score in all_scores()),
            seed=0,
            summarise=False,
        )
        scores = measuring.run(subject, no_progress)  # also warms up
        cuts = thresholds(scores[["ahon_ln"]], SHARES)["ahon_ln"]
        policies = tuple(Threshold("ahon_ln", cuts.sel(share=s).item(), share=s) for s in SHARES)
        asked = size.operations(lengths, scored=len(lengths))
        for what, unit, operations in (
            ("measure 16 scores", measuring, size.operations(lengths)),
            ("ask untouched", AskShard(policies=(None,), questions=questions), asked),
            ("ask under one policy", AskShard(policies=policies[2:3], questions=questions), asked),
            ("ask under six shares", AskShard(policies=policies, questions=questions), 6 * asked),
        ):
            before, begun = product_rate(loaded.model.dtype), time.process_time()
            unit.run(subject, no_progress)
            seconds = time.process_time() - begun
            rate = (before + product_rate(loaded.model.dtype)) / 2
            row = {
                "data": data.label, "what": what, "tokens": sum(lengths), "operations": operations,
                "cpu_seconds": seconds, "product_rate": rate, "efficiency": operations / seconds / rate,
            }  # fmt: skip
            rows.append(row)
            print(
                f"{row['data']:<14}{what:<22}{sum(lengths):>8} tokens {seconds:>8.2f} s {row['efficiency']:>6.2f}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
