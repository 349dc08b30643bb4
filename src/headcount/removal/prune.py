"""Take selected heads or neurons out of a model for good, and leave a checkpoint that was held to the masked model."""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from headcount.errors import InputError
from headcount.models.batching import Progress, no_progress
from headcount.models.gradients import refuse_without_gradients
from headcount.models.observe import units_of
from headcount.models.quiet import quiet_transformers
from headcount.models.state import reads, refuse_out_of_reach
from headcount.removal.checkpoint import Loaded, load_saved, save_as_stock, save_with_modelling_file, save_zero_filled
from headcount.removal.cut import cut_heads
from headcount.removal.distill import distill
from headcount.removal.fitting import NO_TEXTS, Distillation, Fitting
from headcount.removal.head_weights import head_weights_of
from headcount.removal.llama_cpp import GGUF_FILE, Precision, refuse_unfit, write_gguf
from headcount.removal.neurons import cut_neurons, plain_mlps, replace_neurons
from headcount.removal.plan import NeuronPlan, Plan, Uneven, plan_neurons, plan_removal
from headcount.removal.pruned import Pruned, model_card, savings
from headcount.removal.replace import How, Replacement, replace_heads
from headcount.removal.selection import Selection
from headcount.removal.verify import Verification, refuse_unequal, verify
from headcount.store.whole import new_folder, refuse_taken

Format = Literal["transformers", "gguf", "zeros"]
_STEPS = {"mean": "Means of outputs", "refit": "Refitting projections"}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """How a pruned model is written.

    Attributes:
        format: ``transformers`` cuts the weights; ``gguf`` does so for llama.cpp; ``zeros`` keeps their shapes, loads
            anywhere and saves nothing.
        uneven: how groups of unequal size are solved (see ``plan_removal``).
        tokenizer_from: for ``gguf``, a GGUF file of the same original model, whose tokenizer is copied.
        precision: for ``gguf``, of its matrices.

    Raises:
        InputError: an unknown format, or ``gguf`` without a tokenizer.
    """

    format: Format = "transformers"
    uneven: Uneven = "index"
    tokenizer_from: str | os.PathLike[str] | None = None
    precision: Precision = "bf16"

    def __post_init__(self) -> None:
        if self.format not in ("transformers", "gguf", "zeros"):
            raise InputError(f"A checkpoint's format is 'transformers', 'gguf' or 'zeros', not {self.format!r}.")
        if self.format == "gguf" and self.tokenizer_from is None:
            raise InputError(
                "A GGUF file holds its tokenizer in a form of its own: give a GGUF file of the original model to copy it "
                "from (--gguf-tokenizer)."
            )


_CHECKPOINT = Checkpoint()


@reads
def prune_heads(
    model: PreTrainedModel,
    selection: Selection,
    folder: str | os.PathLike[str],
    fitting: Fitting = NO_TEXTS,
    *,
    how: How = "zero",
    distillation: Distillation | None = None,
    checkpoint: Checkpoint = _CHECKPOINT,
    tokenizer: PreTrainedTokenizerBase | None = None,
    name: str = "",
    command: str = "",
    progress: Callable[[str], Progress] = lambda _: no_progress,
) -> Pruned:
    """Write a checkpoint without the selected heads, or neurons; it is loaded and held to the masked model before it is kept.

    Args:
        model: is left as it was.
        selection: made for this model.
        folder: a new folder; it is complete once it exists.
        fitting: the texts that what replaces the heads is found on.
        how: what replaces the heads: ``zero``, ``mean`` or ``refit`` (see ``replace_heads``); neurons, ``zero`` or ``mean``.
        distillation: how to train what replaces the heads, from there on, towards the original model's predictions on
            the texts (see ``distill``); None for no training.
        checkpoint: how it is written.
        tokenizer: saved with the checkpoint.
        name: of the model, for people.
        command: for the model card.
        progress: called with the name of each step, gives what to call with (done, total).

    Raises:
        InputError: a folder that is taken, or an unusable option.
        ModelError: a selection for another model, a model that cannot be cut, or a checkpoint that is not the masked
            model.
        RunError: the folder cannot be written.
    """
    refuse_out_of_reach(model)
    target = Path(folder)
    refuse_taken(target)
    selection.check(model, name)
    name = name or selection.model.name
    plan = plan_of(model, selection, checkpoint.uneven)
    cut = checkpoint.format != "zeros"
    if isinstance(plan, NeuronPlan):
        if checkpoint.format == "gguf" or distillation is not None:
            raise InputError(
                "Neurons are removed for transformers, without distilling. Leave --format gguf and --distill out."
            )
        replace = replace_neurons
    else:
        replace = replace_heads
        if checkpoint.format == "gguf":
            refuse_unfit(model, plan)
    if cut:  # a refusal comes before the calibration, not after
        plain_mlps(model) if isinstance(plan, NeuronPlan) else head_weights_of(model)
    if distillation is not None:
        refuse_without_gradients(model, "leave --distill out")
    with new_folder(target) as temporary:  # one that cannot be written is known before the calibration
        told = progress(_STEPS[how]) if how != "zero" else no_progress
        replacement = replace(model, plan.removed, how, fitting, progress=told)
        if distillation is not None:
            replacement = distill(model, replacement, fitting, distillation, progress=progress("Distilling"))
        with quiet_transformers():
            loaded, verification = _save_verified(model, plan, replacement, temporary, checkpoint, name)
            if tokenizer is not None and loaded != "llama.cpp":
                tokenizer.save_pretrained(temporary)
        saved = savings(model, plan, biases=how != "zero" or distillation is not None) if cut else None
        pruned = Pruned(
            folder=target, selection=selection, plan=plan, replacement=replacement, loaded=loaded,
            verification=verification, savings=saved,
        )  # fmt: skip
        card = temporary / "README.md"
        card.write_text(model_card(pruned, name=name, command=command), encoding="utf-8")
        selection.save(temporary / "selection.json")
        for file in temporary.iterdir():  # safetensors makes files that nobody else may read
            shutil.copymode(card, file)
    return pruned


def plan_of(model: PreTrainedModel, selection: Selection, uneven: Uneven) -> Plan | NeuronPlan:
    """How to take the selection out of its model. Raises InputError as ``plan_removal`` and ``plan_neurons``."""
    units = units_of(model, selection.part)
    if selection.part == "neuron":
        return plan_neurons(units, selection.heads)
    return plan_removal(units, selection.heads, uneven=uneven)


def _save_verified(
    model: PreTrainedModel,
    plan: Plan | NeuronPlan,
    replacement: Replacement,
    folder: Path,
    checkpoint: Checkpoint,
    name: str,
) -> tuple[Loaded, Verification]:
    """Write the checkpoint, as a stock class where one holds it, and hold it to the masked model."""
    rows = probe_rows(model, replacement.fitting.rows)
    if checkpoint.format == "zeros":
        save_zero_filled(model, replacement, folder)
        verification = verify(model, replacement, load_saved(folder, "stock", model), rows)
        refuse_unequal(verification, "The zero-filled checkpoint")
        return "stock", verification
    if isinstance(plan, NeuronPlan):
        pruned, resized = cut_neurons(model, plan, replacement)
    else:
        pruned, resized = cut_heads(model, plan, replacement)
    if checkpoint.format == "gguf":
        assert checkpoint.tokenizer_from is not None and isinstance(plan, Plan)
        verification = verify(model, replacement, pruned, rows)
        refuse_unequal(verification, "The pruned model")
        write_gguf(
            model, pruned, plan, folder / GGUF_FILE, tokenizer_from=checkpoint.tokenizer_from,
            precision=checkpoint.precision, name=name,
        )  # fmt: skip
        return "llama.cpp", verification
    if save_as_stock(model, pruned, plan, folder):
        verification = verify(model, replacement, load_saved(folder, "stock", model), rows)
        if verification.equal:
            return "stock", verification
        for file in folder.iterdir():  # the shapes fitted, and the class makes something else of them
            file.unlink()
    save_with_modelling_file(model, pruned, resized, folder)
    verification = verify(model, replacement, load_saved(folder, "modelling file", model), rows)
    refuse_unequal(verification, "The pruned checkpoint")
    return "modelling file", verification


def probe_rows(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Token ids to compare models on: the starts of three texts, or of random tokens where there are none."""
    found = [list(row[:128]) for row in rows[:3]]
    if not found:
        embeddings = model.get_input_embeddings().weight
        assert isinstance(embeddings, torch.Tensor)
        generator = torch.Generator().manual_seed(0)
        found = torch.randint(0, len(embeddings), (2, 32), generator=generator).tolist()
    return found
