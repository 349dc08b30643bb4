"""GGUF files, those of embedded models among them: converted to safetensors once, and kept for the next time."""

import shutil
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from headcount.cache import cache_folder, kept
from headcount.embedded import EMBEDDED
from headcount.errors import ModelError
from headcount.files import file_checksum
from headcount.models.quiet import quiet_transformers

_ROOM = 1.2  # of the disk space that the weights take, to be free before they are kept
_PROBE = "Hello  world, 你好!\n\tdef f(x): return x**2  # ½ <s></s> <|im_start|>user"


def gguf_file(model: str) -> Path | None:
    """The GGUF file that a model given by this name comes from; None if it comes from none."""
    if model in EMBEDDED:
        return EMBEDDED[model].path()
    return Path(model) if model.endswith(".gguf") else None


def check_gguf(path: Path) -> None:
    """Raise ModelError for what is no GGUF file."""
    if not path.is_file():
        raise ModelError(f"There is no file {str(path)!r}. Check the path.")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{str(path)!r} is not a GGUF file (it does not start with 'GGUF'). Download it again.")


def converted(
    file: Path, dtype: torch.dtype, read: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]
) -> Path | None:
    """The folder in the cache with a GGUF file's model in ``dtype``, which reads in seconds; converted on first use.

    A tokenizer that would be another when read from there is not kept.

    Args:
        file: it.
        dtype: of the weights.
        read: the model in that dtype and its tokenizer, from the file; called where they are not kept.

    Returns:
        None where it cannot be kept.

    Raises:
        ModelError: as ``read`` does.
    """
    with file.open("rb") as opened:
        content = file_checksum(opened)
    kind = str(dtype).removeprefix("torch.")
    stem = f"gguf-{content}-{kind}-transformers-{transformers.__version__}"
    try:
        return kept(stem, "", partial(_convert, read), lambda folder: folder)
    except OSError as error:
        warnings.warn(
            f"{file.name} is read anew each time, which takes long: converted it could not be kept in {str(cache_folder())!r} "
            f"({error.strerror or error}). HEADCOUNT_CACHE names another folder.",
            stacklevel=4,
        )
        return None


def has_tokenizer(folder: Path) -> bool:
    """Whether the tokenizer is kept as well."""
    return (folder / "tokenizer_config.json").exists()


def forget_quantization(model: PreTrainedModel) -> None:
    """GGUF weights are dequantised on loading; transformers still marks the model as quantised and refuses to save it."""
    for holder, mark in ((model, "hf_quantizer"), (model.config, "quantization_config")):
        if hasattr(holder, mark):
            delattr(holder, mark)


def _convert(read: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]], folder: Path) -> None:
    model, tokenizer = read()
    size = sum(parameter.nbytes for parameter in model.parameters())
    free = shutil.disk_usage(folder.parent).free
    if free < _ROOM * size:
        raise OSError(f"it takes {size / 1e9:.1f} GB, and {free / 1e9:.1f} are free")
    with quiet_transformers():
        model.save_pretrained(folder)
        if _facts(AutoConfig.from_pretrained(folder)) != _facts(model.config):
            raise OSError("its configuration would be another when read from there")
        before = set(folder.iterdir())
        tokenizer.save_pretrained(folder)
        if not _same(tokenizer, AutoTokenizer.from_pretrained(folder)):
            for path in set(folder.iterdir()) - before:
                path.unlink()


def _facts(config: PreTrainedConfig) -> dict[str, Any]:
    """What a configuration says, but for where it comes from."""
    said = config.to_dict()
    return {name: said[name] for name in said.keys() - {"_name_or_path", "transformers_version"}}


def _same(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    def facts(tokenizer: PreTrainedTokenizerBase) -> tuple[object, ...]:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        return (
            backend and backend.to_str(), tokenizer.get_vocab(), tokenizer.all_special_ids, tokenizer.special_tokens_map,
            tokenizer.chat_template, tokenizer(_PROBE)["input_ids"], tokenizer.padding_side,
        )  # fmt: skip

    return facts(one) == facts(other)
