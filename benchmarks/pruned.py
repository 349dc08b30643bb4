"""What pruned checkpoints save: parameters, key-value cache, and seconds of prefill and decoding.

::

    python benchmarks/pruned.py demo smaller smallest original.gguf smaller-gguf/model.gguf --json pruned.json

The first model is what those after it are compared with; the first ``.gguf`` file is what further files are compared
with. Files run in llama.cpp (``pip install llama-cpp-python``, which builds from source), anything else in transformers
with ``sdpa``. All models are loaded at once. In every round each of them reads the same prompts and then decodes, in an
order that turns from round to round; a ratio is the median over rounds of (seconds of the model / seconds of the first
in the same round), so that slow drift of a shared machine cancels.

With one model, a tenth of its heads is cut at random to compare it with: enough to see what speed does, and useless for
anything else.

The cache of transformers is measured, not computed: the bytes that a prompt of 64 tokens adds to one of 32. llama.cpp's
is computed from the file's head counts, for its default of float16.
"""

import argparse
import functools
import json
import random
import statistics
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch

from headcount.models.instrument import units_of
from headcount.models.loading import load
from headcount.removal.prune import prune_heads
from headcount.removal.selection import Selection


@functools.cache  # llama.cpp keeps no reference of its own
def _silent(llama_cpp: Any) -> Any:
    """Takes llama.cpp's log, which is thousands of lines a model, and writes it nowhere."""
    return llama_cpp.llama_log_callback(lambda level, text, data: None)


class Runtime(ABC):
    """One model, ready to read prompts."""

    clock: ClassVar[Callable[[], float]] = staticmethod(time.perf_counter)
    name: str
    num_parameters: int
    cache_bytes: float
    file_bytes: int

    @abstractmethod
    def run(self, tokens: list[int], batch: int, steps: int) -> tuple[float, float]:
        """Seconds of reading the tokens, ``batch`` times at once, and of decoding ``steps`` further tokens each."""


class Transformers(Runtime):
    name = "transformers"

    def __init__(self, model: str, options: argparse.Namespace) -> None:
        self.model, self.tokenizer = load(model, dtype=options.dtype, device="cpu", trust_remote_code=True)
        self.num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.file_bytes = sum(parameter.nbytes for parameter in self.model.parameters())
        self.cache_bytes = (self._cached(64) - self._cached(32)) / 32

    def _cached(self, tokens: int) -> int:
        cache: Any = self.model(input_ids=torch.arange(5, 5 + tokens)[None], use_cache=True).past_key_values
        tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values) if tensor is not None]
        return sum(tensor.nbytes for tensor in tensors)

    def run(self, tokens: list[int], batch: int, steps: int) -> tuple[float, float]:
        ids = torch.tensor([tokens] * batch)
        start = self.clock()
        out: Any = self.model(input_ids=ids, use_cache=True, logits_to_keep=1)
        read = self.clock()
        for _ in range(steps):
            following = out.logits[:, -1:].argmax(-1)
            out = self.model(input_ids=following, past_key_values=out.past_key_values, use_cache=True)
        return read - start, self.clock() - read


class LlamaCpp(Runtime):
    name = "llama.cpp"

    def __init__(self, model: str, options: argparse.Namespace) -> None:
        import gguf
        import llama_cpp

        self.llama: Any = llama_cpp
        llama_cpp.llama_log_set(_silent(llama_cpp), None)
        llama_cpp.llama_backend_init()
        loaded = llama_cpp.llama_model_load_from_file(model.encode(), llama_cpp.llama_model_default_params())
        assert loaded is not None
        parameters = llama_cpp.llama_context_default_params()
        batch = max(options.batches)
        parameters.n_ctx = batch * (max(options.contexts) + options.steps)
        parameters.n_seq_max = batch
        parameters.n_threads = parameters.n_threads_batch = options.threads
        self.context = llama_cpp.llama_init_from_model(loaded, parameters)
        assert self.context is not None
        self.at_once = min(int(parameters.n_batch), int(parameters.n_ctx))
        self.batch = llama_cpp.llama_batch_init(self.at_once, 0, 1)

        reader = gguf.GGUFReader(model)
        architecture = reader.fields["general.architecture"].contents()

        def field(key: str, default: Any = None) -> Any:
            found = reader.fields.get(f"{architecture}.{key}")
            return default if found is None else found.contents()

        heads, groups = field("attention.head_count"), field("attention.head_count_kv")
        width = field("attention.key_length") or field("embedding_length") // heads
        total = sum(groups) if isinstance(groups, list) else groups * field("block_count")
        self.cache_bytes = total * 2 * width * 2
        self.num_parameters = sum(int(tensor.n_elements) for tensor in reader.tensors)
        self.file_bytes = sum(int(tensor.n_bytes) for tensor in reader.tensors)

    def _decode(self, entries: list[tuple[int, int, int, bool]]) -> None:
        """Each entry: token, position, sequence, whether its logits are wanted."""
        for start in range(0, len(entries), self.at_once):
            part = entries[start : start + self.at_once]
            self.batch.n_tokens = len(part)
            for place, (token, position, sequence, wanted) in enumerate(part):
                self.batch.token[place], self.batch.pos[place] = token, position
                self.batch.n_seq_id[place], self.batch.seq_id[place][0] = 1, sequence
                self.batch.logits[place] = wanted
            if self.llama.llama_decode(self.context, self.batch) != 0:
                raise SystemExit("llama.cpp could not decode. Use shorter --contexts or fewer --batches.")
        self.llama.llama_synchronize(self.context)

    def run(self, tokens: list[int], batch: int, steps: int) -> tuple[float, float]:
        self.llama.llama_memory_clear(self.llama.llama_get_memory(self.context), True)
        prompt = [
            (token, place, sequence, place == len(tokens) - 1)
            for sequence in range(batch)
            for place, token in enumerate(tokens)
        ]
        start = self.clock()
        self._decode(prompt)
        read = self.clock()
        for step in range(steps):
            token = tokens[step % len(tokens)]
            self._decode([(token, len(tokens) + step, sequence, True) for sequence in range(batch)])
        return read - start, self.clock() - read


def text_tokens(tokenizer: Any, count: int) -> list[int]:
    """``count`` tokens of text: this repository's source."""
    text = "\n".join(path.read_text() for path in sorted((Path(__file__).parent.parent / "src").rglob("*.py")))
    ids = tokenizer(text[: 20 * count])["input_ids"]
    assert len(ids) >= count
    return ids[:count]


def cut_at_random(name: str, folder: Path, dtype: str) -> str:
    """A checkpoint without a tenth of the heads, whichever."""
    model, tokenizer = load(name, dtype=dtype, device="cpu")
    units = units_of(model)
    heads = [(layer.index, head) for layer in units.layers for head in range(layer.num_attention_heads)]
    gone = random.Random(0).sample(heads, len(heads) // 10)  # noqa: S311
    selection = Selection.of(model, gone, name=name, kind="head", chosen={"score": "random"})
    prune_heads(model, selection, folder, tokenizer=tokenizer)
    return str(folder)


def measure(
    models: dict[str, Runtime], tokens: list[int], batch: int, options: argparse.Namespace
) -> dict[str, list[tuple[float, float]]]:
    """For each model, (prefill, decode) seconds of each round."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for number in range(-1, options.repeats):
        turn = number % len(models)
        for name in [*models][turn:] + [*models][:turn]:
            taken = models[name].run(tokens, batch, options.steps)
            if number >= 0:  # the first round warms up
                seconds[name].append(taken)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "models", nargs="*", default=["demo"], help="hub id, folder, demo, or .gguf file; originals first"
    )
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="of transformers")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 1024, 4096])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4], help="texts at once")
    parser.add_argument("--steps", type=int, default=16, help="tokens decoded after each prompt")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument(
        "--cpu", action="store_true", help="the process's own processor time, where others use the machine"
    )
    parser.add_argument("--short", action="store_true", help="32 tokens, 2 rounds, for continuous integration")
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    if options.short:
        options.contexts, options.batches, options.steps, options.repeats = [32], [1, 2], 4, 2
    if options.cpu:
        Runtime.clock = staticmethod(time.process_time)
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)

    with tempfile.TemporaryDirectory() as temporary:
        where = {name: name for name in options.models}
        if len(where) == 1:
            where["a tenth cut"] = cut_at_random(options.models[0], Path(temporary) / "cut", options.dtype)
        models: dict[str, Runtime] = {
            name: (LlamaCpp if path.endswith(".gguf") else Transformers)(path, options) for name, path in where.items()
        }
    first: dict[str, str] = {}  # of each runtime
    for name, model in models.items():
        first.setdefault(model.name, name)
    of_transformers = [model for model in models.values() if isinstance(model, Transformers)]
    tokenizer = of_transformers[0].tokenizer if of_transformers else load("demo", device="cpu")[1]

    rows: list[dict[str, Any]] = []
    print(f"transformers in {options.dtype}, {options.threads} threads, {options.repeats} rounds")
    for name, model in models.items():
        print(f"{name} ({model.name})")
        for quantity in ("num_parameters", "file_bytes", "cache_bytes"):
            value, before = getattr(model, quantity), getattr(models[first[model.name]], quantity)
            rows.append(
                {"what": quantity, "model": name, "runtime": model.name, "value": value, "ratio": value / before}
            )
            print(f"  {quantity:<16} {value:>14,.0f} {value / before:>7.3f}")
    print(f"{'':<8} {'context':>7} {'batch':>5} {'seconds':>9} {'ratio':>6} {'(range)':>13}  model")
    for context in options.contexts:
        tokens = text_tokens(tokenizer, context)
        for batch in options.batches:
            seconds = measure(models, tokens, batch, options)
            for phase, place in (("prefill", 0), ("decode", 1)):
                for name, model in models.items():
                    taken, before = ([of[place] for of in seconds[which]] for which in (name, first[model.name]))
                    ratios = sorted(a / b for a, b in zip(taken, before, strict=True))
                    row = {
                        "what": phase, "model": name, "runtime": model.name, "dtype": options.dtype,
                        "threads": options.threads, "context": context, "batch": batch,
                        "steps": options.steps if phase == "decode" else 0, "seconds": statistics.median(taken),
                        "ratio": statistics.median(ratios), "ratios": ratios,
                    }  # fmt: skip
                    rows.append(row)
                    spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
                    print(
                        f"{phase:<8} {context:>7} {batch:>5} {row['seconds']:>9.3f} {row['ratio']:>6.3f} {spread:>13}  {name}",
                        flush=True,
                    )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
