"""What differs from device to device: how tensors get there, and how their memory runs out."""

import torch
from torch import Tensor

#: What errors say that are of no class of their own: of the allocators, and of cuBLAS, cuDNN and hipBLAS for their workspaces.
_RAN_OUT = ("not enough memory", "can't allocate memory", "out of memory", "STATUS_ALLOC_FAILED")

_WITHOUT_FLOAT64 = {"mps"}


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor in main memory, on a device. The host does not wait until it is there, nor for what the device is at."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def with_float64(tensor: Tensor) -> Tensor:
    """The tensor where float64 can be computed: in main memory if its own device has none, as MPS has none."""
    return tensor.cpu() if tensor.device.type in _WITHOUT_FLOAT64 else tensor


def doubled(tensor: Tensor) -> Tensor:
    """The tensor in float64, ``with_float64``."""
    return with_float64(tensor).double()


def broken_for_good(error: BaseException) -> bool:
    """Whether CUDA or HIP has failed in a way after which nothing works in this process any more."""
    said = str(error)
    return ("CUDA error" in said or "HIP error" in said) and not any(sign in said for sign in _RAN_OUT)


def out_of_memory(error: BaseException) -> bool:
    """Whether that is why a computation failed, on whichever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(sign in str(error) for sign in _RAN_OUT)
