"""A tiny random model of every architecture family that headcount is tested on; the table in docs/models.md comes from here."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

COMMON = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
}
_MAMBA = {"mamba_n_heads": 16, "mamba_d_head": 8, "mamba_d_state": 16, "mamba_chunk_size": 8}
_GPT2 = {"n_embd": 64, "n_head": 8, "n_layer": 3, "n_positions": 512}
_WINDOW = {"sliding_window": 8}
_HEAD_DIM = {"head_dim": 8}

#: model_type → what its configuration needs beyond the common sizes.
FAMILIES: dict[str, dict[str, object]] = {
    "apertus": {},
    "arcee": _HEAD_DIM,
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "biogpt": {},
    "cohere": {},
    "cohere2": _WINDOW,
    "deepseek_v3": {
        **_EXPERTS,
        "num_key_value_heads": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 12,
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "first_k_dense_replace": 1,
    },
    "doge": {},
    "dots1": {**_EXPERTS, **_HEAD_DIM, "n_shared_experts": 1},
    "ernie4_5": _HEAD_DIM,
    "exaone4": _WINDOW,
    "falcon_h1": {**_MAMBA, **_HEAD_DIM, "mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_n_groups": 1},
    "gemma": _HEAD_DIM,
    "gemma2": {**_HEAD_DIM, **_WINDOW, "query_pre_attn_scalar": 8},
    "gemma3_text": {**_HEAD_DIM, **_WINDOW, "query_pre_attn_scalar": 8},
    "glm": _HEAD_DIM,
    "glm4": _HEAD_DIM,
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gpt_neox": {},
    "gpt_oss": {**_EXPERTS, **_HEAD_DIM, **_WINDOW},
    "granite": {},
    "granitemoe": _EXPERTS,
    "granitemoehybrid": {
        **_EXPERTS,
        **_MAMBA,
        "layer_types": ["mamba", "attention", "mamba"],
        "shared_intermediate_size": 32,
    },
    "helium": _HEAD_DIM,
    "hunyuan_v1_dense": _HEAD_DIM,
    "jamba": {
        **_EXPERTS,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "use_mamba_kernels": False,
        "num_hidden_layers": 4,
    },
    "lfm2": {"block_auto_adjust_ff_dim": False},
    "llama": {},
    "llama4_text": {**_EXPERTS, **_HEAD_DIM, "attention_chunk_size": 8, "intermediate_size_mlp": 96},
    "minimax": {**_EXPERTS, **_HEAD_DIM, "block_size": 8},
    "mistral": _WINDOW,
    "mixtral": _EXPERTS,
    "nemotron": {},
    "nemotron_h": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": _WINDOW,
    "olmoe": _EXPERTS,
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "phimoe": _EXPERTS,
    "qwen2": {},
    "qwen2_moe": _EXPERTS,
    "qwen3": _HEAD_DIM,
    "qwen3_moe": {**_EXPERTS, **_HEAD_DIM},
    "qwen3_next": {
        **_EXPERTS,
        **_HEAD_DIM,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_hidden_layers": 4,
    },
    "recurrent_gemma": {"attention_window_size": 8, "lru_width": 64},
    "seed_oss": _HEAD_DIM,
    "smollm3": {},
    "stablelm": {},
    "starcoder2": _WINDOW,
}

#: Families that compute attention themselves and are refused by name.
REFUSED: dict[str, dict[str, object]] = {
    "bloom": {},
    "codegen": {**_GPT2, "n_head": 4, "rotary_dim": 8, "n_ctx": 512},
    "falcon": {},
    "gptj": {**_GPT2, "rotary_dim": 8},
    "mpt": {"d_model": 64, "n_heads": 8, "n_layers": 2},
    "xglm": {"d_model": 64, "attention_heads": 8, "num_layers": 2, "ffn_dim": 96},
}


def build(model_type: str, *, seed: int = 0) -> PreTrainedModel:
    """A tiny random float32 model in evaluation mode, its weights large enough for heads to differ."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **(COMMON | {**FAMILIES, **REFUSED}[model_type]))
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "embed" not in name:
                parameter.mul_(3)
            elif "sinks" in name:
                parameter.normal_()
    return model
