"""Save a pruned model so that others can load it: stock classes where they can express it, else with a modelling file."""

import copy
import importlib.util
import inspect
import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedConfig, PreTrainedModel

from headcount.errors import InputError
from headcount.models.weights import load_filled
from headcount.removal import resize
from headcount.removal.plan import NeuronPlan, Plan
from headcount.removal.replace import Replacement

#: How a checkpoint is loaded: by a stock class of transformers, by the modelling file in its folder, or elsewhere.
Loaded = Literal["stock", "modelling file", "llama.cpp"]

_FILE = "modeling_pruned.py"
_CLASSES = '''

from transformers import {config}, {model}


class PrunedConfig({config}):
    """The configuration of {model}, with the sizes of its pruned attention layers and MLPs in ``pruned_attention``."""

    model_type = "pruned_{model_type}"


class PrunedForCausalLM({model}):
    """{model} with fewer heads or neurons in some layers."""

    config_class = PrunedConfig

    def __init__(self, config):
        super().__init__(config)
        resize_attention(self, config.pruned_attention)
'''


def save_as_stock(model: PreTrainedModel, pruned: PreTrainedModel, plan: Plan | NeuronPlan, folder: Path) -> bool:
    """Save what was cut out of ``model`` as a stock class; False, and nothing is written, if none holds its weights."""
    if (counts := plan.uniform) is None or hasattr(model.config, "pruned_attention"):
        return False
    if isinstance(plan, NeuronPlan):
        changes = [{name: counts[1]} for name in _width_fields(model.config, counts[0])]
    else:
        changes = [{"num_attention_heads": counts[0], "num_key_value_heads": counts[1]}]
        changes[0]["head_dim"] = plan.layers[0].before.head_dim
    for changed in changes:
        if (stock := _stock_model(model, pruned.state_dict(), changed)) is not None:
            stock.save_pretrained(folder)
            return True
    return False


def _width_fields(config: PreTrainedConfig, width: int) -> list[str]:
    """The fields that may hold the number of neurons: which of them does, the shapes tell that a class makes of it."""
    known = config.to_dict()
    unsaid = [name for name in ("n_inner", "intermediate_size") if known.get(name, width) is None]
    return [name for name, value in known.items() if type(value) is int and value == width] + unsaid


def save_with_modelling_file(
    model: PreTrainedModel, pruned: PreTrainedModel, resized: dict[str, Any], folder: Path
) -> None:
    """Save what was cut out of ``model``, whatever its layers' counts, with the modelling file that loads it."""
    pruned.save_pretrained(folder, save_original_format=False)
    (folder / _FILE).write_text(modelling_file(model), encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    module = _FILE.removesuffix(".py")
    config |= {
        "architectures": ["PrunedForCausalLM"],
        "model_type": f"pruned_{_stock_class(type(model.config)).model_type}",
        "auto_map": {"AutoConfig": f"{module}.PrunedConfig", "AutoModelForCausalLM": f"{module}.PrunedForCausalLM"},
        "pruned_attention": getattr(model.config, "pruned_attention", {}) | resized,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def save_zero_filled(model: PreTrainedModel, replacement: Replacement, folder: Path) -> None:
    """Save the model in its own shapes, with zeros where removed heads meet the output projection: nothing gets faster.

    Raises:
        InputError: the replacement adds a bias to output projections, and the stock class has none.
    """
    with replacement.applied(model):
        stock = _stock_model(model, model.state_dict(), {})
    if stock is None:
        raise InputError(
            f"{type(model).__name__} has no bias on its output projections, where {replacement.how} keeps what the removed "
            "heads put out. Use --replace zero, or --format transformers."
        )
    stock.save_pretrained(folder)


def load_saved(folder: Path, loaded: Loaded, like: PreTrainedModel) -> PreTrainedModel:
    """The checkpoint as others would load it, in the dtype and on the device of ``like``."""
    options: dict[str, Any] = {"dtype": like.dtype, "use_safetensors": True, "local_files_only": True}
    if loaded == "stock":
        model: Any = load_filled(AutoModelForCausalLM, folder, name=str(folder), **options)
    else:
        # Not through AutoModel: that would leave a copy of the file in the hub's cache.
        spec = importlib.util.spec_from_file_location(f"headcount_pruned_{id(folder)}", folder / _FILE)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.PrunedConfig.from_pretrained(folder)
        model = load_filled(module.PrunedForCausalLM, folder, name=str(folder), config=config, **options)
    model.set_attn_implementation(like.config._attn_implementation)
    return model.to(like.device).eval().requires_grad_(False)


def modelling_file(model: PreTrainedModel) -> str:
    """Source of the modelling file that loads a pruned ``model``; it needs transformers alone."""
    config = _stock_class(type(model.config))
    names = {"config": config.__name__, "model": _stock_class(type(model)).__name__, "model_type": config.model_type}
    return inspect.getsource(resize) + _CLASSES.format(**names)


def _stock_class(kind: type) -> type:
    """The class itself, or the class of transformers that a pruned one is made from."""
    return next(base for base in kind.__mro__ if base.__module__.startswith("transformers.models."))


def _stock_model(model: PreTrainedModel, state: dict[str, Tensor], changes: dict[str, Any]) -> PreTrainedModel | None:
    """A model of a stock class that holds exactly ``state`` (biases of 0 may be added), or None if none has its shapes."""
    for kind, config in _stock_candidates(model, changes):
        try:
            config = type(config).from_dict(config.to_dict())  # refuses what a reload would
            with torch.device("meta"):
                empty = kind(config)
        except Exception:  # noqa: S112 - each class says no in its own way, and then another may say yes
            continue
        wanted = {name: tensor.shape for name, tensor in empty.state_dict().items()}
        added = {name for name in wanted.keys() - state.keys() if name.endswith("_proj.bias")}
        filled = state | {name: torch.zeros(wanted[name], dtype=model.dtype) for name in added}
        if wanted == {name: tensor.shape for name, tensor in filled.items()}:
            empty.load_state_dict(filled, assign=True)
            if model.can_generate():
                empty.generation_config = model.generation_config
            return empty
    return None


def _stock_candidates(
    model: PreTrainedModel, changes: dict[str, Any]
) -> list[tuple[type[PreTrainedModel], PreTrainedConfig]]:
    names = getattr(model.config, "attribute_map", {})
    known = model.config.to_dict()
    changed = {names.get(name, name): value for name, value in changes.items()}
    # head_dim is read from most configurations also where their class does not declare it; in some it is another size.
    if "head_dim" in changed and known.get("head_dim") not in (None, changed["head_dim"]):
        del changed["head_dim"]
    own = [known | changed]
    own += [known | changed | {name: True} for name in ("attention_bias", "mlp_bias") if known.get(name) is False]
    candidates: list[tuple[type[PreTrainedModel], PreTrainedConfig]] = []
    for values in own:
        config = copy.deepcopy(model.config)
        for name, value in values.items():
            if known.get(name) != value:
                config.__dict__[name] = value  # unchecked: what the class thinks of it is found out by making it again
        candidates.append((type(model), config))
    if model.config.model_type == "llama" and changes and not known.get("mlp_bias"):
        # Llama refuses a number of heads that does not divide hidden_size; Mistral is the same network and does not.
        shared = MistralConfig().to_dict().keys() - {"model_type", "architectures", "sliding_window"}
        values = {name: value for name, value in (known | changed).items() if name in shared}
        candidates.append((MistralForCausalLM, MistralConfig(**values, sliding_window=None)))
    return candidates
