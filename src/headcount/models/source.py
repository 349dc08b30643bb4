"""What is in a model's folder or hub repository, judged by its files before transformers reads them."""

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from headcount.errors import ModelError
from headcount.models.weights import weight_files


def check_source(name: str, revision: str | None, allow_pickle: bool) -> bool:
    """Say what is wrong with a folder or hub id before transformers does so at length; whether the hub can be asked."""
    folder = Path(name)
    if folder.is_dir():
        files = {file.name for file in folder.iterdir()}
        refuse_pipes(folder)
        _refuse_adapter(name, files)
        if "config.json" not in files:
            ggufs = sorted(file for file in files if file.endswith(".gguf"))
            hint = f" It holds {ggufs[0]}: give that file." if ggufs else " Give a folder saved with save_pretrained."
            raise ModelError(f"The folder {name!r} has no config.json.{hint}")
        _check_files(name, files, allow_pickle)
        if "model.safetensors" not in files and (index := folder / "model.safetensors.index.json").exists():
            _check_index(index, files)
        return False
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or folder.exists():
        raise ModelError(f"There is no model folder {name!r}. Check the path.")
    try:
        repository = HfApi().model_info(name, revision=revision, timeout=10)
    except GatedRepoError as error:
        raise ModelError(f"{name} is gated: accept its terms on the hub and log in (`hf auth login`).") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ModelError(
            f"Unknown model {name!r}: neither a folder here nor on the hub{f' at {revision!r}' if revision else ''}. Check "
            "the name, log in if it is private (`hf auth login`), or use `demo`."
        ) from error
    except Exception:  # no network, a wrong proxy, offline mode, …: what is in the hub's local cache may still serve
        return False
    files = {file.rfilename for file in repository.siblings or ()}
    _refuse_adapter(name, files)
    _check_files(name, files, allow_pickle)
    return True


def refuse_pipes(folder: Path) -> None:
    """Raise ModelError for a pipe or device, for which a command would wait without end.

    Links are followed, as the hub's cache consists of them.
    """
    for file in sorted(folder.iterdir()):
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise ModelError(f"{str(file)!r} is neither a file nor a folder: to read it might never end. Remove it.")


def _refuse_adapter(name: str, files: set[str]) -> None:
    if "adapter_config.json" in files:
        raise ModelError(
            f"{name} is a PEFT adapter (adapter_config.json), not a whole model. Merge it into its base model "
            "(model.merge_and_unload()), and give a folder that holds only what save_pretrained writes then."
        )


def _check_files(name: str, files: set[str], allow_pickle: bool) -> None:
    shards = sorted(file for file in files if re.fullmatch(r"model-\d{5}-of-\d{5}\.safetensors", file))
    if shards and {"model.safetensors", "model.safetensors.index.json"} <= files:
        raise ModelError(
            f"{name} holds its weights twice, in model.safetensors and in parts ({shards[0]}, …), so that it cannot be known "
            "which are meant. Remove those that an earlier save left."
        )
    if any(file.endswith(".safetensors") for file in files):
        return
    pickles = sorted(file for file in files if file.endswith((".bin", ".pt", ".pth", ".ckpt")))
    if not pickles:
        raise ModelError(f"{name} has no weights (*.safetensors). Download the checkpoint again.")
    if not allow_pickle:
        raise ModelError(
            f"{name} has its weights only as pickle ({pickles[0]}), which can run any code when loaded. Convert it to "
            "safetensors, or give --allow-pickle (allow_pickle=True) if you trust where it comes from."
        )


def _check_index(index: Path, files: set[str]) -> None:
    try:
        parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{str(index)!r} cannot be read as an index of weights. Download it again.") from error
    if not parts:
        raise ModelError(f"{str(index)!r} names no weights. Download it again.")
    if lacking := sorted(parts - files):
        raise ModelError(
            f"{str(index.parent)!r} lacks {len(lacking)} of the {len(parts)} files that its index names, first {lacking[0]!r}. "
            "Download them."
        )


def files_here(source: str, options: dict[str, Any]) -> list[Path]:
    """The weights that a source names, as far as they are on this machine."""
    if "gguf_file" in options:
        return [Path(source) / options["gguf_file"]]
    if Path(source).is_dir():
        return weight_files(Path(source))
    cached = try_to_load_from_cache(source, "config.json", revision=options["revision"])
    return weight_files(Path(cached).parent) if isinstance(cached, str) else []
