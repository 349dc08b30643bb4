"""Take selected heads out of a model for good, and leave a checkpoint that was held to the masked model."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from headcount.errors import InputError
from headcount.models.batching import Progress, no_progress
from headcount.models.loading import quiet_transformers
from headcount.models.observe import attention_modules, units_of
from headcount.models.state import reads, refuse_out_of_reach
from headcount.removal.card import model_card
from headcount.removal.checkpoint import (
    Loaded,
    load_saved,
    save_as_stock,
    save_with_modelling_file,
    save_zero_filled,
)
from headcount.removal.cut import attention_layouts, cut_heads
from headcount.removal.distill import Distillation, distill
from headcount.removal.gradients import refuse_without_gradients
from headcount.removal.layout import sizes
from headcount.removal.llama_cpp import GGUF_FILE, Precision, refuse_unfit, write_gguf
from headcount.removal.plan import Plan, Uneven, plan_removal
from headcount.removal.replace import How, Replacement, replace_heads
from headcount.removal.selection import Selection
from headcount.removal.verify import Verification, refuse_unequal, verify
from headcount.store.whole import new_folder, refuse_taken

Format = Literal["transformers", "gguf", "zeros"]
_STEPS = {"mean": "Means of head outputs", "refit": "Refitting projections"}


@dataclass(frozen=True, kw_only=True)
class Savings:
    """What a plan leaves, before and after."""

    num_parameters: tuple[int, int]
    key_value_bytes: tuple[int, int]
    """Of the key-value cache, a token."""


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """A pruned checkpoint.

    Attributes:
        folder: where it is.
        plan: what was cut.
        replacement: what the rest of the model got instead.
        loaded: how it is loaded: a ``stock`` class, the ``modelling file`` in the folder, or ``llama.cpp``.
        verification: its logits against the masked model's.
        savings: parameters and cache; None for zero-filled weights, which save nothing.
    """

    folder: Path
    plan: Plan
    replacement: Replacement
    loaded: Loaded
    verification: Verification
    savings: Savings | None


@reads
def prune_heads(
    model: PreTrainedModel,
    selection: Selection,
    folder: str | os.PathLike[str],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    name: str = "",
    how: How = "zero",
    rows: Sequence[Sequence[int]] = (),
    ridge: float = 0.01,
    distillation: Distillation | None = None,
    format: Format = "transformers",
    uneven: Uneven = "index",
    tokenizer_from: str | os.PathLike[str] | None = None,
    precision: Precision = "bf16",
    batch_tokens: int = 4096,
    command: str = "",
    progress: Callable[[str], Progress] = lambda _: no_progress,
) -> Pruned:
    """Write a checkpoint without the selected heads; it is loaded again and held to the masked model before it is kept.

    Args:
        model: is left as it was.
        selection: made for this model.
        folder: a new folder; it is complete once it exists.
        tokenizer: saved with the checkpoint.
        name: of the model, for people.
        how: what replaces the heads: ``zero``, ``mean`` or ``refit`` (see ``replace_heads``).
        rows: token ids of calibration texts.
        ridge: of the refit.
        distillation: how to train what replaces the heads, from there on, towards the original model's predictions on
            ``rows`` (see ``distill``); None for no training.
        format: ``transformers`` cuts the weights; ``gguf`` does so for llama.cpp; ``zeros`` keeps their shapes, loads
            anywhere and saves nothing.
        uneven: how groups of unequal size are solved (see ``plan_removal``).
        tokenizer_from: for ``gguf``, a GGUF file of the same original model, whose tokenizer is copied.
        precision: for ``gguf``, of its matrices.
        batch_tokens: tokens in a batch, padding included.
        command: for the model card.
        progress: called with the name of each step, gives what to call with (done, total).

    Raises:
        InputError: a folder that is taken, or an unusable option.
        ModelError: a selection for another model, a model that cannot be cut, or a checkpoint that is not the masked
            model.
        RunError: the folder cannot be written.
    """
    refuse_out_of_reach(model)
    if format not in ("transformers", "gguf", "zeros"):
        raise InputError(f"A checkpoint's format is 'transformers', 'gguf' or 'zeros', not {format!r}.")
    if format == "gguf" and tokenizer_from is None:
        raise InputError(
            "A GGUF file holds its tokenizer in a form of its own: give a GGUF file of the original model to copy it from "
            "(--gguf-tokenizer)."
        )
    target = Path(folder)
    refuse_taken(target)
    selection.check(model, name)
    plan = plan_removal(units_of(model), selection.heads, uneven=uneven)
    if format != "zeros":
        attention_layouts(model)  # a refusal comes before the calibration, not after
    if format == "gguf":
        refuse_unfit(model, plan)
    if distillation is not None:
        refuse_without_gradients(model)
    probes = probe_rows(model, rows)
    with new_folder(target) as temporary:  # one that cannot be written is known before the calibration
        told = progress(_STEPS[how]) if how != "zero" else no_progress
        replacement = replace_heads(
            model, plan.removed, how, rows=rows, ridge=ridge, batch_tokens=batch_tokens, progress=told
        )
        if distillation is not None:
            replacement = distill(model, replacement, rows, distillation, progress=progress("Distilling"))
        with quiet_transformers():
            if format == "gguf":
                assert tokenizer_from is not None
                pruned, _ = cut_heads(model, plan, replacement)
                loaded, verification = "llama.cpp", verify(model, replacement, pruned, probes)
                refuse_unequal(verification, "The pruned model")
                write_gguf(
                    model, pruned, plan, temporary / GGUF_FILE, tokenizer_from=tokenizer_from, precision=precision,
                    name=name or selection.model.name,
                )  # fmt: skip
            else:
                loaded, verification = _save_verified(model, plan, replacement, temporary, format, probes)
                if tokenizer is not None:
                    tokenizer.save_pretrained(temporary)
        result = Pruned(
            folder=target,
            plan=plan,
            replacement=replacement,
            loaded=loaded,
            verification=verification,
            savings=savings(model, plan, biases=how != "zero" or distillation is not None)
            if format != "zeros"
            else None,
        )
        card = model_card(
            selection, plan, replacement, verification, name=name or selection.model.name, num_texts=len(rows), ridge=ridge,
            distillation=distillation, loaded=loaded, format=format, savings=result.savings, command=command,
        )  # fmt: skip
        (temporary / "README.md").write_text(card, encoding="utf-8")
        selection.save(temporary / "selection.json")
        for file in temporary.iterdir():  # safetensors makes files that nobody else may read
            file.chmod(0o666 & ~_umask())
    return result


def _save_verified(
    model: PreTrainedModel,
    plan: Plan,
    replacement: Replacement,
    folder: Path,
    format: Format,
    probes: Sequence[Sequence[int]],
) -> tuple[Loaded, Verification]:
    if format == "zeros":
        save_zero_filled(model, replacement, folder)
        verification = verify(model, replacement, load_saved(folder, "stock", model), probes)
        refuse_unequal(verification, "The zero-filled checkpoint")
        return "stock", verification
    pruned, resized = cut_heads(model, plan, replacement)
    if save_as_stock(model, pruned, plan, folder):
        verification = verify(model, replacement, load_saved(folder, "stock", model), probes)
        if verification.equal:
            return "stock", verification
        for file in folder.iterdir():  # the shapes fitted, and the class makes something else of them
            file.unlink()
    save_with_modelling_file(model, pruned, resized, folder)
    verification = verify(model, replacement, load_saved(folder, "modelling file", model), probes)
    refuse_unequal(verification, "The pruned checkpoint")
    return "modelling file", verification


def _umask() -> int:
    """The bits that new files of this process lack; to read it is to set it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def probe_rows(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Token ids to compare models on: the starts of three texts, or of random tokens where there are none."""
    found = [list(row[:128]) for row in rows[:3]]
    if not found:
        embeddings = model.get_input_embeddings().weight
        assert isinstance(embeddings, torch.Tensor)
        generator = torch.Generator().manual_seed(0)
        found = torch.randint(0, len(embeddings), (2, 32), generator=generator).tolist()
    return found


def savings(model: PreTrainedModel, plan: Plan, *, biases: bool = True) -> Savings:
    """Parameters and cache that a plan leaves.

    Args:
        model: the model before the cut.
        plan: what goes.
        biases: whether output projections without a bias get one.
    """
    layouts, modules = attention_layouts(model), attention_modules(model)
    before = sum(parameter.numel() for parameter in model.parameters())
    saved = cached_before = cached_after = 0
    for layer in plan.layers:
        index, query, key_value = layer.before.index, len(layer.query), len(layer.key_value)
        layout, module = layouts[index], modules[index]
        cached_before += layout.cached(layer.before.num_key_value_heads)
        if not layer.unchanged:
            output = module.get_submodule(layout.output)
            bias = 0 if getattr(output, "bias", None) is not None or not biases else sizes(output)[0]
            if layer.query:
                full = layout.num_parameters(module, layer.before.num_attention_heads, layer.before.num_key_value_heads)
                saved += full - layout.num_parameters(module, query, key_value) - bias
            else:
                saved += sum(parameter.numel() for parameter in module.parameters()) - sizes(output)[0]
        cached_after += layout.cached(key_value) if layer.query else 2  # a removed layer counts tokens in two numbers
    size = model.dtype.itemsize
    return Savings(num_parameters=(before, before - saved), key_value_bytes=(size * cached_before, size * cached_after))
