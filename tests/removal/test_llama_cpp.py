"""GGUF files read back: every field, and every tensor against the pruned model's own."""

from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch

from headcount.errors import InputError, ModelError
from headcount.models.observe import units_of
from headcount.removal.cut import cut_heads
from headcount.removal.llama_cpp import write_gguf
from headcount.removal.plan import plan_removal
from headcount.removal.prune import Checkpoint, prune_heads
from headcount.removal.replace import replace_heads
from headcount.removal.selection import Selection
from tests.removal.test_prune import FITTING, select

WORDS = [f"word{i}" for i in range(256)]
#: Layer 0: uneven groups, made even by repeating. Layer 1: no head stays. Layer 2: one group stays.
HEADS = [(0, 0), (0, 1), *((1, head) for head in range(8)), *((2, head) for head in range(4))]


@pytest.fixture
def tokenizer(tmp_path):
    """A GGUF file of the original model; its tokenizer is what is wanted of it."""
    file = tmp_path / "original.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(WORDS)
    writer.add_token_types([1] * 256)
    writer.add_token_merges(["word 1"])  # llama.cpp does not load a file without
    writer.add_bos_token_id(1)
    writer.add_add_bos_token(False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def read(file):
    reader = gguf.GGUFReader(file)
    fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    return fields, tensors, {t.name: t.tensor_type.name for t in reader.tensors}


def written(model, heads, tokenizer, file, *, how="mean", precision="f32", uneven="repeat"):
    plan = plan_removal(units_of(model), heads, uneven=uneven)
    pruned, _ = cut_heads(model, plan, replace_heads(model, plan.removed, how, FITTING))
    write_gguf(model, pruned, plan, file, tokenizer_from=tokenizer, precision=precision, name="tiny")
    return pruned


def test_every_field(tiny, tokenizer, tmp_path):
    model = tiny(rope_parameters={"rope_type": "default", "rope_theta": 5000.0}, rms_norm_eps=1e-3)
    written(model, HEADS, tokenizer, tmp_path / "m.gguf")
    fields, _, _ = read(tmp_path / "m.gguf")
    assert {
        key: value
        for key, value in fields.items()
        if key not in ("deci.rope.freq_base", "deci.attention.layer_norm_rms_epsilon")
    } == {
        "general.architecture": "deci",
        "general.type": "model",
        "general.name": "tiny",
        "general.description": "14 attention heads removed by headcount",
        "general.file_type": 0,
        "general.quantization_version": 2,
        "deci.block_count": 3,
        "deci.context_length": 512,
        "deci.embedding_length": 64,
        "deci.feed_forward_length": 96,
        "deci.attention.head_count": [6, 0, 4],
        "deci.attention.head_count_kv": [3, 0, 1],  # groups of 2 and 4 make pairs: the second key-value head twice
        "deci.attention.key_length": 8,
        "deci.attention.value_length": 8,
        "deci.rope.dimension_count": 8,
        "deci.vocab_size": 256,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": WORDS,
        "tokenizer.ggml.token_type": [1] * 256,
        "tokenizer.ggml.merges": ["word 1"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.add_bos_token": False,
    }
    assert fields["deci.rope.freq_base"] == 5000.0
    assert fields["deci.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-3)


def test_every_tensor(tiny, tokenizer, tmp_path):
    model = tiny("qwen2")  # biases on queries, keys and values
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()
    pruned = written(model, HEADS, tokenizer, tmp_path / "m.gguf")
    _, tensors, kinds = read(tmp_path / "m.gguf")
    assert set(kinds.values()) == {"F32"}
    state = {name: tensor.detach().numpy() for name, tensor in pruned.state_dict().items()}

    def turned(name, heads):
        # llama.cpp rotates dimensions 2i and 2i + 1 together, transformers i and i + 4 (of 8).
        order = [8 * head + half * 4 + pair for head in range(heads) for pair in range(4) for half in range(2)]
        return state[name][order]

    expected = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output.weight": state["lm_head.weight"],
        "output_norm.weight": state["model.norm.weight"],
    }
    for layer, (query, key_value) in enumerate([(6, 3), (0, 0), (4, 1)]):
        ours, theirs = f"model.layers.{layer}.", f"blk.{layer}."
        expected[f"{theirs}ffn_norm.weight"] = state[f"{ours}post_attention_layernorm.weight"]
        for part in ("gate", "up", "down"):
            expected[f"{theirs}ffn_{part}.weight"] = state[f"{ours}mlp.{part}_proj.weight"]
        if not query:
            continue
        expected[f"{theirs}attn_norm.weight"] = state[f"{ours}input_layernorm.weight"]
        for kind in ("weight", "bias"):
            expected[f"{theirs}attn_q.{kind}"] = turned(f"{ours}self_attn.q_proj.{kind}", query)
            expected[f"{theirs}attn_k.{kind}"] = turned(f"{ours}self_attn.k_proj.{kind}", key_value)
            expected[f"{theirs}attn_v.{kind}"] = state[f"{ours}self_attn.v_proj.{kind}"]
            expected[f"{theirs}attn_output.{kind}"] = state[f"{ours}self_attn.o_proj.{kind}"]
    # Layer 1 has no attention and no place for its constant: the layer before adds it.
    expected["blk.0.ffn_down.bias"] = state["model.layers.1.self_attn.bias"]
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(tensors[name], tensor, err_msg=name)


def test_a_removed_layers_constant_has_the_same_effect_in_the_layer_before(tiny):
    """Which is what the file relies on: the constant enters the residual stream at the same place."""
    model = tiny()
    heads = [(1, head) for head in range(8)]
    plan = plan_removal(units_of(model), heads, uneven="repeat")
    pruned, _ = cut_heads(model, plan, replace_heads(model, plan.removed, "mean", FITTING))
    tokens = torch.tensor([FITTING.rows[0]])
    with torch.no_grad():
        before = pruned(tokens).logits
        gone, below = pruned.model.layers[1].self_attn, pruned.model.layers[0].mlp.down_proj
        below.bias = torch.nn.Parameter(gone.bias.clone())
        gone.bias.zero_()
        torch.testing.assert_close(pruned(tokens).logits, before, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("precision", "matrices", "within"), [("f16", "F16", 1e-3), ("q8_0", "Q8_0", 0.01), ("q4_1", "Q4_1", 0.1)]
)
def test_precisions(tiny, tokenizer, tmp_path, precision, matrices, within):
    model = tiny(num_hidden_layers=1)
    pruned = written(model, [(0, 0), (0, 1), (0, 2), (0, 3)], tokenizer, tmp_path / "m.gguf", precision=precision)
    _, tensors, kinds = read(tmp_path / "m.gguf")
    assert kinds["blk.0.attn_output.weight"] == matrices
    assert kinds["token_embd.weight"] == ("Q8_0" if precision == "q4_1" else matrices)
    assert kinds["blk.0.attn_norm.weight"] == kinds["blk.0.attn_output.bias"] == "F32"
    weight = pruned.model.layers[0].self_attn.o_proj.weight.detach().numpy()
    np.testing.assert_allclose(tensors["blk.0.attn_output.weight"], weight, atol=within * np.abs(weight).max())


def test_llama_3s_rotary_scaling(tiny, tokenizer, tmp_path):
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    model = tiny(rope_parameters={"rope_type": "llama3", "rope_theta": 100.0, **scaling}, num_hidden_layers=1)
    written(model, [(0, 0), (0, 4)], tokenizer, tmp_path / "m.gguf")
    _, tensors, _ = read(tmp_path / "m.gguf")

    # Frequencies 100^(−i/4) = 1, 0.316, 0.1, 0.0316 have wavelengths 6.28, 19.9, 62.8, 198.7. Those below 64/4 = 16 stay,
    # those above 64/1 are divided by 8, and between, with s = (64/wavelength − 1)/3, f becomes (1 − s) f/8 + s f.
    def between(wavelength):
        s = (64 / wavelength - 1) / 3
        return 1 / ((1 - s) / 8 + s)

    wavelengths = 2 * np.pi * 100 ** (np.arange(4) / 4)
    expected = [1, between(wavelengths[1]), between(wavelengths[2]), 8]
    np.testing.assert_allclose(tensors["rope_freqs.weight"], expected, rtol=1e-5)


def test_what_the_format_cannot_hold_is_refused(tiny, tokenizer, tmp_path):
    file = tmp_path / "m.gguf"
    with pytest.raises(InputError, match="layer 0 are selected, and llama.cpp needs one there"):
        written(tiny(), [(0, head) for head in range(8)], tokenizer, file)
    with pytest.raises(InputError, match="--uneven repeat or keep"):
        written(tiny(), [(0, 0)], tokenizer, file, uneven="index")
    with pytest.raises(ModelError, match="Qwen3ForCausalLM is no llama, mistral, qwen2 model"):
        written(tiny("qwen3", head_dim=8), [(0, 0), (0, 4)], tokenizer, file)
    with pytest.raises(ModelError, match="sliding window of 8"):
        written(tiny("mistral", sliding_window=8), [(0, 0), (0, 4)], tokenizer, file)
    with pytest.raises(ModelError, match="tokenizer of 256 tokens, the model 300"):
        written(tiny(vocab_size=300), [(0, 0), (0, 4)], tokenizer, file)
    with pytest.raises(InputError, match="Unknown precision 'q2'"):
        written(tiny(), [(0, 0), (0, 4)], tokenizer, file, precision="q2")


def test_a_checkpoint_for_llama_cpp(tiny, tokenizer, tmp_path):
    model = tiny()
    for_llama_cpp = Checkpoint(format="gguf", uneven="repeat", tokenizer_from=tokenizer)
    result = prune_heads(model, select(model, HEADS), tmp_path / "p", FITTING, how="mean", checkpoint=for_llama_cpp)
    assert result.loaded == "llama.cpp"
    assert result.verification.equal
    fields, _, kinds = read(tmp_path / "p" / "model.gguf")
    assert fields["deci.attention.head_count"] == [6, 0, 4]
    assert kinds["blk.0.attn_q.weight"] == "BF16"
    assert "llama-cli -m model.gguf" in (tmp_path / "p" / "README.md").read_text()
    assert Selection.load(tmp_path / "p" / "selection.json").heads == tuple(HEADS)
    with pytest.raises(InputError, match="--gguf-tokenizer"):
        Checkpoint(format="gguf", uneven="repeat")
    damaged = replace(for_llama_cpp, tokenizer_from=tmp_path / "p" / "README.md")
    with pytest.raises(ModelError, match="cannot be read as GGUF"):
        prune_heads(model, select(model, HEADS), tmp_path / "q", checkpoint=damaged)
    assert not (tmp_path / "q").exists()
