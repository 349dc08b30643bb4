"""Compile the GPU's attention kernel ahead of time, without a GPU: registers, spilled bytes and shared memory of each variant.

    python benchmarks/kernel.py --target sm90 --target gfx942

Needs Triton (`pip install triton`), which brings NVIDIA's assembler.
"""

import argparse
import json
import re
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

#: Name → backend, architecture, threads a warp, and bytes of shared memory that a program may take.
TARGETS = {
    "sm80": ("cuda", 80, 32, 163 << 10),
    "sm86": ("cuda", 86, 32, 99 << 10),
    "sm90": ("cuda", 90, 32, 227 << 10),
    "gfx942": ("hip", "gfx942", 64, 64 << 10),
}
TYPES = {"float32": ("fp32", 4), "float16": ("fp16", 2), "bfloat16": ("bf16", 2)}
#: What of the kernel's arguments are pointers, to what; the others are integers, but for two numbers.
POINTERS = {
    "NUMBERS": "fp32", "SUMS": "fp32", "PARTS": "fp32", "SINKS": "fp32", "ROWS": "i32", "SPANS": "i32", "MASK": "u8"
}  # fmt: skip
#: Strides of tensors whose rows begin at multiples of 16 bytes, as those of models do.
ALIGNED = "(query|key|value|output|mask)_"
#: dtype, head sizes, queries, and what the layer has; of a new token, the part of the kernel.
CASES: list[tuple[str, int, int, int, dict[str, Any]]] = [
    ("bfloat16", 64, 64, 2048, {"causal": True}),
    ("bfloat16", 128, 128, 2048, {"causal": True}),
    ("bfloat16", 128, 128, 2048, {"causal": True, "windowed": True}),
    ("bfloat16", 128, 128, 2048, {"causal": True, "windowed": True, "capped": True, "sunk": True}),
    ("bfloat16", 128, 128, 2048, {"masked": True}),
    ("bfloat16", 128, 128, 2048, {"masked": True, "capped": True, "sunk": True}),
    ("bfloat16", 128, 128, 4, {"PHASE": 1}),
    ("bfloat16", 128, 128, 4, {"PHASE": 2}),
    ("bfloat16", 128, 128, 4, {"masked": True}),
    ("bfloat16", 192, 128, 2048, {"causal": True}),
    ("bfloat16", 256, 256, 2048, {"causal": True}),
    ("bfloat16", 256, 256, 2048, {"causal": True, "windowed": True, "capped": True}),
    ("float16", 128, 128, 2048, {"causal": True}),
    ("float32", 64, 64, 2048, {"causal": True}),
    ("float32", 128, 128, 2048, {"causal": True}),
    ("float32", 128, 128, 2048, {"masked": True, "capped": True, "sunk": True}),
    ("float32", 256, 256, 2048, {"causal": True}),
    ("float32", 256, 256, 4, {"PHASE": 1}),
]


def compiled(target: str, dtype: str, dim: int, value_dim: int, length: int, layer: dict[str, Any]) -> dict[str, Any]:
    """One variant: how it is cut, and what it takes."""
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from headcount.attention.gpu import PRECISIONS, tiles_for, variant
    from headcount.attention.gpu_kernel import attention

    knobs.compilation.always_compile, knobs.nvidia.dump_ptxas_log = True, True
    backend, architecture, threads, shared = TARGETS[target]
    element, itemsize = TYPES[dtype]
    tiles = tiles_for(length, dim, value_dim, itemsize, shared)
    phase = layer.get("PHASE", 0)
    has = {name: has for name, has in layer.items() if name != "PHASE"}
    constants = variant(dim, value_dim, tiles, means="causal" in has, **has) | {"PHASE": phase}
    constants |= {"PRECISION": PRECISIONS[backend] if itemsize > 2 else "ieee", "WIDEN": False}
    names = attention.arg_names
    kinds = {name: "constexpr" if name in constants else "i32" for name in names}
    kinds |= {name: f"*{kind}" for name, kind in POINTERS.items()} | {"scale": "fp32", "softcap": "fp32"}
    kinds |= dict.fromkeys(("QUERY", "KEY", "VALUE", "OUTPUT"), f"*{element}")
    aligned = [name for name in names if kinds[name][0] == "*" or re.match(ALIGNED, name)]
    source = ASTSource(
        fn=attention, signature=kinds, constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )  # fmt: skip
    begun = time.perf_counter()
    options = {"num_warps": tiles.warps, "num_stages": tiles.stages, "enable_fp_fusion": True}
    said = StringIO()
    with redirect_stdout(said):
        kernel = triton.compile(source, target=GPUTarget(backend, architecture, threads), options=options)
    found = of_cuda(said.getvalue()) if backend == "cuda" else of_amd(kernel.asm["amdgcn"])
    return {
        "target": target, "dtype": dtype, "head sizes": f"{dim}/{value_dim}", "tokens": length,
        "layer": " ".join(has) or f"new token, phase {phase}",
        "tiles": f"{tiles.queries}×{tiles.keys}, {tiles.warps} warps, {tiles.stages} stages",
        **found, "shared KiB": kernel.metadata.shared // 1024, "seconds": round(time.perf_counter() - begun, 1),
    }  # fmt: skip


def of_cuda(said: str) -> dict[str, int]:
    """Registers and bytes of spilled stores and loads, as NVIDIA's assembler says them."""
    patterns = (r"Used (\d+) registers", r"(\d+) bytes spill stores", r"(\d+) bytes spill loads")
    registers, stored, loaded = (int(match[1]) if (match := re.search(pattern, said)) else 0 for pattern in patterns)
    return {"registers": registers, "spilled": stored + loaded}


def of_amd(assembly: str) -> dict[str, int]:
    """Vector registers, and bytes of scratch memory a thread."""
    patterns = (r"\.vgpr_count:\s+(\d+)", r"\.private_segment_fixed_size:\s+(\d+)")
    registers, scratch = (int(match[1]) if (match := re.search(pattern, assembly)) else 0 for pattern in patterns)
    return {"registers": registers, "spilled": scratch}


def main() -> None:
    """Compile and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="all but sm86 if not given; repeat")
    parser.add_argument("--short", action="store_true", help="the second variant alone")
    parser.add_argument("--json", type=Path, help="write the table there too")
    given = parser.parse_args()
    rows = []
    for target in given.target or ("sm80", "sm90", "gfx942"):
        for case in CASES[1:2] if given.short else CASES:
            rows.append(compiled(target, *case))
            if len(rows) == 1:
                print(" | ".join(rows[0]))
            print(" | ".join(map(str, rows[-1].values())), flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
