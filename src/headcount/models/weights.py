"""Whether a model holds what its checkpoint holds: transformers' own loading report, read instead of logged."""

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from headcount.errors import ModelError
from headcount.models.state import values

#: Sizes that are at least 1 where a configuration gives them as a number.
_SIZES = (
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size", "vocab_size",
    "max_position_embeddings",
)  # fmt: skip
#: What safetensors calls floats that need no scale beside them.
_FLOATS = ("F64", "F32", "F16", "BF16")
_MOST_LAYERS = 1_000  # beyond any model, and built in seconds
#: What wrappers leave in the names of tensors: who they are, and what is saved instead.
_LEFT_BY = {
    "_orig_mod": ("torch.compile", "model._orig_mod.save_pretrained"),
    "_fsdp_wrapped_module": ("FSDP", "the full state of the unwrapped model with save_pretrained"),
    "_checkpoint_wrapped_module": ("activation checkpointing", "the unwrapped model with save_pretrained"),
    "module": ("DataParallel or DeepSpeed", "model.module.save_pretrained"),
    "base_model.model": ("PEFT", "model.merge_and_unload().save_pretrained"),
    "base_layer": ("PEFT", "model.merge_and_unload().save_pretrained"),
}


def load_filled(kind: Any, source: str | Path, *, name: str, **options: Any) -> PreTrainedModel:
    """``kind.from_pretrained(source, **options)``, refused unless the checkpoint fills the model.

    Tied weights and buffers that are not saved may be missing, and tensors may be too many.

    Args:
        kind: a model class of transformers, or ``AutoModelForCausalLM``.
        source: as ``from_pretrained`` takes it.
        name: the checkpoint, for the error.
        options: of ``from_pretrained``.

    Raises:
        ModelError: tensors are missing, or have other shapes than the configuration gives them.
    """
    model, report = kind.from_pretrained(source, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    if missing := report["missing_keys"]:
        raise ModelError(_missing(model, missing, report["unexpected_keys"], name))
    if wrong := sorted(report["mismatched_keys"]):
        tensor, held, expected = wrong[0]
        raise ModelError(
            f"{len(wrong)} tensors of {name} have other shapes than its configuration gives them, first {tensor}: "
            f"{list(held)} in the file, {list(expected)} in the model. Take the config.json that was saved with the weights."
        )
    return model


def check_config(config: PreTrainedConfig, name: str, files: Iterable[Path], *, trust_remote_code: bool) -> None:
    """Refuse what no model can be built from, before it takes memory.

    Args:
        config: the configuration.
        name: the checkpoint, for the error.
        files: its weights, as far as they are here.
        trust_remote_code: as in transformers.

    Raises:
        ModelError: a size below 1, too many layers, or far more parameters than the files hold.
    """
    sizes = config.get_text_config()
    for field in _SIZES:
        if isinstance(size := getattr(sizes, field, None), int) and size < 1:
            raise ModelError(
                f"The configuration of {name} has {field}={size}, where at least 1 was expected. Correct it."
            )
    layers = getattr(sizes, "num_hidden_layers", None)
    if isinstance(layers, int) and layers > _MOST_LAYERS:
        raise ModelError(
            f"The configuration of {name} has num_hidden_layers={layers:,}, more than any model ({_MOST_LAYERS:,}). Correct it."
        )
    if (most := sum(map(_most_parameters, files))) and (
        needed := _num_parameters(config, trust_remote_code)
    ) > 2 * most:
        raise ModelError(
            f"The configuration of {name} describes {needed:,} parameters, but its files hold {most:,} at most. Take the "
            "config.json that was saved with the weights."
        )


def check_values(model: PreTrainedModel, name: str, files: Iterable[Path]) -> None:
    """Refuse weights that are no real numbers: NaN, infinite, or integers or 8-bit floats that nothing marks as quantised.

    Raises:
        ModelError: the first such tensor, by name.
    """
    for parameter_name, parameter in values(model):
        if parameter.is_floating_point() and not parameter.is_meta and not bool(torch.isfinite(parameter).all()):
            raise ModelError(
                f"{name} has NaN or infinite weights, first in {parameter_name}. Download or convert it again."
            )
    if getattr(model.config, "quantization_config", None) is not None:
        return
    floating = {key for key, tensor in model.state_dict().items() if tensor.is_floating_point()}
    for file in files:
        for key, (_, is_float) in _stored(file).items():
            # A file may name a weight otherwise than the model does: without a prefix, or each expert apart.
            if not is_float and (key in floating or key.endswith(".weight")):
                raise ModelError(
                    f"{name} holds {key} as integers, 8-bit floats or the like, and its configuration says nothing of "
                    "how they are quantised. Take the checkpoint with its quantization_config, or one that is not quantised."
                )


def weight_files(folder: Path) -> list[Path]:
    """The weights in a checkpoint's folder: safetensors, or where there are none, pickles."""
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))


def gguf_part(name: str) -> str | None:
    """What to do about a file that is one of several parts of a GGUF, as llama.cpp names them; None for others."""
    if (match := re.search(r"-(\d{5})-of-(\d{5})\.gguf$", name)) is None:
        return None
    return (
        f"It is part {int(match[1])} of {int(match[2])}: join them with `llama-gguf-split --merge FIRST-PART WHOLE.gguf`, and "
        "give the whole."
    )


def _stored(file: Path) -> dict[str, tuple[int, bool]]:
    """Tensors in a file: number of elements, and whether they are floats of 16 bits or more. Empty where it cannot be read."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  (no mapping)
                return {
                    name: (math.prod(part.get_shape()), part.get_dtype() in _FLOATS) for name, part in slices.items()
                }
        held = torch.load(file, map_location="meta", weights_only=True, mmap=True)
        return {
            name: (tensor.numel(), tensor.is_floating_point() and tensor.itemsize > 1) for name, tensor in held.items()
        }
    except Exception:  # transformers reads it too, and says what is wrong with it
        return {}


def _most_parameters(file: Path) -> int:
    """How many parameters a file can hold at most: integers may pack 16 of 2 bits, GGUF packs 8 in a byte at most."""
    if file.suffix == ".gguf":
        return 8 * file.stat().st_size
    return sum(elements * (1 if is_float else 16) for elements, is_float in _stored(file).values())


def _num_parameters(config: PreTrainedConfig, trust_remote_code: bool) -> int:
    try:
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception:  # loading says why
        return 0
    return sum(parameter.numel() for parameter in empty.parameters())


def _missing(model: PreTrainedModel, missing: Collection[str], extra: Collection[str], name: str) -> str:
    """One sentence on the tensors that a checkpoint lacks, and one on why, as far as their names tell, and what to do."""
    first = sorted(missing, key=lambda key: [part.zfill(9) if part.isdigit() else part for part in key.split(".")])
    named = ", ".join(first[:3]) + (f" and {len(first) - 3} more" if len(first) > 3 else "")
    lacks = f"{name} lacks {len(missing)} of the model's {len(model.state_dict())} tensors: {named}."
    return f"{lacks} {_reason(model, name, set(missing), extra)}"


def _reason(model: PreTrainedModel, name: str, missing: set[str], extra: Collection[str]) -> str:
    if part := gguf_part(name):
        return part
    bare = {key: _without_marks(key) for key in extra}
    if marks := [mark for key in extra if bare[key] in missing for mark in _LEFT_BY if f".{mark}." in f".{key}"]:
        mark = Counter(marks).most_common(1)[0][0]
        who, how = _LEFT_BY[mark]
        return f"The file has them under names with {mark!r}, as {who} leaves them: save {how}(…) instead."
    if any(".lora_A." in key or ".lora_B." in key for key in extra):
        return "The file holds LoRA's matrices: merge them (model.merge_and_unload()), then save_pretrained."
    if prefixes := Counter(prefix for key in extra if (prefix := _prefix(key, missing))):
        return (
            f"The file has them under names that begin with {prefixes.most_common(1)[0][0]!r}: take that away from the names, or "
            "save the inner model with save_pretrained."
        )
    extra = set(extra)
    if prefixes := Counter(prefix for key in missing if (prefix := _prefix(key, extra))):
        return (
            f"The file has them under names without {prefixes.most_common(1)[0][0]!r}: save the whole model with "
            "save_pretrained."
        )
    head = {path for path, module in model.named_modules() if module is model.get_output_embeddings()}
    if {key.rpartition(".")[0] for key in missing} <= head:
        kept = f", or a classifier's ({min(extra)})" if extra else ""
        return (
            f"That is the language model's head: the file is of a model without one{kept}. Take the checkpoint of the causal "
            "language model, or set tie_word_embeddings to true if its embedding is its head."
        )
    layers = {int(match[1]) for key in missing if (match := re.search(r"\.(\d+)\.", key))}
    others = {int(match[1]) for key in model.state_dict().keys() - missing if (match := re.search(r"\.(\d+)\.", key))}
    if layers and others and min(layers) > max(others):
        return (
            f"The configuration says {max(layers) + 1} layers and the file holds {max(others) + 1}: it is a part of a "
            "checkpoint, or the configuration is another's. Download or save it again, all parts of it."
        )
    return "Download or save it again, all parts of it, with the config.json that belongs to it."


def _without_marks(key: str) -> str:
    for mark in _LEFT_BY:
        key = f".{key}".replace(f".{mark}.", ".")[1:]
    return key


def _prefix(longer: str, names: Collection[str]) -> str | None:
    """The shortest beginning of a name, whole parts of it, after which it is one of ``names``."""
    parts = longer.split(".")
    ends = ((".".join(parts[:i]) + ".", ".".join(parts[i:])) for i in range(1, len(parts)))
    return next((start for start, end in ends if end in names), None)
