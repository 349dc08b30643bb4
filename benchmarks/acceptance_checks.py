"""The checks of ``acceptance.py``: each gives (expected, found, whether that is right; None where nothing is expected)."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import headcount as hc
from headcount.attention import ways
from headcount.attention.inputs import AttentionInputs, Positions, Rows
from headcount.models.batching import batch_tokens_for
from headcount.models.loading import fingerprint

Found = Iterator[tuple[str, str, bool | None]]
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
#: Layers of two-layer models of random weights, where attention is not plain.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 100}, "gemma2": {"head_dim": 64, "sliding_window": 24}, "mistral": {"sliding_window": 16},
    "gemma": {"head_dim": 256}, "gpt_oss": {"head_dim": 64, "sliding_window": 16, "num_local_experts": 4},
    "deepseek_v3": {
        "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1,
        "first_k_dense_replace": 1, "num_key_value_heads": 4,
    },
}  # fmt: skip


def texts(tokenizer: Any, number: int, most: int = 512) -> list[list[int]]:
    """Token ids of paragraphs of headcount's own documentation, the first ``most`` of each."""
    pages = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
    paragraphs = [part for page in pages for part in page.read_text().split("\n\n") if 200 < len(part) < 2000]
    chosen = paragraphs[:: max(1, len(paragraphs) // number)][:number]
    return [row[: most - 5 * i] for i, row in enumerate(tokenizer(chosen)["input_ids"])]


def few_or_many(tokenizer: Any, short: bool, few: int, many: int) -> list[list[int]]:
    """Texts for a check, and short ones where few are asked for."""
    return texts(tokenizer, few, 60) if short else texts(tokenizer, many)


@contextmanager
def way(name: str) -> Iterator[None]:
    """Attend by one way alone; empty for the fastest."""
    before = os.environ.get(ways.VARIABLE, "")
    os.environ[ways.VARIABLE] = name
    yield
    os.environ[ways.VARIABLE] = before


def demo(device: str, dtype: str = "float32") -> tuple[PreTrainedModel, Any]:
    """The demo model, and its tokenizer."""
    return hc.load("demo", dtype=dtype, device=device)


def reference(rows: list[list[int]], round_to: torch.dtype | None = None) -> xr.Dataset:
    """All scores in float32 on the processor, by plain attention; of weights rounded to a dtype first."""
    model, _ = demo("cpu")
    if round_to:
        model = model.to(round_to).float()
    with way("plain"):
        return hc.measure_heads(model, rows)


def largest(found: xr.Dataset, expected: xr.Dataset, bound: Callable[[str, np.ndarray], Any]) -> tuple[str, bool]:
    """The score that is furthest off, in times of its bound, and whether all are within theirs."""
    off = {}
    for name in expected.data_vars:
        wanted = expected[name].values
        away = np.abs(found[name].values - wanted) / bound(str(name), wanted)
        off[name] = float(np.where(np.isnan(wanted) & np.isnan(found[name].values), 0, away).max())
    name = max(off, key=lambda score: np.nan_to_num(off[score], nan=np.inf))
    return f"{name} at {off[name]:.2g} of its bound", all(ratio <= 1 for ratio in off.values())


def versions_and_ways(device: str, short: bool) -> Found:
    """What is here, and by which way each kind of layer is measured."""
    facts = {"torch": torch.__version__, "CUDA": torch.version.cuda, "HIP": torch.version.hip}
    if device != "cpu":
        facts |= {"device": torch.cuda.get_device_name(device), "capability": torch.cuda.get_device_capability(device)}
    try:
        import triton

        facts["triton"] = triton.__version__
    except ImportError:
        facts["triton"] = None
    yield "", ", ".join(f"{name} {value}" for name, value in facts.items() if value), None
    capable = device == "cpu" or torch.version.hip or torch.cuda.get_device_capability(device) >= (8, 0)
    sizes = [(64, 64), (128, 128)] if short else [(s, s) for s in (32, 64, 96, 100, 128, 256)] + [(192, 128)]
    for name, dtype in DTYPES.items():
        chosen: dict[str, list[str]] = {}
        for dim, value_dim in sizes:
            for layer, facts_of_layer in (
                ("causal", {}),
                ("mask", {"mask": True}),
                ("window", {"window": 30}),
                ("softcap", {"softcap": 20.0}),
                ("sinks", {"sinks": True}),
            ):
                inputs, _ = example(device, dtype, dim, value_dim, **facts_of_layer)
                wanted = frozenset({"entropy", "first_token_weight"})
                found = ways._choose(inputs if device != "cpu" else inputs.laid_out(), wanted)
                chosen.setdefault(found, []).append(f"{dim}/{value_dim} {layer}")
        said = "; ".join(f"{found}: {len(layers)}" for found, layers in chosen.items())
        fastest = set(chosen) == {"compiled"}
        yield f"{name}: compiled", said, fastest if capable and (device != "cpu" or name != "float16") else None


def example(
    device: str, dtype: torch.dtype, dim: int, value_dim: int, *, mask: bool = False, softcap: float | None = None,
    sinks: bool = False, length: int = 90, keys: int | None = None, window: int | None = None,
) -> tuple[AttentionInputs, Positions]:  # fmt: skip
    """A layer of random numbers, two rows."""
    generator = torch.Generator().manual_seed(length)
    keys = keys or length
    query, key, value = (
        torch.randn(2, heads, tokens, size, generator=generator).to(device, dtype)
        for heads, tokens, size in ((4, length, dim), (2, keys, dim), (2, keys, value_dim))
    )
    whole = torch.tensor([[0, length]] * 2, dtype=torch.int32, device=device)
    seen = torch.ones(length, keys, dtype=torch.bool, device=device).tril(keys - length).triu(keys - length - 30)
    inputs = AttentionInputs(
        query=query, key=key, value=value, mask=seen.expand(2, 1, -1, -1) if mask else None, scaling=dim**-0.5, softcap=softcap,
        sinks=torch.linspace(-1, 1, 4, device=device) if sinks else None,
        rows=None if window is None else Rows(queries=whole, keys=whole[:, None], packed=False, most_queries=length,
                                              most_keys=length, window=window),
    )  # fmt: skip
    return inputs, Positions.from_mask(None, 2, length, query.device)


def against_the_processor(device: str, short: bool) -> Found:
    """Scores in float32, and the heads that they say are off."""
    model, tokenizer = demo(device)
    rows = few_or_many(tokenizer, short, 3, 24)
    expected, found = reference(rows), hc.measure_heads(model, rows)
    said, right = largest(found, expected, lambda _, wanted: 1e-4 * np.abs(wanted) + 1e-5)
    yield "scores of CPU and plain attention, 1e-4 relative or 1e-5", said, right
    for name in ("ahon_ln", "awft", "aeqd"):
        threshold = float(hc.thresholds(expected, [0.2])[name].item())
        away = np.abs(expected[name].values - threshold)
        differ = (found[name].values < threshold) != (expected[name].values < threshold)
        bound = 1e-4 * max(1.0, abs(threshold))
        yield (
            f"{name}: the same 20% off, but for scores within 1e-4",
            f"{differ.sum()} differ",
            bool((away[differ] <= bound).all()),
        )


def with_reduced_products(device: str, short: bool) -> Found:
    """The model's own float32 products may be rounded; those that measure are not."""
    model, tokenizer = demo(device)
    rows = few_or_many(tokenizer, short, 3, 12)
    torch.set_float32_matmul_precision("high")
    found = hc.measure_heads(model, rows)
    torch.set_float32_matmul_precision("highest")
    said, right = largest(found, reference(rows), lambda _, wanted: 2e-2 * np.abs(wanted) + 5e-3)
    yield 'float32_matmul_precision("high"): within 2e-2, the model\'s own rounding', said, right


def in_bfloat16(device: str, short: bool) -> Found:
    """Scores in bfloat16: as near to those of the same weights in float32 as plain attention in bfloat16 is."""
    model, tokenizer = demo(device, "bfloat16")
    rows = few_or_many(tokenizer, short, 3, 12)
    expected, found = reference(rows, torch.bfloat16), hc.measure_heads(model, rows)
    with way("plain"):
        plain = hc.measure_heads(model, rows)
    names = ["ahon", "fhon", "avvn", "ftvvn", "awft", "aeqd"]
    away = {name: float(np.abs(plain[name] - expected[name]).max()) for name in names}
    said, right = largest(found[names], expected[names], lambda name, _: 2 * away[name] + 1e-4)
    yield "as near to float32 as plain attention in bfloat16, times 2", said, right
    bounds = {"awft": 2e-3, "aeqd": 5e-3}
    said, right = largest(found[names], expected[names], lambda name, wanted: bounds.get(name, 1e-2 * np.abs(wanted)))
    yield "norms within 1e-2, awft within 2e-3, aeqd within 5e-3 nat of float32", said, None


def whatever_the_batch(device: str, short: bool) -> Found:
    """A text alone, in a batch, packed, and padded on the left."""
    for dtype, bound in (("float32", 1e-4), ("bfloat16", 0.1)):
        model, tokenizer = demo(device, dtype)
        rows = few_or_many(tokenizer, short, 3, 5)
        alone = xr.concat([hc.measure_heads(model, [row]) for row in rows], "example")
        width = max(map(len, rows))
        tokens = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
        with hc.instrument(model, scores="all") as probe, torch.no_grad():
            model(tokens, attention_mask=mask, logits_to_keep=1)
        for name, found in (
            ("together", hc.measure_heads(model, rows, batch_tokens=100_000)),
            ("on the left", probe.scores),
        ):
            kept = [str(score) for score in found.data_vars if score in alone]
            said, right = largest(
                found[kept],
                alone[kept],
                lambda _, wanted, bound=bound: bound * (np.abs(wanted) + np.nanmean(np.abs(wanted))),
            )
            yield f"{dtype}, {name}: as alone, within {bound:g}", said, right


def the_same_bytes(device: str, short: bool) -> Found:
    """Twice the same."""
    model, tokenizer = demo(device, "bfloat16")
    rows = few_or_many(tokenizer, short, 3, 12)
    first, second = (hc.measure_heads(model, rows, batch_tokens=2048) for _ in range(2))
    yield "two runs: the same bytes", "equal" if first.equals(second) else "differ", first.equals(second)


def tiny(family: str, device: str, dtype: torch.dtype, **changes: Any) -> PreTrainedModel:
    """Two layers of random weights."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, **{"vocab_size": 256, "hidden_size": 256, "intermediate_size": 128, "num_hidden_layers": 2,
                   "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
                   "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} | FAMILIES[family] | changes,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).to(dtype).eval().requires_grad_(False).to(device)


def odd_shapes(device: str, short: bool) -> Found:
    """Layers that are not plain, and masks and lengths that are not round: as the plain way."""
    half = torch.bfloat16 if device == "cpu" else torch.float16
    rows = [np.random.default_rng(0).integers(3, 256, n).tolist() for n in (1, 7, 70, 33)]
    for family in FAMILIES:
        for dtype in (torch.float32, half):
            model = tiny(family, device, dtype)
            for scores in (["awft"], "all"):
                found = hc.measure_heads(model, rows, scores=scores)
                with way("plain"):
                    expected = hc.measure_heads(model, rows, scores=scores)
                bound = 1e-4 if dtype == torch.float32 else 5e-2
                said, right = largest(
                    found,
                    expected,
                    lambda _, wanted, bound=bound: bound * (np.abs(wanted) + np.nanmean(np.abs(wanted))) + 1e-6,
                )
                yield (
                    f"{family} in {str(dtype)[6:]}, {scores if scores == 'all' else 'awft'}: as the plain way",
                    said,
                    right,
                )
    worst = 0.0
    for keys in range(90, 98):
        inputs, positions = example(device, half, 64, 64, mask=True, keys=keys)
        wanted = frozenset({"entropy", "first_token_weight"})
        found = ways.attend_by_the_fastest_way(inputs, positions, wanted=wanted)[1]
        with way("plain"):
            expected = ways.attend_by_the_fastest_way(inputs, positions, wanted=wanted)[1]
        worst = max(worst, *(float((found[name] - expected[name]).abs().max()) for name in wanted))
    yield "masks of 90 to 97 keys: within 2e-2 of plain", f"{worst:.1g}", worst < 2e-2


def batch_sizes(device: str, short: bool) -> Found:
    """Automatic batches do not depend on what ran before."""
    model, tokenizer = demo(device, "bfloat16")
    before = batch_tokens_for(model)
    hc.measure_heads(model, few_or_many(tokenizer, short, 1, 4))
    after = batch_tokens_for(model)
    yield "automatic batches before and after a pass: equal", f"{before}, {after}", before == after


def offloaded(device: str, short: bool) -> Found:
    """A layer whose weights are fetched each time it runs."""
    import accelerate

    rows = [np.random.default_rng(0).integers(3, 256, n).tolist() for n in (40, 7, 70)]
    model = tiny("mistral", device, torch.float32)
    expected, known = hc.measure_heads(model, rows), fingerprint(model)
    here, model = (
        torch.device(device),
        tiny("mistral", "cpu", torch.float32),
    )  # whose weights stay there where they are offloaded
    if here.type == "cpu":
        spread = accelerate.cpu_offload(model, execution_device=here)
    else:
        places = {"model.embed_tokens": here, "model.rotary_emb": here, "model.layers.0": here, "model.layers.1": "cpu"}
        spread = accelerate.dispatch_model(model, places | {"model.norm": here, "lm_head": here}, main_device=here)
    said, right = largest(hc.measure_heads(spread, rows), expected, lambda _, wanted: 1e-4 * np.abs(wanted) + 1e-5)
    yield "scores as without offloading, 1e-4", said, right
    yield "the same fingerprint", "equal" if fingerprint(spread) == known else "differ", fingerprint(spread) == known


def questions(device: str, short: bool) -> Found:
    """A benchmark under policies, as on the processor."""
    policies = [hc.Threshold("ahon_ln", 0.5), hc.Random(0.1), hc.Fixed([(1, 2), (5, 0)])]

    def asked(device: str) -> Any:
        model, tokenizer = demo(device)
        limit = 6 if short else 40
        return hc.evaluate(model, ["arc_easy"], policies, tokenizer=tokenizer, limit=limit, offline=True).outcomes

    found = asked(device)
    with way("plain"):
        expected = asked("cpu")
    nats = [np.array([n for of in table["loglikelihoods"] for n in of]) for table in (found, expected)]
    off = float(np.abs(nats[0] - nats[1]).max())
    yield "log-likelihoods of four policies, 1e-3 nat", f"{off:.1g}", off <= 1e-3


def generation(device: str, short: bool) -> Found:
    """Answers under a policy, with either kind of cache."""
    model, tokenizer = demo(device)
    tokens = torch.tensor(texts(tokenizer, 1)[0][:60], device=device)[None]
    for decide in ("prompt", "running"):
        answers = []
        for cache in ({}, {"cache_implementation": "static"}):
            with hc.instrument(model, policy=hc.Threshold("ahon_ln", 0.5), decide=decide), torch.no_grad():
                answers.append(model.generate(tokens, max_new_tokens=8, do_sample=False, **cache).tolist())
        yield (
            f"{decide}: the same tokens with a static cache",
            "equal" if answers[0] == answers[1] else "differ",
            answers[0] == answers[1],
        )


CHECKS: dict[str, Callable[[str, bool], Found]] = {
    "ways": versions_and_ways, "float32": against_the_processor, "reduced": with_reduced_products, "bfloat16": in_bfloat16,
    "batches": whatever_the_batch, "bytes": the_same_bytes, "shapes": odd_shapes, "sizes": batch_sizes, "offload": offloaded,
    "questions": questions, "generation": generation,
}  # fmt: skip
