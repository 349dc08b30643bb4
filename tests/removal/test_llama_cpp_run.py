"""Pruned GGUF files in llama.cpp itself. Runs where llama-cpp-python is installed (`pip install llama-cpp-python`, which
builds from source), and is left out elsewhere: test_llama_cpp.py reads the same files back."""

import numpy as np
import pytest
import torch

from headcount.models.gguf import gguf_file
from tests.removal.test_llama_cpp import HEADS, tokenizer, written  # noqa: F401  (a fixture)

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")


def logits(file, tokens):
    """Of every position, as llama.cpp computes them with keys and values in float32 (its default is float16)."""
    float32 = llama_cpp.GGML_TYPE_F32
    llama = llama_cpp.Llama(
        str(file), n_ctx=64, n_threads=1, type_k=float32, type_v=float32, logits_all=True, verbose=False
    )
    llama.eval(tokens)
    return np.array(llama.scores[: len(tokens)])


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("heads", [HEADS, [(0, 0), (1, 5), (2, 7)]], ids=["layer gone", "uneven"])
def test_logits_are_those_of_transformers(tiny, tokenizer, tmp_path, family, heads):  # noqa: F811
    model = tiny(family, hidden_size=256, intermediate_size=256)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "embed" not in name:
                parameter.mul_(3)
    pruned = written(model, heads, tokenizer, tmp_path / "m.gguf")
    tokens = torch.randint(3, 256, (24,), generator=torch.Generator().manual_seed(0)).tolist()
    found = logits(tmp_path / "m.gguf", tokens)
    with torch.no_grad():
        expected = pruned(torch.tensor([tokens])).logits[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3 * expected.std())


@pytest.mark.demo
def test_the_demo_model(demo, tmp_path):
    model, encode = demo
    # Every layer differs: layer 1 loses all heads, others a group, one head, or nothing.
    heads = [*((1, head) for head in range(9)), *((layer, head) for layer in range(2, 12) for head in range(layer % 4))]
    pruned = written(model, heads, gguf_file("demo"), tmp_path / "m.gguf", how="zero")
    tokens = encode("Water boils at one hundred degrees Celsius at sea level, and lower on a mountain.")["input_ids"]
    found = logits(tmp_path / "m.gguf", tokens)
    with torch.no_grad():
        expected = pruned(torch.tensor([tokens])).logits[0]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-3 * expected.std().item())
