"""Which models are measured, and in which state. Every block and reading begins with ``measurable``."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import AttentionInterface, PreTrainedModel, PreTrainedTokenizerBase

from headcount.errors import InputError, ModelError

P = ParamSpec("P")
R = TypeVar("R")


def measurable(model: object, *, to_read: bool = True) -> PreTrainedModel:
    """The model itself, out of ``torch.compile``'s wrapper where it has one.

    Args:
        model: what was given as one.
        to_read: whether it is read now; questions can be counted for a model without weights.

    Raises:
        ModelError: it is no transformers model, or is in a state in which its numbers would not be its own.
    """
    found = _transformers_model(model)
    rules = (_spread, _quantised_by_batch, _encoder_decoder, _adapter, _foreign_attention)
    for rule in (_without_weights, *rules) if to_read else rules:
        if problem := rule(found):
            raise ModelError(problem)
    return found


def language_model(model: object, *, to_read: bool = True) -> PreTrainedModel:
    """As ``measurable``, of a model that also predicts tokens.

    Raises:
        ModelError: as ``measurable``, or the model has no projection to the vocabulary.
    """
    found = measurable(model, to_read=to_read)
    if found.get_output_embeddings() is None:
        raise ModelError(
            f"{_kind(found)} does not predict tokens: it has no projection to the vocabulary. Give the causal language model "
            "(…ForCausalLM, as headcount.load returns it); what a model without one does with its heads, "
            "headcount.instrument measures."
        )
    return found


def check_tokenizer(tokenizer: object) -> None:
    """Raise InputError for what stands in a tokenizer's place and is none."""
    if not (callable(tokenizer) and callable(getattr(tokenizer, "encode", None))):
        given = "None" if tokenizer is None else f"a {type(tokenizer).__name__}"
        raise InputError(
            f"tokenizer is {given}. Give the model's tokenizer: model, tokenizer = headcount.load(name) returns both, in "
            "this order."
        )


def reads(function: Callable[Concatenate[PreTrainedModel, P], R]) -> Callable[Concatenate[PreTrainedModel, P], R]:
    """Makes ``function``, which reads texts with the language model it is given first, do so in evaluation mode, uncompiled.

    Raises:
        ModelError: as ``language_model``.
    """

    @wraps(function)
    def read(model: PreTrainedModel, *args: P.args, **options: P.kwargs) -> R:
        model = language_model(model)
        with uncompiled(), evaluating(model):
            return function(model, *args, **options)

    return read


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, every module is in evaluation mode; afterwards each is in the mode in which it was.

    Tensors are made in main memory where nothing says otherwise, whatever PyTorch's default device is.
    """
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:  # not by eval(), which a module may have made do more
            module.training = False
        with _in_main_memory():
            yield
    finally:
        for module in training:
            module.training = True


def refuse_training(model: nn.Module, modules: Iterable[nn.Module]) -> None:
    """Raise ModelError if one of a model's ``modules`` is in training mode.

    None is asked what it does there: besides dropout there are noisy routers, dropped layers, batch statistics and
    whatever a model's own code reads ``self.training`` for. Lists of modules do nothing: they are made anew, in training
    mode, by whoever takes layers away.
    """
    if any(map(_trains, modules)):
        name = next((name for name, module in model.named_modules() if _trains(module)), "")
        which = f"Its module {name!r}" if name else "The model"
        raise ModelError(
            f"{which} is in training mode, where dropout and the like make noise of numbers. Call model.eval()."
        )


def _trains(module: nn.Module) -> bool:
    return module.training and not isinstance(module, nn.ModuleList | nn.ModuleDict)


def check_call(model: nn.Module, modules: Iterable[nn.Module], options: Mapping[str, Any]) -> None:
    """Raise ModelError if a forward pass that begins now would not be that of the model alone, without noise."""
    refuse_training(model, modules)
    if options.get("adapter_names") is not None:
        raise ModelError(
            "adapter_names gives each example weights of its own, and heads are measured by one output projection for all. "
            "Call model.set_adapter(name), and measure the examples of each adapter apart."
        )


def refuse_out_of_reach(model: PreTrainedModel) -> None:
    """Raise ModelError where weights cannot be read and replaced in the model itself."""
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ModelError(
            f"Some weights of {_kind(model)} are not in the model but offloaded, and replacing heads changes weights. Load it "
            "without offloading."
        )
    if any(unwrapped(module) is not module for module in model.modules()):
        raise ModelError(
            f"Modules of {_kind(model)} were replaced by torch.compile's, and replacing heads needs the model's own. Choose and "
            "prune before compiling, or compile in place: layer.compile()."
        )


@contextmanager
def own_settings(device: str = "cpu") -> Iterator[None]:
    """Inside, neither ``torch.autocast`` of that device type nor PyTorch's defaults change what headcount computes.

    Products of float32 are of float32 (no TF32, no bfloat16), whatever the model's own may be.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        _exact_products(stack)
        if torch.is_autocast_enabled(device):
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(_in_main_memory())
        if dtype != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        yield


def _exact_products(stack: ExitStack) -> None:
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # up to PyTorch 2.8
        if (before := torch.get_float32_matmul_precision()) != "highest":
            torch.set_float32_matmul_precision("highest")
            stack.callback(torch.set_float32_matmul_precision, before)
        return
    for backend in ("cuda", "mkldnn"):
        products = backend, "matmul"
        if torch._C._get_fp32_precision_getter(*products) not in ("ieee", "none"):
            before = _own_precision(products, (backend, "all"), ("generic", "all"))
            torch._C._set_fp32_precision_setter(*products, "ieee")
            stack.callback(torch._C._set_fp32_precision_setter, *products, before)


def _own_precision(level: tuple[str, str], *above: tuple[str, str]) -> str:
    """What is set for products of float32 at a level itself; ``none`` where it is that of a level above.

    PyTorch says what is in force alone, so the level above is asked by setting it to full precision for a moment.
    """
    found = torch._C._get_fp32_precision_getter(*level)
    if not above or torch._C._get_fp32_precision_getter(*above[0]) != found:
        return found
    before = _own_precision(*above)
    torch._C._set_fp32_precision_setter(*above[0], "ieee")
    inherited = torch._C._get_fp32_precision_getter(*level) != found
    torch._C._set_fp32_precision_setter(*above[0], before)
    return "none" if inherited else found


def _in_main_memory() -> AbstractContextManager[Any]:
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


_lock = threading.Lock()
_num_open = 0
_stance: Any = None


@contextmanager
def uncompiled() -> Iterator[None]:
    """Inside, whatever ``torch.compile`` made runs as if it had not been compiled, in every thread, and nothing is compiled.

    Code compiled before would neither run our attention nor call our hooks, and code compiled inside would run them after.

    Raises:
        ModelError: the block is inside a function that is compiled itself.
    """
    global _num_open, _stance
    with _lock:  # blocks may end in another order than they began
        if _num_open == 0:
            try:
                _stance = torch.compiler.set_stance("force_eager")
            except RuntimeError:  # it says so itself
                raise ModelError(
                    "headcount was called inside a function that torch.compile compiles. Call it outside; a compiled model "
                    "is measured as it is."
                ) from None
        _num_open += 1
    try:
        yield
    finally:
        with _lock:
            _num_open -= 1
            if _num_open == 0:
                _stance.__exit__(None, None, None)


def unwrapped(model: Any) -> Any:
    """The module that ``torch.compile`` wrapped, or what was given."""
    while isinstance(model, torch._dynamo.OptimizedModule):
        model = model._orig_mod
    return model


def _transformers_model(given: object) -> PreTrainedModel:
    model = unwrapped(given)
    if isinstance(model, PreTrainedModel) or _is_peft(model):
        return model  # a PEFT model hands on whatever it lacks
    inner = getattr(model, "module", None)
    if isinstance(model, nn.Module) and isinstance(inner, nn.Module):
        raise ModelError(
            f"{type(model).__name__} spreads a model over devices or processes. Give the model inside: model.module."
        )
    if isinstance(model, nn.Module):
        raise ModelError(
            f"{type(model).__name__} is not a transformers model (PreTrainedModel). If it holds one, give that."
        )
    hint = "headcount.load(name) returns the model and its tokenizer, in this order."
    if isinstance(model, str):
        raise ModelError(f"{model!r:.80} is a name, and a loaded model is needed. {hint}")
    if isinstance(model, PreTrainedTokenizerBase):
        raise ModelError(f"A tokenizer ({type(model).__name__}) stands in the model's place. {hint}")
    raise ModelError(f"A transformers model is needed, not {model!r:.80}. {hint}")


def _is_peft(model: object) -> bool:
    return any(kind.__module__.startswith("peft.") for kind in type(model).__mro__)


def _kind(model: PreTrainedModel) -> str:
    return type(model.get_base_model() if _is_peft(model) else model).__name__  # pyright: ignore[reportCallIssue]


def _without_weights(model: PreTrainedModel) -> str | None:
    lost = {name for name, parameter in model.named_parameters() if parameter.is_meta}
    if lost and (lost := lost - _offloaded(model).keys()):
        return (
            f"{len(lost)} weights of {_kind(model)} have no values, first {min(lost)}: they are on the device meta. Load the "
            "model with headcount.load(name)."
        )
    return None


def _spread(model: PreTrainedModel) -> str | None:
    if any(hasattr(parameter, "device_mesh") for parameter in model.parameters()):
        return (
            f"The weights of {_kind(model)} are spread over processes (FSDP or tensor parallelism), so that none sees all heads. "
            "Load the model whole in one process, over several devices with device_map='auto'."
        )
    return None


def _quantised_by_batch(model: PreTrainedModel) -> str | None:
    for module in model.modules():
        packed = getattr(module, "_packed_params", None)  # of PyTorch's own quantised modules
        if getattr(packed, "dtype", None) == torch.qint8:
            return (
                f"{_kind(model)} quantises what its layers read, a whole batch at once ({type(module).__name__} of torch.ao): "
                "its numbers depend on what else is in the batch. Measure it before it is quantised, or quantise weights alone."
            )
    return None


def _encoder_decoder(model: PreTrainedModel) -> str | None:
    if getattr(model.config, "is_encoder_decoder", False):
        return (
            f"{_kind(model)} is an encoder-decoder, and headcount measures decoders that read one text. Give a causal language "
            "model (…ForCausalLM)."
        )
    return None


def _adapter(model: PreTrainedModel) -> str | None:
    configs: Any = getattr(model, "peft_config", None) or {}
    for config in configs.values() if isinstance(configs, dict) else ():
        name = str(getattr(config.peft_type, "value", config.peft_type))
        what = None
        if getattr(config, "is_prompt_learning", False):
            what = "puts virtual tokens before every text, which are no tokens of the input"
        elif getattr(config, "is_adaption_prompt", False):
            what = "adds attention of its own to every head's"
        elif getattr(config, "alora_invocation_tokens", None):
            what = "changes weights in the middle of a text"
        if what is not None:
            return (
                f"The adapter {name} {what}: headcount has no rule to count that by, so nothing is measured. Measure the base "
                "model, or an adapter of the weights such as LoRA."
            )
    return None


def _foreign_attention(model: PreTrainedModel) -> str | None:
    name = model.config._attn_implementation or "eager"
    function = AttentionInterface._global_mapping.get(name)  # eager attention and kernels from the hub are not in it
    while isinstance(function, partial):
        function = function.func
    if function is None or function.__module__.partition(".")[0] in ("transformers", "headcount"):
        return None
    return (
        f"{_kind(model)} attends by {name!r}, a function that is neither transformers' nor headcount's. headcount's would take "
        "its place and give other numbers. Call model.set_attn_implementation('sdpa') first, if that is what you mean."
    )


def values(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The model's ``named_parameters`` with their values, fetched one at a time where accelerate keeps them elsewhere."""
    elsewhere = _offloaded(model)
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    for name, parameter in model.named_parameters():
        if name not in elsewhere:
            yield from _plain(name, parameter)
        elif not any(name == key or name.endswith(f".{key}") for key in tied):  # offloading makes two of tied weights
            yield from _plain(name, elsewhere[name]())


def _plain(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensor, or the ones that it is made of: quantised integers and their scales."""
    if not is_traceable_wrapper_subclass(tensor):
        yield name, tensor
        return
    for part in tensor.__tensor_flatten__()[0]:
        yield from _plain(f"{name}.{part}", getattr(tensor, part))


def adapters(model: nn.Module) -> Iterator[str]:
    """What of a model's adapters is not in its parameters: which are active, and how strongly; nothing without adapters."""
    for name, module in model.named_modules():
        active, disabled = getattr(module, "active_adapters", None), getattr(module, "disable_adapters", None)
        if isinstance(active, list) and isinstance(disabled, bool):  # methods of these names switch a model's adapters
            merged, scaling = getattr(module, "merged_adapters", []), getattr(module, "scaling", {})
            yield f"{name}{active}{disabled}{merged}{scaling}"


def input_device(model: PreTrainedModel) -> torch.device:
    """Where the model wants its token ids, whatever devices its layers are on."""
    embedding = model.get_input_embeddings()
    for module in (embedding, model):
        for hook in accelerate_hooks(module):
            if (device := getattr(hook, "execution_device", None)) is not None:
                return torch.device(device)
    assert isinstance(embedding.weight, Tensor)
    return embedding.weight.device


def _offloaded(model: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """What gives the values of the parameters that accelerate puts into the model only while their module runs."""
    found: dict[str, Callable[[], Tensor]] = {}
    for prefix, module in model.named_modules():
        for hook in accelerate_hooks(module):
            if getattr(hook, "offload", False) and (kept := hook.weights_map) is not None:
                for name, parameter in module.named_parameters(recurse=hook.place_submodules):
                    if parameter.is_meta:
                        found[f"{prefix}.{name}" if prefix else name] = partial(kept.__getitem__, name)
    return found


def accelerate_hooks(module: nn.Module) -> Sequence[Any]:
    """Of a module: what moves its inputs, and its weights where these are kept elsewhere."""
    hook: Any = getattr(module, "_hf_hook", None)
    return () if hook is None else getattr(hook, "hooks", (hook,))
