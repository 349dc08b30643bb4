"""GGUF files are converted once, and read from the cache as they are read from the file."""

import gguf
import numpy as np
import pytest
import torch

import headcount.models.gguf as ours
from headcount.models.loading import fingerprint, load

WIDTH, HEADS, LAYERS = 16, 2, 2
WORDS = ["<s>", "</s>", *"abcdefgh", "Ġ", "ab", "Ġa", "cd"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADCOUNT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(cache, tmp_path):
    """A tiny random Llama."""
    file, random = tmp_path / "tiny.gguf", np.random.default_rng(0)
    writer = gguf.GGUFWriter(file, "llama")
    for name, value in {"context_length": 64, "embedding_length": WIDTH, "block_count": LAYERS, "feed_forward_length": 24,
                        "head_count": HEADS, "head_count_kv": HEADS, "layer_norm_rms_eps": 1e-5,
                        "rope_dimension_count": WIDTH // HEADS, "vocab_size": len(WORDS)}.items():  # fmt: skip
        getattr(writer, f"add_{name}")(value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, *[1] * (len(WORDS) - 2)])
    writer.add_token_merges(["a b", "Ġ a", "c d"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    matrices = {"attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH, WIDTH), "attn_v": (WIDTH, WIDTH), "attn_output": (WIDTH, WIDTH),
                "ffn_gate": (24, WIDTH), "ffn_up": (24, WIDTH), "ffn_down": (WIDTH, 24), "attn_norm": (WIDTH,),
                "ffn_norm": (WIDTH,)}  # fmt: skip
    shapes = {f"blk.{layer}.{name}.weight": shape for layer in range(LAYERS) for name, shape in matrices.items()}
    shapes |= {
        "token_embd.weight": (len(WORDS), WIDTH),
        "output.weight": (len(WORDS), WIDTH),
        "output_norm.weight": (WIDTH,),
    }
    for name, shape in shapes.items():
        writer.add_tensor(name, random.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def same(one, other):
    (model, tokenizer), (other_model, other_tokenizer) = one, other
    tensors, others = model.state_dict(), other_model.state_dict()
    assert tensors.keys() == others.keys()
    assert all(
        torch.equal(tensors[name], others[name]) and tensors[name].dtype == others[name].dtype for name in tensors
    )
    assert fingerprint(model) == fingerprint(other_model)
    assert model.name_or_path == other_model.name_or_path
    assert tokenizer("ab cd</s>")["input_ids"] == other_tokenizer("ab cd</s>")["input_ids"]
    return True


@pytest.fixture
def unkept(file, monkeypatch):
    """Reads the file as if there were no cache."""

    def unkept(dtype="float32"):
        with monkeypatch.context() as patch:
            patch.setattr("headcount.models.loading.converted", lambda *_: None)
            return load(file, dtype=dtype, device="cpu")

    return unkept


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_second_load_reads_what_the_first_one_kept_and_gives_the_same(file, cache, unkept, monkeypatch, dtype):
    first = load(file, dtype=dtype, device="cpu")
    (folder,) = cache.iterdir()
    assert folder.name.startswith("gguf-")
    assert f"-{dtype}-transformers-" in folder.name
    monkeypatch.setattr(gguf.GGUFReader, "__init__", lambda *_: pytest.fail("the file was read again"))
    second = load(file, dtype=dtype, device="cpu")
    monkeypatch.undo()
    assert same(first, second)
    assert same(second, unkept(dtype))
    assert second[0].name_or_path == str(file)


def test_another_content_under_the_same_name_is_another_model(file, cache):
    before = load(file, dtype="float32", device="cpu")[0]
    content = bytearray(file.read_bytes())
    content[-4:] = np.float32(0.5).tobytes()  # the last weight
    file.write_bytes(content)
    after = load(file, dtype="float32", device="cpu")[0]
    assert fingerprint(before) != fingerprint(after)
    assert len(list(cache.iterdir())) == 2


def test_a_tokenizer_that_would_be_another_is_read_from_the_file_each_time(file, cache, unkept, monkeypatch):
    monkeypatch.setattr(ours, "_same", lambda *_: False)
    load(file, dtype="float32", device="cpu")
    (folder,) = cache.iterdir()
    assert not list(folder.glob("*token*"))
    assert same(load(file, dtype="float32", device="cpu"), unkept())


@pytest.mark.parametrize("problem", ["_ROOM", "_facts"])
def test_what_cannot_be_kept_is_read_anew_each_time_and_said(file, cache, unkept, monkeypatch, problem):
    monkeypatch.setattr(ours, problem, {"_ROOM": 1e15, "_facts": lambda _: object()}[problem])
    with pytest.warns(UserWarning, match=r"tiny\.gguf is read anew each time, .*HEADCOUNT_CACHE"):
        loaded = load(file, dtype="float32", device="cpu")
    assert not list(cache.iterdir())
    monkeypatch.undo()
    monkeypatch.setenv("HEADCOUNT_CACHE", str(cache))
    assert same(loaded, unkept())
