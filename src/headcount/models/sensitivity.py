"""How much the model's own predictions depend on what each attention layer writes: gradients at its output projection.

Source: the Fisher information with labels drawn from the model (Kunstner, Balles and Hennig 2019, arXiv 1905.12558, on why not
with the texts' own tokens). One backward pass a batch.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from headcount.calibration.layer import symmetric
from headcount.devices import doubled, with_float64
from headcount.models.batching import Progress, no_progress, run_in_batches
from headcount.models.draws import draw_uniform
from headcount.models.gradients import layers_recomputed, not_finite, parameters_frozen, refuse_without_gradients
from headcount.models.observe import attention_modules
from headcount.models.projection import output_projection
from headcount.models.reading import batch_of
from headcount.models.state import own_settings

#: Logits that are held at a time, in all of a batch and in float64 while labels are drawn.
_LOGITS, _DRAWN = 2**27, 2**22


def sensitivities(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    *,
    batch_tokens: int,
    seed: int = 0,
    gradients: bool = False,
    progress: Progress = no_progress,
) -> dict[int, tuple[float, Tensor | None]]:
    """By layer, how large the gradient of the text's summed −log p(y) is at the output of its output projection.

    Each y is drawn from the model's own prediction at its position, by a number that depends on the seed and the text's
    tokens alone. Every token but the first of each text counts. Memory is that of one layer's backward pass and of a batch's
    logits, which bound a batch beside ``batch_tokens``.

    Args:
        model: in float32 or bfloat16, of plain weights; is left as it was.
        rows: token ids of each text, of which one has two tokens or more.
        batch_tokens: tokens in a batch, padding included.
        seed: of the labels.
        gradients: also g gᵀ.
        progress: called with (texts done, texts in all).

    Returns:
        The mean of ‖g‖², nats², and where it was asked for that of g gᵀ, float32 ``[hidden, hidden]``.

    Raises:
        ModelError: a model whose gradients cannot be had, or are not finite.
    """
    refuse_without_gradients(model, "leave the sensitivity out with --no-sensitivity (sensitivity=False)")
    modules, embed = attention_modules(model), model.get_input_embeddings()
    squares = {layer: np.zeros(len(rows)) for layer in modules}  # summed over a text's tokens
    products: dict[int, Tensor] = {}
    hearing = _Hearing(products=gradients)

    def run(batch: list[int]) -> None:
        texts = [rows[i] for i in batch]
        tokens, mask, counted = batch_of(model, texts)
        hearing.begin(counted)
        embedded = embed(tokens).detach().requires_grad_()
        logits = model(inputs_embeds=embedded, attention_mask=mask, use_cache=False).logits
        logits.backward(_drawn(logits.detach(), texts, seed))
        for layer, squared in hearing.squared.items():  # once the whole batch has been read: one that fails is halved
            squares[layer][batch] = squared.cpu().numpy()
        for layer, product in hearing.product.items():
            products[layer] = products[layer].add_(with_float64(product)) if layer in products else doubled(product)

    with ExitStack() as stack:
        stack.enter_context(layers_recomputed(model))
        stack.enter_context(parameters_frozen(model))
        stack.enter_context(torch.enable_grad())
        for layer, module in modules.items():
            stack.callback(output_projection(module).register_forward_hook(hearing.hook(layer)).remove)
        at_once = tokens_at_once(model.config.get_text_config().vocab_size, batch_tokens)
        run_in_batches([len(row) for row in rows], at_once, run, progress)
    count = sum(len(row) - 1 for row in rows)
    found: dict[int, tuple[float, Tensor | None]] = {}
    for layer, of_texts in squares.items():
        squared, product = float(of_texts.sum()) / count, products.pop(layer, None)
        if not np.isfinite(squared) or (product is not None and not bool(torch.isfinite(product).all())):
            raise not_finite(model, layer)
        found[layer] = squared, None if product is None else symmetric(product.cpu() / count)
    return found


def tokens_at_once(vocab_size: int, batch_tokens: int) -> int:
    """Tokens of a batch whose logits are held for the way back."""
    return max(1, min(batch_tokens, _LOGITS // vocab_size))


class _Hearing:
    """What reaches the outputs of output projections in one batch's backward pass."""

    def __init__(self, *, products: bool) -> None:
        self._products = products
        self._counted = torch.zeros(0)

    def begin(self, counted: Tensor) -> None:
        """``counted``: bool ``[text, token]``."""
        self._counted = counted
        self.squared: dict[int, Tensor] = {}  # layer → float64 [text], summed over the tokens that count
        self.product: dict[int, Tensor] = {}  # layer → float32 [hidden, hidden]

    def hook(self, layer: int) -> Callable[[nn.Module, Any, Tensor], None]:
        """Of the layer's output projection."""

        def backward(gradient: Tensor) -> None:
            counted = self._counted.to(gradient.device)
            gradient = gradient.detach().float().view(*counted.shape, -1)
            squared = with_float64(gradient.square()).sum(-1, dtype=torch.float64)
            self.squared[layer] = squared.masked_fill(~counted.to(squared.device), 0).sum(1)
            if self._products:
                own = gradient[counted]
                with own_settings(own.device.type):
                    self.product[layer] = own.T @ own

        def forward(_module: nn.Module, _args: Any, output: Tensor) -> None:
            if output.requires_grad:  # not so in the pass that checkpointing makes without gradients
                output.register_hook(backward)

        return forward


def _drawn(logits: Tensor, texts: Sequence[Sequence[int]], seed: int) -> Tensor:
    """The gradient of −log p(y) at ``logits`` ``[text, token, vocabulary]``, where y is drawn from p: p less one at y.

    Padding has none.
    """
    gradient = torch.zeros_like(logits)
    step = max(1, _DRAWN // logits.shape[-1])
    for i, text in enumerate(texts):
        uniform = torch.from_numpy(draw_uniform(np.asarray(text), seed, (1, len(text)))[0]).double()
        uniform = uniform.to(with_float64(logits[:0]).device)
        for begin in range(0, len(text), step):
            end = min(begin + step, len(text))
            probabilities = doubled(logits[i, begin:end]).softmax(-1)
            summed = probabilities.cumsum(-1)
            drawn = torch.searchsorted(summed, uniform[begin:end, None] * summed[:, -1:], right=True)
            drawn.clamp_(max=logits.shape[-1] - 1)
            less = probabilities.scatter_add_(-1, drawn, torch.full_like(summed[:, :1], -1))
            gradient[i, begin:end] = less.to(gradient.dtype)
    return gradient
