"""Train the output projections of the heads that stay, so that the model predicts what it did with all its heads."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from headcount.errors import InputError, ModelError
from headcount.models.batching import Progress, batches_by_tokens, no_progress
from headcount.models.gradients import layers_recomputed, parameters_frozen, refuse_without_gradients
from headcount.models.observe import attention_modules
from headcount.models.projection import output_projection
from headcount.models.reading import batch_of
from headcount.models.state import refuse_out_of_reach
from headcount.removal.fitting import Distillation, Fitting
from headcount.removal.replace import Projection, Replacement, parameters_restored, put_projection, removed_inputs

_WARM_UP = 10  # steps until the learning rate is reached; from there it falls to a twentieth by half a cosine
_LARGEST_GRADIENT = 1.0


def distill(
    model: PreTrainedModel,
    replacement: Replacement,
    fitting: Fitting,
    distillation: Distillation,
    *,
    progress: Progress = no_progress,
) -> Replacement:
    """The replacement's projections, trained on from where they are.

    Knowledge distillation (Hinton et al. 2015, arXiv 1503.02531, at temperature 1): AdamW minimises KL(original ‖ model
    without the heads) of the next token, the mean over the tokens that count. Weights of the heads that stay and the
    biases learn, in the layers that lose heads; all else is fixed. Decoder layers are recomputed one at a time for the
    backward pass, so memory is that of one layer and of a step's logits.

    Args:
        model: the original, in float32 or bfloat16; is left as it was.
        replacement: where to begin.
        fitting: the texts, and the seed of their order.
        distillation: passes, learning rate and step.
        progress: called with (texts read, in all), each once a pass.

    Raises:
        InputError: no text of two tokens or more.
        ModelError: a model whose gradients cannot be had, or a loss that is not finite.
    """
    refuse_out_of_reach(model)
    refuse_without_gradients(model, "leave --distill out")
    texts = fitting.texts
    if not texts:
        raise InputError("Distilling needs texts of two tokens or more. Give some.")
    modules, gone = attention_modules(model), removed_inputs(model, replacement.removed)
    projections = {layer: output_projection(modules[layer]) for layer in replacement.projections}
    students = {
        layer: _Student(projections[layer], replacement.projections[layer], gone[layer]) for layer in projections
    }
    learning = [tensor for student in students.values() for tensor in student.learning]
    optimizer = torch.optim.AdamW(learning, lr=distillation.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    generator = torch.Generator().manual_seed(fitting.seed)
    steps = [
        batch for _ in range(distillation.epochs) for batch in _batches(texts, distillation.step_tokens, generator)
    ]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, len(steps)))
    done = 0
    with parameters_frozen(model):
        for batch in steps:
            tokens, mask, counted = batch_of(model, [texts[i] for i in batch])
            with torch.no_grad():
                target = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits[counted].float()
                target = target.log_softmax(-1)
            with parameters_restored([*projections.values()]), torch.enable_grad(), layers_recomputed(model):
                for student in students.values():
                    student.enter()
                embedded = model.get_input_embeddings()(tokens).detach().requires_grad_()
                logits = model(inputs_embeds=embedded, attention_mask=mask, use_cache=False).logits[counted].float()
                loss = nn.functional.kl_div(logits.log_softmax(-1), target, log_target=True, reduction="batchmean")
                loss.backward()
                for student in students.values():
                    student.take_gradients()
            if not math.isfinite(loss.item()):
                raise ModelError(
                    f"The loss became {loss.item()} while distilling. Use a smaller --learning-rate, or --dtype float32."
                )
            nn.utils.clip_grad_norm_(learning, _LARGEST_GRADIENT)
            optimizer.step()
            schedule.step()
            done += len(batch)
            progress(done, distillation.epochs * len(texts))
    return replace(
        replacement, projections={layer: student.projection() for layer, student in students.items()}, fitting=fitting,
        distillation=distillation,
    )  # fmt: skip


class _Student:
    """One output projection while it learns: float32 here, in the model its own dtype."""

    def __init__(self, module: nn.Module, begin: Projection, gone: Tensor) -> None:
        assert isinstance(module.weight, Tensor)
        device = module.weight.device
        self._module = module
        self._kept = (~gone).to(device)
        self._weight = begin.weight.to(device).clone().requires_grad_()
        bias = torch.zeros(len(begin.weight)) if begin.bias is None else begin.bias
        self._bias = bias.to(device).clone().requires_grad_()

    @property
    def learning(self) -> list[Tensor]:
        return [self._weight, self._bias]

    def enter(self) -> None:
        """Give the model what was learnt so far, and let it gather gradients."""
        put_projection(self._module, Projection(weight=self._weight.detach(), bias=self._bias.detach()))
        for parameter in (self._module.weight, self._module.bias):
            assert isinstance(parameter, Tensor)
            parameter.requires_grad_()

    def take_gradients(self) -> None:
        weight, bias = self._module.weight, self._module.bias
        assert isinstance(weight, Tensor) and isinstance(bias, Tensor)
        assert weight.grad is not None and bias.grad is not None
        gradient = weight.grad.T if isinstance(self._module, Conv1D) else weight.grad
        self._weight.grad = gradient.float() * self._kept  # the columns of removed heads stay 0
        self._bias.grad = bias.grad.float()

    def projection(self) -> Projection:
        return Projection(weight=self._weight.detach().cpu(), bias=self._bias.detach().cpu())


def _batches(rows: Sequence[Sequence[int]], batch_tokens: int, generator: torch.Generator) -> list[list[int]]:
    """One pass: texts of like length together, texts of one length and the batches in random order."""
    order = torch.randperm(len(rows), generator=generator).tolist()
    batches = [[order[i] for i in batch] for batch in batches_by_tokens([len(rows[i]) for i in order], batch_tokens)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def _rate(step: int, steps: int) -> float:
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    return min(1.0, (step + 1) / _WARM_UP) * max(0.05, cosine)
