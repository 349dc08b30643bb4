"""What a pruned checkpoint is, what it saves, and its model card."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from headcount.models.observe import attention_modules
from headcount.removal.checkpoint import Loaded
from headcount.removal.head_weights import head_weights_of, sizes
from headcount.removal.neurons import parameters_left
from headcount.removal.plan import NeuronPlan, Plan
from headcount.removal.replace import Replacement
from headcount.removal.selection import Selection
from headcount.removal.verify import Verification
from headcount.units import KINDS

_REPLACED = {
    "zero": "nothing: their part of each {projection} is gone",
    "mean": "their mean output, folded into the bias of the {projection}",
    "refit": "the output projections of the heads that stay, refitted by ridge regression, and a bias",
}


@dataclass(frozen=True, kw_only=True)
class Savings:
    """What a plan leaves, before and after."""

    num_parameters: tuple[int, int]
    key_value_bytes: tuple[int, int] | None
    """Of the key-value cache, a token; None where it stays as it is, as without neurons."""


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """A pruned checkpoint.

    Attributes:
        folder: where it is.
        selection: what was to go.
        plan: what was cut.
        replacement: what the rest of the model got instead.
        loaded: how it is loaded: a ``stock`` class, the ``modelling file`` in the folder, or ``llama.cpp``.
        verification: its logits against the masked model's.
        savings: parameters and cache; None for zero-filled weights, which save nothing.
    """

    folder: Path
    selection: Selection
    plan: Plan | NeuronPlan
    replacement: Replacement
    loaded: Loaded
    verification: Verification
    savings: Savings | None


def savings(model: PreTrainedModel, plan: Plan | NeuronPlan, *, biases: bool = True) -> Savings:
    """Parameters and cache that a plan leaves of ``model``; ``biases``: whether output projections without one get a bias."""
    if isinstance(plan, NeuronPlan):
        return Savings(num_parameters=parameters_left(model, plan, biases=biases), key_value_bytes=None)
    head_weights, modules = head_weights_of(model), attention_modules(model)
    before = sum(parameter.numel() for parameter in model.parameters())
    saved = cached_before = cached_after = 0
    for layer in plan.layers:
        index, query, key_value = layer.before.index, len(layer.query), len(layer.key_value)
        of_heads, module = head_weights[index], modules[index]
        cached_before += of_heads.cached(layer.before.num_key_value_heads)
        if not layer.unchanged:
            output = module.get_submodule(of_heads.output)
            bias = 0 if getattr(output, "bias", None) is not None or not biases else sizes(output)[0]
            if layer.query:
                full = of_heads.num_parameters(
                    module, layer.before.num_attention_heads, layer.before.num_key_value_heads
                )
                saved += full - of_heads.num_parameters(module, query, key_value) - bias
            else:
                saved += sum(parameter.numel() for parameter in module.parameters()) - sizes(output)[0]
        cached_after += of_heads.cached(key_value) if layer.query else 2  # a removed layer counts tokens in two numbers
    size = model.dtype.itemsize
    return Savings(num_parameters=(before, before - saved), key_value_bytes=(size * cached_before, size * cached_after))


def model_card(pruned: Pruned, *, name: str, command: str) -> str:
    """Markdown: what was removed, how it was chosen, how it was verified, how to load it."""
    selection, plan, savings = pruned.selection, pruned.plan, pruned.savings
    noun = "attention heads" if selection.part == "head" else KINDS[selection.part].plural
    # A hub id becomes the card's base model; a path is nobody's business.
    base = f"base_model: {name}\n" if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists() else ""
    parts = [
        f"---\n{base}tags:\n- headcount\n- pruned\n---",
        f"# {_code(name)} without {len(plan.removed)} of {selection.num_parts} {noun}",
        f"Made with headcount {selection.versions['headcount']}.",
        "## How to load it\n" + _how_to_load(pruned),
        "## What was removed\n" + _removed(plan),
    ]
    if savings is not None:
        kept = {"parameters": savings.num_parameters, "key-value cache, bytes a token": savings.key_value_bytes}
        rows = [f"| {what} | {pair[0]:,} | {pair[1]:,} |" for what, pair in kept.items() if pair is not None]
        parts.append("\n".join(["| | before | after |\n|---|---|---|", *rows]))
    parts.append(_replaced(pruned.replacement))
    chosen = "\n".join(f"- {_code(key)}: {_code(_plain(value))}" for key, value in selection.chosen.items())
    parts.append(
        f"## How the {selection.part}s were chosen\n- unit: {selection.kind}\n{chosen}\n\n`selection.json` holds it all."
    )
    compared = (
        "The cut weights, before they were written for llama.cpp, were"
        if pruned.loaded == "llama.cpp"
        else ("This checkpoint was loaded again, and")
    )
    parts.append(
        f"## Verification\n{compared} compared with the original model whose removed {selection.part}s are masked "
        f"and replaced in the same way: {pruned.verification}. How good the masked model is, is another question: "
        "benchmark it with `headcount evaluate`."
    )
    if command:
        parts.append(f"## Command\n```sh\n{command.replace('```', '')}\n```")
    return "\n\n".join(parts) + "\n"


def _replaced(replacement: Replacement) -> str:
    fitting, training = replacement.fitting, replacement.distillation
    projection = "output projection" if replacement.kind == "head" else "MLP's last map"
    replaced = f"In their place: {_REPLACED[replacement.how].format(projection=projection)}."
    if training is not None:
        passes = f"{training.epochs} pass{'es' * (training.epochs != 1)}"
        replaced += (
            f" Their weights and biases were then trained towards the original model's predictions: {passes}, learning rate "
            f"{training.learning_rate:g}, {training.step_tokens} tokens a step, seed {fitting.seed}."
        )
    if replacement.how != "zero" or training is not None:
        replaced += f" Calibrated on {len(fitting.rows)} texts, the first token of each left out."
    if replacement.how == "refit":
        replaced += f" Ridge {fitting.ridge:g} of the mean variance."
    return replaced


def _how_to_load(pruned: Pruned) -> str:
    if pruned.loaded == "llama.cpp":
        return (
            "`model.gguf` is for llama.cpp (architecture `deci`, which has head counts of its own for each layer):\n"
            "```sh\nllama-cli -m model.gguf\n```"
        )
    trust = "" if pruned.loaded == "stock" else ", trust_remote_code=True"
    code = (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("this folder"{trust})\n'
        f'tokenizer = AutoTokenizer.from_pretrained("this folder"{trust})\n```\n'
    )
    if pruned.savings is None:
        return code + (
            f"The weights keep their shapes: removed {pruned.selection.part}s meet zeros in the map behind them. This "
            "loads anywhere, and is "
            "**no faster and no smaller** than the original."
        )
    if pruned.loaded == "stock":
        return (
            code + f"Every layer has the same number of {pruned.selection.part}s, so a class of transformers loads it."
        )
    return code + (
        "Layers differ from what a class of transformers expects, so `modeling_pruned.py` in this folder builds them; it needs "
        "transformers alone. Read it before you trust it: it is short."
    )


def _removed(plan: Plan | NeuronPlan) -> str:
    if isinstance(plan, NeuronPlan):
        rows, before = ["| layer | neurons |", "|---|---|"], {layer.index: layer.num_neurons for layer in plan.layers}
        rows += [f"| {layer} | {before[layer]} → {len(staying)} |" for layer, staying in plan.kept.items()]
        return "\n".join([*rows, "\n`selection.json` names them."])
    rows = ["| layer | removed query heads | query heads | key-value heads |", "|---|---|---|---|"]
    for layer in plan.layers:
        if not layer.unchanged:
            gone = sorted(set(range(layer.before.num_attention_heads)) - set(layer.query))
            rows.append(
                f"| {layer.before.index} | {', '.join(map(str, gone))} | {layer.before.num_attention_heads} → "
                f"{len(layer.query)} | {layer.before.num_key_value_heads} → {len(layer.key_value)} |"
            )
    return "\n".join(rows)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _code(text: str) -> str:
    """Text from elsewhere as inline code, on one line."""
    return "`" + " ".join(text.replace("`", "'").split()) + "`"
