"""Pretended CUDA devices on a CPU build of PyTorch: tensors say that they are on ``cuda:N``, their data are in main memory.

What a real device refuses is refused: operands on two devices, and what PyTorch's private attention operators do not take.
What makes the host wait for a device is noted, with the line of headcount that asked for it. Kernels' own rounding and
speed are not to be seen here.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import headcount

ATEN = torch.ops.aten
_HEADCOUNT = str(Path(headcount.__file__).parent)
#: Their results are Python's numbers, or have a size that depends on numbers.
_ASKING = {ATEN._local_scalar_dense, ATEN.nonzero, ATEN.masked_select, ATEN.equal, ATEN.is_nonzero}
_INDEXING = {ATEN.index, ATEN.index_put, ATEN.index_put_, ATEN._index_put_impl_, ATEN._unsafe_index}
_FLASH, _EFFICIENT = ATEN._scaled_dot_product_flash_attention, ATEN._scaled_dot_product_efficient_attention


class OnDevice(Tensor):
    """A tensor on a pretended device; its numbers are ``data``."""

    @staticmethod
    def __new__(cls, numbers: Tensor, device: torch.device | None = None, requires_grad: bool = False) -> Any:
        if device is None:  # accelerate makes a new parameter by the old one's class
            return nn.Parameter(numbers, requires_grad)
        made = Tensor._make_wrapper_subclass(
            cls, numbers.shape, strides=numbers.stride(), storage_offset=numbers.storage_offset(), dtype=numbers.dtype,
            device=device,
        )  # fmt: skip
        made.numbers = numbers
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        mode = Devices.open
        assert mode is not None, "the pretended devices are gone"
        with mode:
            return mode.run(function, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({tuple(self.shape)}, {self.device})"


class Devices(TorchDispatchMode):
    """The devices, and what was done on them.

    Attributes:
        waits: (what, line of headcount or empty, whether within a layer's attention) → how often the host had to wait.
        attended: (operator, shape of the queries, shape of the keys) → how often PyTorch's operators attended.
    """

    open: Devices | None = None

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[tuple[str, str, bool]] = Counter()
        self.attended: Counter[tuple[str, tuple[int, ...], tuple[int, ...]]] = Counter()

    def within_layers(self) -> dict[tuple[str, str], int]:
        """Waits within a layer's attention."""
        return {(what, line): times for (what, line, within), times in self.waits.items() if within}

    def of_headcount(self) -> int:
        """How often a line of headcount made the host wait."""
        return sum(times for (_, line, _), times in self.waits.items() if line)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return self.run(function, args, kwargs or {})

    def run(self, function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if function.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            with self:  # in inference mode they arrive whole
                return function.decompose(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
        wanted = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        if not here and (wanted is None or wanted.type != "cuda"):
            return function(*args, **kwargs)
        name = function.overloadpacket
        if name in (ATEN._to_copy, ATEN.copy_):
            return self._copy(function, args, kwargs, wanted)
        self._check_operands(function, tensors, here)
        if (
            name in _ASKING
            or (name in _INDEXING and _by_truth(args[1]))
            or (name == ATEN.repeat_interleave and len(args) < 2)
        ):
            self._wait(str(name))
        device = _numbered(wanted) if wanted is not None else here[0].device
        args, kwargs = tree_map(_numbers, (args, kwargs))
        if name in (_FLASH, _EFFICIENT):
            self.attended[str(name).removeprefix("aten._scaled_dot_product_"), args[0].shape, args[1].shape] += 1
            output, lse = (_flash if name == _FLASH else _efficient)(*args, **kwargs)
            found, unread = (OnDevice(output, device), OnDevice(lse, device)), OnDevice(torch.zeros(0), device)
            return (*found, None, None, 0, 0, *[unread] * 3) if name == _FLASH else (*found, unread, unread)
        if name == ATEN.histc:
            args = (args[0].float(), *args[1:])  # on CUDA integers have histograms too
        if "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        mine = {id(tensor.numbers): tensor for tensor in here}

        def there(result: Any) -> Any:
            if not isinstance(result, Tensor):
                return result
            return mine[id(result)] if id(result) in mine else OnDevice(result, device)

        return tree_map(there, function(*args, **kwargs))

    def _copy(self, function: Any, args: Any, kwargs: dict[str, Any], wanted: torch.device | None) -> Any:
        into = args[0] if function.overloadpacket == ATEN.copy_ else None
        source = args[0] if into is None else args[1]
        target = into.device if into is not None else source.device if wanted is None else _numbered(wanted)
        blocking = not (kwargs.get("non_blocking") or (into is not None and len(args) > 2 and args[2]))
        if (
            "cpu" in (source.device.type, target.type)
            and source.device != target
            and (blocking or target.type == "cpu")
        ):
            self._wait(f"copy to {target.type}")
        here = target if target.type == "meta" else torch.device("cpu")
        args, kwargs = tree_map(_numbers, (args, {**kwargs, **({"device": here} if wanted else {})}))
        made = function(*args, **kwargs)
        return into if into is not None else OnDevice(made, target) if target.type == "cuda" else made

    def _check_operands(self, function: Any, tensors: list[Tensor], here: list[OnDevice]) -> None:
        indexing = function.overloadpacket in _INDEXING
        away = [tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.dim()]
        if indexing and away:
            self._wait("copy of an index to cuda")
        found = {str(tensor.device) for tensor in (*here, *([] if indexing else away))}
        if len(found) > 1:
            raise RuntimeError(f"Expected all tensors to be on the same device, found {sorted(found)} in {function}")

    def _wait(self, what: str) -> None:
        line, within, frame = None, False, sys._getframe()
        while frame is not None:
            file = frame.f_code.co_filename
            if file.startswith(_HEADCOUNT):
                line = f"{file.removeprefix(_HEADCOUNT)}:{frame.f_lineno}" if line is None else line
                within |= file.endswith("/switch.py") and frame.f_code.co_name == "attention"
            elif "/transformers/" in file or "/accelerate/" in file:
                line = line or ""
            frame = frame.f_back
        self.waits[what, line or "", within] += 1


def _numbers(leaf: Any) -> Any:
    return leaf.numbers if isinstance(leaf, OnDevice) else leaf


def _by_truth(index: Any) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.dtype in (torch.bool, torch.uint8) for leaf in tree_leaves(index))


def _numbered(device: torch.device | str) -> torch.device:
    device = torch.device(device)
    return torch.device("cuda", 0) if device.type == "cuda" and device.index is None else device


def _flash(query, key, value, dropout=0.0, causal=False, debug=False, *, scale):
    """What FlashAttention takes, by PyTorch's source (aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp)."""
    assert query.dtype in (torch.float16, torch.bfloat16), "FlashAttention only supports fp16 and bf16 data type"
    assert query.shape[-1] == key.shape[-1] == value.shape[-1] <= 256, "head sizes"
    assert query.shape[-1] % 8 == 0, "head_size must be a multiple of 8"
    assert query.shape[1] % key.shape[1] == 0, "Number of heads in key/value must divide number of heads in query"
    assert all(tensor.stride(-1) == 1 for tensor in (query, key, value)), "contiguous last dimension"
    group = query.shape[1] // key.shape[1]
    scores = query.float() @ key.float().repeat_interleave(group, 1).mT * scale
    if causal:  # aligned to the lower right corner
        length, keys = scores.shape[-2:]
        scores = scores.masked_fill(torch.ones(length, keys, dtype=torch.bool).triu(1 + keys - length), -torch.inf)
    return _weighed(scores, value.repeat_interleave(group, 1), query.dtype)


def _efficient(query, key, value, bias, want_lse, dropout=0.0, causal=False, *, scale):
    """What the memory-efficient kernel takes, by PyTorch's source (…/transformers/cuda/attention.cu)."""
    assert query.shape[1] == key.shape[1] == value.shape[1], "one number of heads"
    assert want_lse
    lane = 4 if query.dtype == torch.float32 else 8
    for tensor in (query, key, value):
        assert tensor.stride(-1) == 1, "last dimension contiguous"
        assert tensor.stride(1) % lane == tensor.stride(2) % lane == 0, "not correctly aligned"
        assert tensor.storage_offset() * tensor.element_size() % 16 == 0, "not correctly aligned"
    scores = query.float() @ key.float().mT * scale
    if bias is not None:
        assert bias.dtype == query.dtype, "invalid dtype for bias - should match query's dtype"
        assert bias.stride(-1) == 1, "last dimension contiguous"
        assert all(bias.stride(i) % lane == 0 for i in range(3)), "attn_bias is not correctly aligned"
        scores = scores + bias.float()
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    output, lse = _weighed(scores, value, query.dtype)
    return output, nn.functional.pad(lse, (0, -lse.shape[-1] % 32), value=torch.inf)


def _weighed(scores, value, dtype):
    lse = scores.logsumexp(-1)
    weights = torch.nan_to_num((scores - lse[..., None]).exp(), nan=0.0).to(dtype)
    return (weights.float() @ value.float()).to(dtype), lse


@cache
def _guard() -> None:
    """Say to PyTorch that there are devices of this kind, once a process."""
    with TemporaryDirectory() as folder:
        built, home = Path(folder) / "pretended.so", Path(torch.__file__).parent
        command = ["g++", "-O1", "-std=c++20", "-shared", "-fPIC", f"-I{home}/include"]
        subprocess.run(
            [*command, Path(__file__).with_suffix(".cpp"), "-o", built, f"-L{home}/lib", "-lc10"],
            check=True,
            timeout=120,
        )
        ctypes.CDLL(str(built))


@contextmanager
def pretended_devices(count: int = 1, *, memory: int = 80 << 30, free: int = 70 << 30) -> Iterator[Devices]:
    """Devices ``cuda:0`` … inside the block. Skips the test where PyTorch has real ones, or there is no C++ compiler."""
    if torch.version.cuda or torch.version.hip or not shutil.which("g++"):
        pytest.skip("needs a CPU build of PyTorch and g++")
    _guard()
    to, tensor = Tensor.to, torch.tensor

    def to_numbered(self, *args, **kwargs):
        def known(given):
            return _numbered(given) if isinstance(given, str | torch.device) else given

        return to(self, *map(known, args), **{name: known(given) for name, given in kwargs.items()})

    def made_in_main_memory(data, *, device=None, **options):
        return tensor(data, **options) if device is None else tensor(data, **options).to(device)

    facts = {
        "is_available": lambda: True, "device_count": lambda: count, "current_device": lambda: 0,
        "mem_get_info": lambda *_: (free, memory), "is_bf16_supported": lambda **_: True, "empty_cache": lambda: None,
        "get_device_capability": lambda *_: (9, 0), "_lazy_init": lambda: None,
    }  # fmt: skip
    with (
        patch.multiple(torch.cuda, **facts),
        patch.object(Tensor, "to", to_numbered),
        patch.object(torch, "tensor", made_in_main_memory),
        Devices() as devices,
    ):
        Devices.open = devices
        try:
            yield devices
        finally:
            Devices.open = None


def place(model: nn.Module, device_of: Callable[[str], str]) -> nn.Module:
    """Put each parameter and buffer on the device that ``device_of`` gives for its name."""
    for name, module in model.named_modules():
        for tensors in (module._parameters, module._buffers):
            for key, tensor in [*tensors.items()]:
                device = torch.device(device_of(f"{name}.{key}"))
                if tensor is not None and device.type == "cuda":
                    there = OnDevice(tensor.detach(), device)
                    tensors[key] = nn.Parameter(there, requires_grad=False) if tensors is module._parameters else there
    return model
