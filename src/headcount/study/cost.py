"""What a study costs: tokens, forward passes, floating-point operations, bytes and hours, before it is run.

A forward pass over an input of n tokens takes about 2·P·n + 2·A·n² floating-point operations: P are the parameters that
a token passes through (all but the embedding; of a mixture's experts those that are chosen), A is the sum over layers of
query heads × head_dim, and the second term is causal attention. The vocabulary projection, hidden size × vocabulary,
runs on the scored positions alone. Every policy reads every input once, the untouched model twice: once for the scores
and once for the answers. What policies share while they answer makes this an upper bound.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import nn

from headcount.calibrating import layer_groups, sum_bytes
from headcount.calibration.layer import kept_shapes
from headcount.models.capabilities import can_restart
from headcount.models.loading import DTYPES, computes_in_bfloat16, outline, resolve_device
from headcount.models.observe import units_of
from headcount.models.sensitivity import tokens_at_once
from headcount.study.spec import ModelSpec, Study
from headcount.study.subject import LoadedModel, read_data

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Part of a large matrix product's speed that a pass under a policy reaches: 0.59 to 0.75 on the demo model, by
#: benchmarks/cost.py. Passes of the untouched model reach 1.0 to 2.0, since inputs share what they begin with.
EFFICIENCY = 0.6
#: Bytes of one row of outcomes on disk, as measured on multiple-choice tasks.
_ROW = 130


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """What a model's cost depends on.

    Attributes:
        parameters: that one token passes through, embedding and vocabulary projection left out.
        projection: parameters of the vocabulary projection.
        attention: sum over layers of query heads × head_dim.
        heads: query heads of all layers.
    """

    parameters: float
    projection: int
    attention: int
    heads: int

    @classmethod
    def of(cls, model: "PreTrainedModel") -> "ModelSize":
        """Of a model, which may be without weights."""
        config = model.config.get_text_config()
        experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
        chosen = getattr(config, "num_experts_per_tok", None)
        share = chosen / experts if experts and chosen else 1.0
        outside = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        if isinstance(projected := model.get_output_embeddings(), nn.Module):
            outside.add(id(projected.weight))
        parameters = sum(
            parameter.numel() * (share if ".experts." in name else 1)
            for name, parameter in model.named_parameters()
            if id(parameter) not in outside
        )
        heads = config.num_hidden_layers * config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        projection = config.hidden_size * config.vocab_size
        return cls(parameters=parameters, projection=projection, attention=heads * head_dim, heads=heads)

    def operations(self, lengths: Sequence[int], scored: int = 0) -> float:
        """Floating-point operations of one pass over inputs of these lengths, with ``scored`` positions read out."""
        tokens, squares = sum(lengths), sum(length**2 for length in lengths)
        return 2.0 * (self.parameters * tokens + self.attention * squares + self.projection * scored)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one run of a study costs.

    Attributes:
        inputs: that the model reads.
        tokens: of one pass over them.
        passes: over all inputs: one to measure, one for the untouched model's answers, one for each policy.
        operations: floating-point operations of all passes.
        score_bytes: of the scores on disk.
        outcome_bytes: of the outcomes on disk.
    """

    inputs: int
    tokens: int
    passes: int
    operations: float
    score_bytes: int
    outcome_bytes: int

    @property
    def forwards(self) -> int:
        """Inputs read in all passes."""
        return self.inputs * self.passes

    def hours(self, rate: float) -> float:
        """At ``rate`` floating-point operations a second."""
        return self.operations / rate / 3600


def run_cost(
    size: ModelSize, lengths: Sequence[int], *, questions: int, policies: int, scores: int, bytes_a_score: int = 4
) -> Cost:
    """The cost of measuring inputs of these lengths, and of asking questions untouched and under policies.

    Args:
        size: of the model.
        lengths: tokens of every input.
        questions: that the inputs belong to; 0 if nothing is asked.
        policies: under which they are asked, the untouched model not among them.
        scores: measured and kept for each head; 0 if they are summarised.
        bytes_a_score: 4 for float32, 2 for float16.
    """
    passes = 1 + (1 + policies if questions else 0)
    asked = size.operations(lengths, scored=len(lengths))
    return Cost(
        inputs=len(lengths), tokens=sum(lengths), passes=passes,
        operations=size.operations(lengths) + (passes - 1) * asked,
        score_bytes=len(lengths) * size.heads * scores * bytes_a_score, outcome_bytes=questions * (passes - 1) * _ROW,
    )  # fmt: skip


def study_costs(study: Study) -> dict[tuple[str, str], Cost]:
    """The cost of each run of a study, by the labels of model and data.

    Models are built without weights, so that nothing large is loaded; texts and questions are read in full.

    Raises:
        ModelError, TaskError, InputError: what would stop the study itself.
    """
    from headcount.study.running import data_options

    costs = {}
    for model in study.models:
        built, tokenizer = outline(
            model.model, revision=model.revision, allow_pickle=model.allow_pickle,
            trust_remote_code=model.trust_remote_code,
        )  # fmt: skip
        loaded = LoadedModel(spec=model, model=built, tokenizer=tokenizer)
        for data in study.data:
            subject = read_data(loaded, data, **data_options(study, model))
            questions = subject.benchmark.num_questions if subject.benchmark and study.num_policies() else 0
            costs[model.label, data.label] = run_cost(
                ModelSize.of(built), [len(row) for row in subject.rows], questions=questions,
                policies=study.num_policies() - 1,
                scores=0 if study.summarised else len(study.score_ids()),
                bytes_a_score=2 if study.scores_dtype == "float16" else 4,
            )  # fmt: skip
    return costs


@dataclass(frozen=True, kw_only=True)
class CalibrationCost:
    """What a calibration takes.

    Attributes:
        file_bytes: of its file.
        memory_bytes: at most, beside the model.
        operations: floating-point operations of all passes and products.
    """

    file_bytes: int
    memory_bytes: int
    operations: float


def calibration_cost(
    model: "PreTrainedModel",
    lengths: Sequence[int],
    *,
    covariances: bool,
    sensitivity: bool,
    gradients: bool,
    memory: int,
    batch_tokens: int,
) -> CalibrationCost:
    """Of calibrating a model on texts of these lengths, with the options of ``calibrate``."""
    config, layers = model.config.get_text_config(), units_of(model).heads
    hidden, tokens, size = config.hidden_size, sum(lengths), ModelSize.of(model)
    groups = layer_groups(layers, hidden, memory if covariances else None)
    sums = {layer.index: sum_bytes(layer, hidden) * covariances for layer in layers}
    held = ["mean", "first", *["input_mean", "covariance"] * covariances, *["gradients"] * gradients]
    squares = hidden**2 * len(layers) * gradients
    # The sums of a group, its batch's products, and the covariances that are done, whole and in float32.
    reading = (
        max(sum(sums[index] for index in group) for group in groups) + 2 * max(sums.values()) + sum(sums.values()) // 2
    )
    if len(groups) > 1:
        reading += tokens * hidden * model.dtype.itemsize  # what enters the layer that a group begins with
    at_once = tokens_at_once(config.vocab_size, batch_tokens)
    # Logits, their gradient, and as much again by measurement (demo model, float32); and what enters each layer.
    backward = 12 * at_once * config.vocab_size + at_once * hidden * len(layers) * model.dtype.itemsize
    read = size.operations(lengths)
    drawn = 3 * read + 4.0 * size.projection * tokens  # there, again for the way back, and back
    return CalibrationCost(
        file_bytes=4 * sum(prod(kept_shapes(layer, hidden)[name]) for layer in layers for name in held),
        memory_bytes=max(reading + 4 * squares, (backward + 12 * squares) * sensitivity),
        operations=(1 if can_restart(model) else len(groups)) * read
        + tokens * sum(sums.values()) / 4
        + (drawn + 2.0 * tokens * squares) * sensitivity,
    )


def machine_rate(model: ModelSpec, study: Study, *, seconds: float = 0.3) -> float:
    """That of the device and dtype in which the study runs this model; see ``device_rate``."""
    device = resolve_device(model.device)
    dtype = DTYPES.get(model.dtype or study.dtype, torch.bfloat16 if computes_in_bfloat16(device) else torch.float32)
    return device_rate(device, dtype, seconds=seconds)


def device_rate(device: torch.device, dtype: torch.dtype, *, seconds: float = 0.3) -> float:
    """Floating-point operations a second that a forward pass may reach here: EFFICIENCY × those of a matrix product."""
    size = 1024
    left, right = torch.ones(size, size, dtype=dtype, device=device), torch.ones(size, size, dtype=dtype, device=device)
    (left @ right).sum().item()
    count, begun = 0, time.perf_counter()
    while (taken := time.perf_counter() - begun) < seconds:
        (left @ right).sum().item()  # .item() waits for the device
        count += 1
    return EFFICIENCY * 2 * size**3 * count / taken
