"""The checks of ``acceptance.py`` that only a GPU can answer, in the form of ``acceptance_checks.py``."""

import gc
import statistics
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from acceptance_checks import Found, demo, largest, texts, way
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import headcount as hc

#: Tokens of a text, and the most that measuring all scores may take relative to PyTorch's attention; and tokens of a batch.
LENGTHS, BATCH = ((512, 1.10), (2048, 1.10), (8192, 1.15)), 16384


def waits(device: str, short: bool) -> Found:
    """PyTorch raises where the host would wait within a layer."""
    from headcount.models.switch import _Block

    model, tokenizer = demo(device, "bfloat16")
    rows, attention = texts(tokenizer, 4), _Block.attention
    policies = [hc.Threshold("ahon_ln", 0.5), hc.Random(0.1), hc.Fixed([(1, 2)])]
    tokens = torch.tensor(rows[0][:40], device=device)[None]

    def strictly(*args: Any, **kwargs: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return attention(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def run() -> None:
        for policy in policies:
            with hc.instrument(model, policy=policy, scores="all"), torch.no_grad():
                model.generate(tokens, max_new_tokens=4, do_sample=False)
        hc.measure_heads(model, rows)

    run()  # factors and probes are made once
    _Block.attention = strictly  # type: ignore[method-assign]
    run()
    yield "no wait within a layer", "none", True


def llama_8b(device: str) -> PreTrainedModel:
    """Of the shape of Llama-3.1-8B, with random weights."""
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=128256, max_position_embeddings=16384, rope_theta=500000.0, dtype="bfloat16",
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    return model.eval().requires_grad_(False)


def seconds(model: PreTrainedModel, tokens: torch.Tensor) -> float:
    """Of one pass on the device."""
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    model(tokens, use_cache=False, logits_to_keep=1)
    ended.record()
    torch.cuda.synchronize()
    return begun.elapsed_time(ended) / 1000


def time_of_passes(device: str, short: bool) -> Found:
    """Whole passes, interleaved, relative to PyTorch's attention."""
    model = llama_8b(device)
    ways_of = {
        "sdpa": (None, ""), "ahon_ln": (["ahon_ln"], ""), "awft": (["awft"], ""), "all": ("all", ""),
        "all, fused": ("all", "fused"), "all, plain": ("all", "plain"),
    }  # fmt: skip
    for length, bound in LENGTHS:
        for total in (length, BATCH):
            tokens = torch.randint(model.config.vocab_size, (total // length, length), device=device)
            taken: dict[str, list[float]] = {name: [] for name in ways_of}
            rounds = 4 if short else 13
            for i in range(rounds):
                for name, (scores, forced) in ways_of.items():
                    if forced == "plain" and (length > 2048 or i > 3):
                        continue
                    with way(forced), torch.no_grad():
                        if scores is None:
                            taken[name].append(seconds(model, tokens))
                        else:
                            with hc.instrument(model, scores=scores):
                                taken[name].append(seconds(model, tokens))
            base = statistics.median(taken["sdpa"][3:])
            ratios = {name: statistics.median(of[3:]) / base for name, of in taken.items() if len(of) > 3}
            said = f"sdpa {base:.3f} s; " + ", ".join(
                f"{name} {ratio:.2f}" for name, ratio in ratios.items() if name != "sdpa"
            )
            asked = total == BATCH
            yield (
                f"{total // length} × {length}" + (f": all ≤ {bound:.2f}" if asked else ""),
                said,
                ratios["all"] <= bound if asked else None,
            )


def memory(device: str, short: bool) -> Found:
    """What a pass takes above the weights."""
    model = llama_8b(device)
    tokens = torch.randint(model.config.vocab_size, (1, LENGTHS[-1][0]), device=device)

    def peak() -> int:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.no_grad():
            model(tokens, use_cache=False, logits_to_keep=1)
        return torch.cuda.max_memory_allocated() - before

    peak()
    plain = peak()
    with hc.instrument(model, scores="all"):
        peak()
        measured = peak()
    yield "1 × 8192, all: ≤ 1.3 of sdpa", f"{measured / plain:.2f} ({plain >> 20} MiB)", measured <= 1.3 * plain


def full_memory(device: str, short: bool) -> Found:
    """Batches that do not fit."""
    model, tokenizer = demo(device, "bfloat16")
    rows = [row * 8 for row in texts(tokenizer, 24)]
    rows = [row[:4000] for row in rows] * 4
    expected = hc.measure_heads(model, rows, batch_tokens=4096)
    gc.collect()
    torch.cuda.empty_cache()
    before, total = torch.cuda.memory_allocated(), torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (2 << 30)) / total)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = hc.measure_heads(model, rows, batch_tokens=65_536)
    torch.cuda.set_per_process_memory_fraction(1.0)
    gc.collect()
    halved = sum("halved" in str(warning.message) for warning in caught)
    yield "one warning, where 65,536 tokens do not fit in 2 GB", f"{halved}", halved == 1
    said, right = largest(found, expected, lambda _, wanted: 5e-2 * (np.abs(wanted) + np.nanmean(np.abs(wanted))))
    yield "scores as in small batches, within rounding", said, right
    after = torch.cuda.memory_allocated()
    yield "allocated afterwards as before", f"{(after - before) >> 20} MiB more", after - before < 64 << 20


def workers(device: str, short: bool) -> Found:
    """A study on Ray's workers, as in one process."""
    from headcount.study.cluster import RayWorkers
    from headcount.study.running import run_study
    from headcount.study.spec import Study

    study = Study.model_validate(
        {"models": ["demo"], "data": [{"tasks": ["arc_easy"], "limit": 24}], "scores": ["ahon_ln"], "shares": [0.1],
         "offline": True, "shard": 8}
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        alone = next(iter(run_study(study, Path(folder) / "alone").runs().values())).measurements()
        for gpus, number in ((1.0, 1), (0.5, 2)):
            cluster = RayWorkers(workers=number, gpus=gpus)
            found = next(
                iter(run_study(study, Path(folder) / f"{number}", workers=cluster).runs().values())
            ).measurements()
            used = len(cluster.pids)
            cluster.close()
            away = float(np.nanmax(np.abs(found["ahon_ln"].values - alone["ahon_ln"].values)))
            yield (
                f"{number} workers, {gpus:g} GPU each: all used, scores within 1e-2",
                f"{used}, {away:.1g}",
                used == number and away < 1e-2,
            )


CHECKS: dict[str, Callable[[str, bool], Found]] = {
    "waits": waits, "time": time_of_passes, "memory": memory, "full": full_memory, "workers": workers,
}  # fmt: skip
