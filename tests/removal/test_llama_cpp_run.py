"""Pruned GGUF files in llama.cpp itself. Runs where llama-cpp-python is installed (`pip install llama-cpp-python`, which
builds from source), and is left out elsewhere: test_llama_cpp.py reads the same files back."""

import numpy as np
import pytest
import torch

from tests.removal.test_llama_cpp import HEADS, tokenizer, written  # noqa: F401  (a fixture)

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")


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
    llama = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=64, n_threads=1, logits_all=True, verbose=False)
    llama.eval(tokens)
    found = np.array(llama.scores[: len(tokens)])
    with torch.no_grad():
        expected = pruned(torch.tensor([tokens])).logits[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3 * expected.std())
