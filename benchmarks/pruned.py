"""What a pruned checkpoint saves: parameters, key-value cache, and seconds of prefill and decoding, before and after.

::

    python benchmarks/pruned.py demo pruned-folder --dtype bfloat16 --json pruned.json
    python benchmarks/pruned.py original.gguf pruned-folder/model.gguf --json pruned-gguf.json

Both models are loaded at once. In every round each of them reads the same prompt and then decodes, in an order that
turns from round to round; a ratio is the median over rounds of (seconds after / seconds before in the same round), so
that slow drift of a shared machine cancels. Two ``.gguf`` files are run in llama.cpp (``pip install llama-cpp-python``,
which builds from source), anything else in transformers with ``sdpa``.

The cache is measured, not computed: the bytes that a prompt of 64 tokens adds to one of 32. For llama.cpp it is computed
from the file's head counts, for its default of float16.
"""

import argparse
import json
import statistics
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch

from headcount.models.loading import load


class Runtime(ABC):
    """One model, ready to read prompts."""

    num_parameters: int
    cache_bytes: float
    file_bytes: int | None = None

    @abstractmethod
    def run(self, tokens: list[int], batch: int, steps: int) -> tuple[float, float]:
        """Seconds of reading the tokens, ``batch`` times at once, and of decoding ``steps`` further tokens each."""


class Transformers(Runtime):
    def __init__(self, name: str, dtype: str) -> None:
        self.model, self.tokenizer = load(name, dtype=dtype, device="cpu", trust_remote_code=True)
        self.num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.cache_bytes = (self._cached(64) - self._cached(32)) / 32

    def _cached(self, tokens: int) -> int:
        cache: Any = self.model(input_ids=torch.arange(5, 5 + tokens)[None], use_cache=True).past_key_values
        tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values) if tensor is not None]
        return sum(tensor.nbytes for tensor in tensors)

    def run(self, tokens: list[int], batch: int, steps: int) -> tuple[float, float]:
        ids = torch.tensor([tokens] * batch)
        start = time.perf_counter()
        out: Any = self.model(input_ids=ids, use_cache=True, logits_to_keep=1)
        read = time.perf_counter()
        for _ in range(steps):
            following = out.logits[:, -1:].argmax(-1)
            out = self.model(input_ids=following, past_key_values=out.past_key_values, use_cache=True)
        return read - start, time.perf_counter() - read


class LlamaCpp(Runtime):
    def __init__(self, name: str, threads: int, context: int) -> None:
        import gguf
        from llama_cpp import Llama

        self.model = Llama(name, n_ctx=context, n_threads=threads, n_threads_batch=threads, verbose=False)
        reader = gguf.GGUFReader(name)
        architecture = reader.fields["general.architecture"].contents()

        def field(key: str, default: Any = None) -> Any:
            found = reader.fields.get(f"{architecture}.{key}")
            return default if found is None else found.contents()

        heads, groups = field("attention.head_count"), field("attention.head_count_kv")
        width = field("attention.key_length") or field("embedding_length") // heads
        total = sum(groups) if isinstance(groups, list) else groups * field("block_count")
        self.cache_bytes = total * 2 * width * 2
        self.num_parameters = sum(int(tensor.n_elements) for tensor in reader.tensors)
        self.file_bytes = Path(name).stat().st_size

    def run(self, tokens: list[int], batch: int, steps: int) -> tuple[float, float]:
        if batch != 1:
            raise SystemExit("llama.cpp is run with --batches 1.")
        self.model.reset()
        start = time.perf_counter()
        self.model.eval(tokens)
        read = time.perf_counter()
        for step in range(steps):
            self.model.eval([tokens[step % len(tokens)]])
        return read - start, time.perf_counter() - read


def text_tokens(tokenizer: Any, count: int) -> list[int]:
    """``count`` tokens of text: this repository's source."""
    text = "\n".join(path.read_text() for path in sorted((Path(__file__).parent.parent / "src").rglob("*.py")))
    ids = tokenizer(text[: 20 * count])["input_ids"]
    assert len(ids) >= count
    return ids[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", help="hub id, folder, demo, or .gguf file")
    parser.add_argument("after", help="folder of the pruned checkpoint, or .gguf file")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="of transformers")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 1024, 4096])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4], help="texts at once")
    parser.add_argument("--steps", type=int, default=16, help="tokens decoded after each prompt")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)

    names = {"before": options.before, "after": options.after}
    in_llama_cpp = all(name.endswith(".gguf") for name in names.values())
    models: dict[str, Runtime] = {}
    for what, name in names.items():
        if in_llama_cpp:
            models[what] = LlamaCpp(name, options.threads, max(options.contexts) + options.steps)
        else:
            models[what] = Transformers(name, options.dtype)
    first = models["before"]
    tokenizer = first.tokenizer if isinstance(first, Transformers) else load("demo", device="cpu")[1]
    rows: list[dict[str, Any]] = []
    runtime = "llama.cpp" if in_llama_cpp else f"transformers, {options.dtype}"
    print(f"{runtime}, {options.threads} threads, {options.repeats} rounds")
    for quantity in ("num_parameters", "cache_bytes", "file_bytes"):
        before, after = (getattr(models[what], quantity) for what in names)
        if before is not None:
            rows.append({"what": quantity, "before": before, "after": after, "ratio": after / before})
            print(f"{quantity:<16} {before:>14,.0f} {after:>14,.0f} {after / before:>7.3f}")
    print(
        f"{'':<8} {'context':>7} {'batch':>5} {'before, s':>10} {'after, s':>10} {'after / before':>14} {'(range)':>14}"
    )
    for context in options.contexts:
        tokens = text_tokens(tokenizer, context)
        for batch in options.batches:
            seconds: dict[str, list[tuple[float, float]]] = {what: [] for what in names}
            for number in range(-1, options.repeats):
                for what in list(names) if number % 2 else list(names)[::-1]:
                    taken = models[what].run(tokens, batch, options.steps)
                    if number >= 0:  # the first round warms up
                        seconds[what].append(taken)
            for phase, place in (("prefill", 0), ("decode", 1)):
                before, after = ([taken[place] for taken in seconds[what]] for what in names)
                ratios = sorted(b / a for a, b in zip(before, after, strict=True))
                row = {
                    "what": phase, "runtime": runtime, "threads": options.threads, "context": context, "batch": batch,
                    "steps": options.steps if phase == "decode" else 0, "before": statistics.median(before),
                    "after": statistics.median(after), "ratio": statistics.median(ratios),
                    "ratios": ratios,
                }  # fmt: skip
                rows.append(row)
                spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
                print(
                    f"{phase:<8} {context:>7} {batch:>5} {row['before']:>10.3f} {row['after']:>10.3f} "
                    f"{row['ratio']:>14.3f} {spread:>14}",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
