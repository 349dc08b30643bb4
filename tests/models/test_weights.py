import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from headcount.errors import ModelError
from headcount.models.loading import load, outline


def rewrite(folder, change):
    """Save the weights in a folder again, as ``change`` makes them from a dict of tensors."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})
    return folder


def configure(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return folder


def in_parts(folder, model):
    """The model in several files and an index, in an empty folder beside."""
    parts = folder.parent / "parts"
    shutil.copytree(folder, parts, ignore=shutil.ignore_patterns("*.safetensors"))
    model.save_pretrained(parts, max_shard_size="40KB")
    assert len(list(parts.glob("model-*.safetensors"))) > 2
    return parts


def edit_index(folder, change):
    file = folder / "model.safetensors.index.json"
    file.write_text(json.dumps({"metadata": {}, "weight_map": change(json.loads(file.read_text())["weight_map"])}))
    return folder


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("_orig_mod.", r"'_orig_mod', as torch\.compile leaves them: save model\._orig_mod\.save_pretrained"),
        ("module.", r"'module', as DataParallel or DeepSpeed leaves them: save model\.module\.save_pretrained"),
        ("module._orig_mod.", r"as torch\.compile leaves them"),
        ("_fsdp_wrapped_module.", r"as FSDP leaves them"),
        ("base_model.model.", r"as PEFT leaves them: save model\.merge_and_unload\(\)\.save_pretrained"),
        ("base_model.", r"names that begin with 'base_model\.': take that away"),
        ("policy.actor.", r"names that begin with 'policy\.actor\.': take that away"),
    ],
)
def test_tensors_under_other_names_are_missing_and_the_prefix_is_named(checkpoint, prefix, said):
    folder = rewrite(checkpoint(), lambda held: {prefix + name: tensor for name, tensor in held.items()})
    with pytest.raises(
        ModelError, match=rf"lacks 21 of the model's 21 tensors: lm_head\.weight, .* and 18 more\. .*{said}"
    ):
        load(folder, device="cpu")
    with pytest.raises(ModelError, match=said):
        load(folder, device_map="cpu")


def test_a_prefix_inside_the_names_is_found(checkpoint):
    change = {"model.layers.": "model.layers._checkpoint_wrapped_module."}

    def wrapped(held):
        (old, new), *_ = change.items()
        return {name.replace(old, new): tensor for name, tensor in held.items()}

    with pytest.raises(ModelError, match="lacks 18 of .*as activation checkpointing leaves them"):
        load(rewrite(checkpoint(), wrapped), device="cpu")


def test_lora_that_was_not_merged_is_named(checkpoint):
    def adapted(held):
        return {name.replace("q_proj.", "q_proj.base_layer."): tensor for name, tensor in held.items()} | {
            "model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.zeros(2, 32)
        }

    with pytest.raises(ModelError, match=r"lacks 2 of .*q_proj.*'base_layer', as PEFT leaves them.*merge_and_unload"):
        load(rewrite(checkpoint(), adapted), device="cpu")


@pytest.mark.parametrize("change", [lambda name: f"model.{name}", lambda name: name.removeprefix("model.")])
def test_the_prefix_that_transformers_knows_may_be_doubled_or_lacking(checkpoint, tiny, change):
    folder = rewrite(checkpoint(), lambda held: {change(name): tensor for name, tensor in held.items()})
    expected = tiny(num_hidden_layers=2).state_dict()
    found = load(folder, device="cpu")[0].state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_lacking_layer_is_named(checkpoint):
    folder = rewrite(checkpoint(), lambda held: {name: held[name] for name in held if ".layers.1." not in name})
    with pytest.raises(ModelError, match=r"lacks 9 of the model's 21 .*says 2 layers and the file holds 1"):
        load(folder, device="cpu")


def test_more_layers_configured_than_saved(checkpoint):
    with pytest.raises(ModelError, match=r"lacks 9 of the model's 30 .*layers\.2\.input_layernorm.*says 3 layers"):
        load(configure(checkpoint(), num_hidden_layers=3), device="cpu")


@pytest.mark.parametrize("tied", [False, True])
def test_an_empty_file_fills_nothing(checkpoint, tied):
    folder = rewrite(checkpoint(tie_word_embeddings=tied), lambda _: {})
    with pytest.raises(ModelError, match=r"lacks 21 of the model's 21 tensors"):
        load(folder, device="cpu")


def test_a_body_without_a_head_is_named(checkpoint, tiny):
    folder = checkpoint()
    tiny(num_hidden_layers=2).model.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"lacks 1 of .*: lm_head\.weight\. That is the language model's head"):
        load(folder, device="cpu")


def test_a_classifier_is_named(checkpoint):
    def classifier(held):
        return {name: held[name] for name in held if name != "lm_head.weight"} | {"score.weight": torch.zeros(2, 32)}

    with pytest.raises(ModelError, match=r"lm_head\.weight.*or a classifier's \(score\.weight\)"):
        load(rewrite(checkpoint(), classifier), device="cpu")


def test_tied_weights_may_be_missing_and_tensors_too_many(checkpoint):
    folder = checkpoint(tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    model, _ = load(rewrite(folder, lambda held: held | {"other.weight": torch.zeros(3)}), device="cpu")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_pickles_are_held_to_the_same(checkpoint):
    folder = checkpoint()
    held = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({f"module.{name}": tensor for name, tensor in held.items()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="lacks 21 of .*as DataParallel"):
        load(folder, device="cpu", allow_pickle=True)
    torch.save({name: (100 * tensor).to(torch.int8) for name, tensor in held.items()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"as integers"):
        load(folder, device="cpu", allow_pickle=True)


@pytest.mark.parametrize("kind", [torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_integers_for_weights_are_refused(checkpoint, kind):
    def rounded(held):
        return held | {name: (100 * held[name]).to(kind) for name in held if "k_proj" in name}

    with pytest.raises(ModelError, match=r"holds model\.layers\.0\.self_attn\.k_proj\.weight as integers"):
        load(rewrite(checkpoint(), rounded), device="cpu")


@pytest.mark.parametrize(
    ("family", "named"),
    [
        (
            {"model_type": "mixtral", "num_local_experts": 4},
            lambda name: name,
        ),  # the model has its experts in one tensor
        ({}, lambda name: name.removeprefix("model.")),
    ],
)
def test_integers_for_weights_are_refused_under_the_files_own_names(checkpoint, family, named):
    def rounded(held):
        return {
            named(name): (100 * tensor).to(torch.int8) if "proj" in name or "expert" in name else tensor
            for name, tensor in held.items()
        }

    with pytest.raises(ModelError, match=r"as integers, 8-bit floats or the like"):
        load(rewrite(checkpoint(**family), rounded), device="cpu")


def test_other_shapes_are_named(checkpoint):
    with pytest.raises(
        ModelError,
        match=r"2 tensors of .* other shapes .* lm_head\.weight: \[256, 64\] in the file, \[160, 64\] in the",
    ):
        load(configure(checkpoint(), vocab_size=160), device="cpu")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers=0, where at least 1"),
        ({"num_hidden_layers": -3}, "num_hidden_layers=-3, where at least 1"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1,000,000,000, more than any model"),
        ({"num_hidden_layers": "two"}, "could not be loaded: .*expected int, got str"),
        ({"num_attention_heads": 0}, "a size in its configuration is 0"),
        ({"num_attention_heads": -4}, "num_attention_heads=-4, where"),
        ({"num_key_value_heads": 0}, "num_key_value_heads=0, where"),
        ({"head_dim": 0}, "head_dim=0, where"),
        ({"vocab_size": 0}, "vocab_size=0, where"),
        ({"vocab_size": 10**10}, "describes 1,280,000,.* parameters, but its files hold [0-9,]* at most"),
        ({"hidden_size": 2**30, "head_dim": 8}, "describes .* parameters"),
        ({"intermediate_size": 10**10}, "describes .* parameters"),
        ({"max_position_embeddings": -1}, "max_position_embeddings=-1, where"),
    ],
)
def test_a_configuration_that_no_model_has_is_refused_before_it_takes_memory(checkpoint, fields, said):
    with pytest.raises(ModelError, match=said):
        load(configure(checkpoint(), **fields), device="cpu")


def test_an_outline_is_of_a_possible_configuration(checkpoint):
    with pytest.raises(ModelError, match="num_hidden_layers=0, where at least 1"):
        outline(configure(checkpoint(), num_hidden_layers=0))


def test_parts_are_whole_or_refused(checkpoint, tiny):
    folder = in_parts(checkpoint(), tiny(num_hidden_layers=2))
    load(folder, device="cpu")
    edit_index(folder, lambda named: {name: file for name, file in named.items() if "k_proj" not in name})
    load(folder, device="cpu")  # the files hold what the index leaves out
    edit_index(folder, lambda named: {name: file for name, file in named.items() if "-00002-" not in file})
    with pytest.raises(ModelError, match=r"lacks \d+ of the model's 21 tensors"):
        load(folder, device="cpu")


def test_a_part_that_is_not_there_is_named(checkpoint, tiny):
    folder = in_parts(checkpoint(), tiny(num_hidden_layers=2))
    lost = sorted(folder.glob("model-*"))[1]
    lost.unlink()
    with pytest.raises(ModelError, match=rf"lacks 1 of the \d+ files that its index names, first '{lost.name}'"):
        load(folder, device="cpu")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}'])
def test_an_index_that_names_nothing_is_refused(checkpoint, tiny, content):
    folder = in_parts(checkpoint(), tiny(num_hidden_layers=2))
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError, match=r"index\.json' (cannot be read|names no weights).*Download it again"):
        load(folder, device="cpu")


def test_an_old_index_does_no_harm_and_weights_saved_twice_are_refused(checkpoint, tiny):
    folder = checkpoint()
    parts = in_parts(folder, tiny(num_hidden_layers=2, seed=1))
    shutil.copy(parts / "model.safetensors.index.json", folder)
    load(folder, device="cpu")
    for part in parts.glob("model-*"):
        shutil.copy(part, folder)
    with pytest.raises(ModelError, match=r"holds its weights twice, in model\.safetensors and in parts"):
        load(folder, device="cpu")


def test_an_adapter_is_no_model(checkpoint):
    folder = checkpoint()
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"is a PEFT adapter.*merge_and_unload"):
        load(folder, device="cpu")


def test_a_part_of_a_gguf_is_refused_by_what_it_lacks(tmp_path):
    gguf = pytest.importorskip("gguf")
    part = tmp_path / "model-00001-of-00002.gguf"
    writer = gguf.GGUFWriter(part, "llama")
    writer.add_vocab_size(96)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_block_count(3)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"word{i}" for i in range(96)])
    shapes = {"token_embd": (96, 32), "output": (96, 32), "output_norm": (32,)}
    shapes |= {f"blk.0.{norm}": (32,) for norm in ("attn_norm", "ffn_norm")}
    shapes |= {f"blk.0.attn_{name}": (size, 32) for name, size in (("q", 32), ("k", 16), ("v", 16), ("output", 32))}
    shapes |= {"blk.0.ffn_gate": (48, 32), "blk.0.ffn_up": (48, 32), "blk.0.ffn_down": (32, 48)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    # Nine tensors a layer, and three beside: the first layer's are there.
    with pytest.raises(ModelError, match=r"lacks 18 of the model's 30 tensors: .*It is part 1 of 2: join them"):
        load(part, device="cpu")
