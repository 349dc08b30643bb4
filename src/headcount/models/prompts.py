"""Generation whose prompts are measured and decided on reads each prompt in one pass of its own."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel

from headcount.errors import InputError

#: What of transformers' ``generate`` reads prompts.
_METHODS = ("_prefill", "_get_candidate_generator")


@contextmanager
def prompts_read_whole(model: PreTrainedModel) -> Iterator[None]:
    """Inside, ``generate`` refuses to read prompts in chunks, or together with the draft of an assistant."""
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, GenerationMixin):
                stack.callback(forget, module)
                for name in _METHODS:
                    setattr(module, name, partial(_read_whole, getattr(module, name)))
        yield


def forget(module: nn.Module) -> None:
    """Let a model, or a copy that was made inside, generate as it did."""
    for name in _METHODS:
        vars(module).pop(name, None)


def _read_whole(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if method.__name__ == "_get_candidate_generator":
        raise InputError(
            "Assisted decoding reads a prompt together with a draft of its answer, but heads are measured and decided on the "
            "prompt. Generate without an assistant or prompt lookup."
        )
    config = next((given for given in (*args, *kwargs.values()) if isinstance(given, GenerationConfig)), None)
    if config is not None and config.prefill_chunk_size is not None:
        raise InputError(
            f"prefill_chunk_size={config.prefill_chunk_size} reads prompts in chunks, but heads are measured and decided on "
            "whole prompts. Generate without it."
        )
    return method(*args, **kwargs)
