"""The table of checks for a device: what becomes of a check that fails, dies or hangs."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from headcount.attention import ways
from headcount.models.switch import _Block
from tests.pretended import place, pretended_devices


@pytest.fixture
def acceptance(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import acceptance

    return acceptance


def row(*of):
    return f"ROW {json.dumps(of)}\n"


ENDS = {
    "ways": SimpleNamespace(
        returncode=0, stdout=row("", "torch 2", "INFO") + "a line\n" + row("all", "all", "PASS"), stderr=""
    ),
    "float32": SimpleNamespace(returncode=0, stdout=row("0", "1", "FAIL"), stderr=""),
    "bytes": SimpleNamespace(
        returncode=3, stdout=row("0", "0", "PASS"), stderr="Traceback\nRuntimeError: CUDA error: gone\n"
    ),
    "sizes": SimpleNamespace(returncode=-9, stdout="", stderr=""),
    "offload": SimpleNamespace(returncode=0, stdout="", stderr=""),
}


def asked(acceptance, monkeypatch, tmp_path, *names):
    def run(command, timeout, **_):
        name = command[command.index("--check") + 1]
        if name == "questions":
            raise subprocess.TimeoutExpired(command, timeout)
        return ENDS[name]

    monkeypatch.setattr(subprocess, "run", run)
    only = [part for name in names for part in ("--only", name)]
    monkeypatch.setattr(
        sys, "argv", ["acceptance.py", "--device", "cuda", "--json", str(tmp_path / "table.json"), *only]
    )
    with pytest.raises(SystemExit) as end:
        acceptance.main()
    rows = json.loads((tmp_path / "table.json").read_text())
    return end.value.code, [(row["check"], row["found"], row["verdict"]) for row in rows]


def test_a_table_without_a_failure_ends_with_0(acceptance, monkeypatch, tmp_path):
    assert asked(acceptance, monkeypatch, tmp_path, "ways") == (
        0,
        [("ways", "torch 2", "INFO"), ("ways", "all", "PASS")],
    )


def test_a_check_that_fails_dies_hangs_or_says_nothing_is_a_failure_and_the_table_goes_on(
    acceptance, monkeypatch, tmp_path
):
    names = ["float32", "bytes", "questions", "sizes", "offload", "ways"]
    code, rows = asked(acceptance, monkeypatch, tmp_path, *names)
    assert code == 1
    assert rows == [
        ("float32", "1", "FAIL"), ("bytes", "0", "PASS"), ("bytes", "RuntimeError: CUDA error: gone", "FAIL"),
        ("questions", "no end", "FAIL"), ("sizes", "exit code -9", "FAIL"), ("offload", "none", "FAIL"),
        ("ways", "torch 2", "INFO"), ("ways", "all", "PASS"),
    ]  # fmt: skip


def test_every_check_has_a_limit(acceptance):
    from acceptance_checks import CHECKS
    from acceptance_gpu import CHECKS as OF_GPUS

    assert {*CHECKS, *OF_GPUS} == {*acceptance.LIMITS}
    assert {*OF_GPUS} == {*acceptance.OF_GPUS}


@pytest.fixture
def on_a_pretended_device(acceptance, tiny, monkeypatch):
    """The checks, with tiny models on a pretended device and what only a real one knows made up."""
    import acceptance_checks
    import acceptance_gpu

    def model(device="cuda", *_):
        made = tiny(num_hidden_layers=2, max_position_embeddings=8192).requires_grad_(False)
        return place(made, lambda name: "cuda:0" if device == "cuda" else device)

    def tokenizer(given):
        return {"input_ids": [[3 + ord(letter) % 200 for letter in text[:12]] for text in given]}

    for module in (acceptance_checks, acceptance_gpu):
        monkeypatch.setattr(module, "demo", lambda device, *_: (model(device), tokenizer))
    monkeypatch.setattr(acceptance_checks, "tiny", lambda family, device, _: model(device))
    monkeypatch.setattr(acceptance_gpu, "llama_8b", model)
    monkeypatch.setattr(acceptance_gpu, "LENGTHS", ((8, 1.1), (16, 1.1)))
    monkeypatch.setattr(acceptance_gpu, "BATCH", 32)
    monkeypatch.setattr(ways, "supports_gpu", lambda _: False)  # PyTorch's operators attend there
    monkeypatch.setattr(_Block, "attention", _Block.attention)  # which a check replaces
    event = SimpleNamespace(record=lambda: None, elapsed_time=lambda _: 1.0)
    facts = {
        "set_sync_debug_mode": lambda _: None, "Event": lambda **_: event, "synchronize": lambda: None,
        "reset_peak_memory_stats": lambda: None, "memory_allocated": lambda: 0, "max_memory_allocated": lambda: 1,
        "memory_reserved": lambda: 0, "set_per_process_memory_fraction": lambda _: None,
        "get_device_properties": lambda _: SimpleNamespace(total_memory=80 << 30), "get_device_name": lambda _: "none",
    }  # fmt: skip
    for name, fact in facts.items():
        monkeypatch.setattr(torch.cuda, name, fact)
    ways._works.cache_clear()
    with pretended_devices():
        yield acceptance_checks.CHECKS | acceptance_gpu.CHECKS
    ways._works.cache_clear()


@pytest.mark.parametrize(
    ("check", "judged"),
    [
        ("ways", False),
        ("sizes", True),
        ("offload", True),
        ("waits", True),
        ("time", True),
        ("memory", True),
        ("full", False),
    ],
)
def test_checks_of_gpus_run_to_their_end_on_a_pretended_device(check, judged, on_a_pretended_device):
    """Where what is judged is not the device itself, they pass there too."""
    rows = [*on_a_pretended_device[check]("cuda", True)]
    assert rows
    assert all(isinstance(expected, str) and isinstance(found, str) for expected, found, _ in rows)
    assert not judged or all(right is not False for _, _, right in rows), rows


def test_the_model_that_is_timed_has_the_shape_of_llama_8b(acceptance):
    from acceptance_gpu import llama_8b

    model = llama_8b("meta")
    assert model.num_parameters() == 8_030_261_248
    assert model.dtype == torch.bfloat16
    assert torch.get_default_dtype() == torch.float32
