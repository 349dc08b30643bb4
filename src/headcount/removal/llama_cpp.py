"""A pruned model as a GGUF file for llama.cpp, whose ``deci`` architecture has head counts of its own for each layer.

Source: llama.cpp, src/models/deci.cpp and conversion/deci.py (MIT), for names, fields and the order of rotary dimensions.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import gguf
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor
from transformers import PreTrainedModel

from headcount.errors import InputError, ModelError
from headcount.removal.plan import Plan

#: The file's name in a checkpoint's folder.
GGUF_FILE = "model.gguf"
#: Types of the matrices; vectors are always float32.
Precision = Literal["f32", "f16", "bf16", "q8_0", "q4_1"]
#: Families whose layers are what ``deci`` computes: RMS norm, rotary embedding of the whole head, gated SiLU.
_FAMILIES = ("llama", "mistral", "qwen2")


def refuse_unfit(model: PreTrainedModel, plan: Plan) -> None:
    """Raise if the format cannot hold the model, or what the plan leaves of it.

    Raises:
        ModelError: another family, or a feature of it that ``deci`` lacks.
        InputError: groups of unequal size, or a first layer without heads.
    """
    config = model.config
    kind = type(model).__name__
    if config.model_type not in _FAMILIES:
        raise ModelError(
            f"{kind} is no {', '.join(_FAMILIES)} model, the families that llama.cpp's per-layer head counts (deci) can hold. "
            "Use --format transformers."
        )
    windows = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    problems = {
        f"a sliding window of {getattr(config, 'sliding_window', None)}": windows
        or (config.model_type == "mistral" and config.sliding_window is not None),
        f"{config.hidden_act} instead of silu": config.hidden_act != "silu",
        f"{_rope(config)['rope_type']} rotary scaling": _rope(config)["rope_type"] not in ("default", "llama3"),
    }
    for problem, found in problems.items():
        if found:
            raise ModelError(f"This {kind} has {problem}, which deci lacks. Use --format transformers.")
    if any(layer.index is not None for layer in plan.layers):
        raise InputError(
            "GGUF has no index from query heads to keys, so groups must have one size: choose --uneven repeat or keep."
        )
    if plan.emptied and plan.emptied[0] == 0:
        raise InputError(
            "All heads of layer 0 are selected, and llama.cpp needs one there. Leave one of them, or use --format transformers."
        )


def write_gguf(
    model: PreTrainedModel,
    pruned: PreTrainedModel,
    plan: Plan,
    file: Path,
    *,
    tokenizer_from: str | os.PathLike[str],
    precision: Precision,
    name: str,
) -> None:
    """Write a cut model for llama.cpp.

    A layer without heads is one without attention there, and has no place for a constant: what its heads put out in the
    mean goes into the bias of the layer before, at the same place in the residual stream.

    Args:
        model: before the cut.
        pruned: from ``cut_heads``.
        plan: what was cut.
        file: is written anew.
        tokenizer_from: a GGUF file of the same original model, whose tokenizer is copied.
        precision: of matrices; with ``q4_1`` the embeddings are ``q8_0``.
        name: of the model, for people.

    Raises:
        ModelError: a model or tokenizer that the format cannot hold.
        InputError: a plan that the format cannot hold, or an unknown precision.
    """
    if precision not in (known := get_args(Precision)):
        raise InputError(f"Unknown precision {precision!r}. Use {', '.join(known)}.")
    refuse_unfit(model, plan)
    writer = gguf.GGUFWriter(file, "deci")
    try:
        _write_fields(writer, model.config, plan, name, precision)
        _copy_tokenizer(writer, tokenizer_from, vocabulary=len(pruned.get_input_embeddings().weight))  # pyright: ignore
        for tensor_name, tensor in _tensors(model, pruned, plan):
            kind = _kind(tensor_name, tensor, precision)
            writer.add_tensor(tensor_name, gguf.quants.quantize(tensor.float().cpu().numpy(), kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _write_fields(writer: gguf.GGUFWriter, config: Any, plan: Plan, name: str, precision: Precision) -> None:
    head_dim = plan.layers[0].before.head_dim
    writer.add_type("model")
    writer.add_name(name)
    writer.add_description(f"{len(plan.removed)} attention heads removed by headcount")
    writer.add_file_type(gguf.LlamaFileType[f"{'ALL' if precision == 'f32' else 'MOSTLY'}_{precision.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count([len(layer.query) for layer in plan.layers])
    writer.add_head_count_kv([len(layer.key_value) for layer in plan.layers])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(_rope(config)["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _copy_tokenizer(writer: gguf.GGUFWriter, source: str | os.PathLike[str], vocabulary: int) -> None:
    try:
        fields = gguf.GGUFReader(source).fields
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{os.fspath(source)!r} cannot be read as GGUF ({error}). Give a GGUF file of the original model."
        ) from error
    tokens = fields.get("tokenizer.ggml.tokens")
    if tokens is None or len(tokens.data) != vocabulary:
        have = "no tokenizer" if tokens is None else f"a tokenizer of {len(tokens.data)} tokens"
        raise ModelError(
            f"{os.fspath(source)!r} has {have}, the model {vocabulary} tokens. Give a GGUF file of the original model."
        )
    for key, field in fields.items():
        if key.startswith("tokenizer."):
            writer.add_key_value(
                key, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None
            )


def _tensors(model: PreTrainedModel, pruned: PreTrainedModel, plan: Plan) -> Iterator[tuple[str, Tensor]]:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.DECI, len(plan.layers))
    layers = {layer.before.index: layer for layer in plan.layers}
    state = pruned.state_dict()
    biases = {index: state.pop(f"model.layers.{index}.self_attn.bias") for index in plan.emptied}
    for index, bias in biases.items():
        state.pop(f"model.layers.{index}.input_layernorm.weight")
        below = f"model.layers.{index - 1}.mlp.down_proj.bias"
        state[below] = state[below].float() + bias if below in state else bias
    if pruned.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    for name, tensor in state.items():
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ModelError(
                f"{type(model).__name__} has {name}, which deci has no place for. Use --format transformers."
            )
        parts = name.split(".")
        if parts[-2] in ("q_proj", "k_proj"):
            layer = layers[int(parts[2])]
            heads = len(layer.query) if parts[-2] == "q_proj" else len(layer.key_value)
            tensor = interleave_rotary(tensor, heads)
        yield found, tensor
    if _rope(pruned.config)["rope_type"] == "llama3":
        yield "rope_freqs.weight", _frequency_factors(model)


def interleave_rotary(weight: Tensor, num_heads: int) -> Tensor:
    """Rows in llama.cpp's order: transformers rotates the halves of a head together, llama.cpp neighbours.

    >>> interleave_rotary(torch.tensor([0, 1, 2, 3, 10, 11, 12, 13]), 2).tolist()
    [0, 2, 1, 3, 10, 12, 11, 13]
    """
    return weight.unflatten(0, (num_heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _frequency_factors(model: PreTrainedModel) -> Tensor:
    """What llama.cpp divides the plain rotary frequencies by, for Llama 3's scaling."""
    frequencies = next(buffer for name, buffer in model.named_buffers() if name.endswith("rotary_emb.inv_freq"))
    exponents = torch.arange(len(frequencies), dtype=torch.float64) / len(frequencies)
    return (_rope(model.config)["rope_theta"] ** -exponents) / frequencies.cpu().double()


def _rope(config: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10_000.0} | dict(config.rope_parameters or {})


def _kind(name: str, tensor: Tensor, precision: Precision) -> Kind:
    if tensor.dim() < 2:
        return Kind.F32
    if precision in ("q8_0", "q4_1") and tensor.shape[-1] % 32:
        return Kind.F16
    if precision == "q4_1" and name in ("token_embd.weight", "output.weight"):
        return Kind.Q8_0
    return Kind[precision.upper()]
