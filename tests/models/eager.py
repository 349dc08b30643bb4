"""What scores are, from a model's own eager attention, as loops."""

import math
import sys

import numpy as np
import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from headcount.models.projection import output_projection

Layers = dict[int, tuple[torch.nn.Module, np.ndarray, np.ndarray, np.ndarray]]


def eager_attention(model: PreTrainedModel, tokens: torch.Tensor) -> Layers:
    """layer → (module, attention weights [head, query, key], values [key-value head, key, dim], outputs [head, query, dim]).

    From the family's own eager attention function, which headcount never calls.
    """
    layers: Layers = {}

    def capture(module, query, key, value, attention_mask, **kwargs):
        eager = sys.modules[type(module).__module__].eager_attention_forward
        output, weights = eager(module, query, key, value, attention_mask, **kwargs)
        arrays = weights[0], value[0], output[0].transpose(0, 1)
        layers[module.layer_idx] = module, *(array.detach().double().numpy() for array in arrays)
        return output, weights

    before = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
    implementations = {key: config._attn_implementation for key, config in before.items()}
    AttentionInterface.register("capture", capture)
    AttentionMaskInterface.register("capture", eager_mask)
    try:
        model.set_attn_implementation("capture")
        with torch.no_grad():
            model(tokens, use_cache=False)
    finally:
        for key, config in before.items():
            config._attn_implementation_internal = implementations[key]
        del AttentionInterface._global_mapping["capture"], AttentionMaskInterface._global_mapping["capture"]
    return layers


def plain_scores(
    module: torch.nn.Module, weights: np.ndarray, values: np.ndarray, outputs: np.ndarray
) -> dict[str, np.ndarray]:
    """The scores of one layer, [head] each, by SCORES' definitions written as loops."""
    heads, length, _ = weights.shape
    group = heads // len(values)
    projection = output_projection(module)
    raw: dict[str, list[float]] = {name: [] for name in ("awft", "aeqd", "ftvvn", "avvn", "lthon", "ahon", "fhon")}
    for head in range(heads):
        entropy = 0.0
        for query in range(length):
            row = [*weights[head, query], max(0.0, 1 - weights[head, query].sum())]  # the rest is the sink's, or 0
            entropy -= sum(p * math.log(p) for p in row if p > 1e-7)
        value, output = values[head // group], outputs[head]
        alone = np.zeros((length, heads, output.shape[-1]))
        alone[:, head] = output
        with torch.no_grad():
            bias = projection(torch.zeros(1, heads * output.shape[-1]))
            contribution = (projection(torch.tensor(alone.reshape(length, -1)).float()) - bias).double().numpy()
        norms = np.linalg.norm(output, axis=-1)
        raw["awft"].append(weights[head, :, 0].mean())
        raw["aeqd"].append(entropy / length)
        raw["ftvvn"].append(np.linalg.norm(value[0]))
        raw["avvn"].append(np.linalg.norm(value, axis=-1).mean())
        raw["lthon"].append(norms[-1])
        raw["ahon"].append(norms.mean())
        raw["fhon"].append(np.linalg.norm(contribution, axis=-1).mean())
    scores = {name: np.array(of_heads) for name, of_heads in raw.items()}
    normalised = {f"{name}_ln": of_heads / of_heads.mean() for name, of_heads in scores.items()}
    normalised["lthon_ln"] = scores["lthon"] / scores["ahon"].mean()
    return scores | normalised | {"lthon_hn": scores["lthon"] / scores["ahon"]}
