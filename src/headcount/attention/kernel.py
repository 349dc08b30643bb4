"""The C kernel of compiled attention: built once by the machine's C compiler, kept in the user's cache folder."""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from headcount.cache import cache_folder

_SOURCE = Path(__file__).with_name("softmax.c")
# Not -ffast-math: linking with it makes gcc set the whole process to flush subnormal numbers to zero.
_FLAGS = ["-O3", "-std=gnu11", "-shared", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"]
# The processor's family as PyTorch sees it rather than -march=native, so that a cache folder shared by the machines of a
# cluster holds one file for each family and none runs another's.
_FAMILY_FLAGS = {
    "AVX512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"],
    "AVX2": ["-mavx2", "-mfma"],
}


class KernelUnavailable(Exception):
    """The kernel could not be built or loaded, and why."""


def load_kernel() -> ctypes.CDLL:
    """The built ``softmax.c``, compiled now (about a second) if the cache folder lacks it.

    The compiler is ``$CC``, or ``cc``, ``gcc`` or ``clang`` on the path.

    Raises:
        KernelUnavailable: there is no compiler, it failed, or its result cannot be loaded.
    """
    compiler = _compiler()
    flags = [*_FLAGS, *_FAMILY_FLAGS.get(torch.backends.cpu.get_cpu_capability(), [])]
    key = "\0".join([_SOURCE.read_text(), *compiler, *flags, platform.machine(), platform.system()])
    name = f"softmax-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    try:
        folder = _kernel_folder()
        if not (folder / name).exists():
            _build([*compiler, *flags], folder / name)
        library = ctypes.CDLL(str(folder / name))
    except OSError as error:
        raise KernelUnavailable(str(error)) from error
    _declare(library)
    return library


def _compiler() -> list[str]:
    named = shlex.split(os.environ.get("CC", ""))
    for command in [named] if named else [["cc"], ["gcc"], ["clang"]]:
        if path := shutil.which(command[0]):
            return [path, *command[1:]]
    raise KernelUnavailable(f"no C compiler ({' '.join(named) or 'cc, gcc or clang'}) was found")


def _kernel_folder() -> Path:
    chosen = cache_folder() / "kernels"
    try:
        chosen.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="headcount-"))  # a read-only home: build anew in each process
    return chosen if os.access(chosen, os.W_OK) else Path(tempfile.mkdtemp(prefix="headcount-"))


def _build(command: list[str], target: Path) -> None:
    """Compile to a file of another name first, so that no process ever loads half a file."""
    handle, temporary = tempfile.mkstemp(suffix=".so", dir=target.parent)
    os.close(handle)
    try:
        made = subprocess.run(  # noqa: S603 - the user's own compiler, and arguments of ours
            [*command, "-o", temporary, str(_SOURCE), "-lm"], capture_output=True, text=True, timeout=120, check=False
        )
        if made.returncode:
            lines = made.stderr.strip().splitlines() or [f"exit code {made.returncode}"]
            raise KernelUnavailable(f"{command[0]} failed: {lines[-1]}")
        os.replace(temporary, target)
    except subprocess.TimeoutExpired as error:
        raise KernelUnavailable(f"{command[0]} took more than two minutes") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def _declare(library: ctypes.CDLL) -> None:
    pointer, integer, number, small = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
    for dtype in ("float32", "bfloat16"):
        softmax, scale_rows = getattr(library, f"softmax_{dtype}"), getattr(library, f"scale_rows_{dtype}")
        softmax.restype = scale_rows.restype = None
        softmax.argtypes = (
            [pointer, *[integer] * 5, small, pointer, *[integer] * 4, pointer, number, *[pointer] * 3, integer, small]
        )  # fmt: skip
        scale_rows.argtypes = [pointer, pointer, pointer, *[integer] * 8, small]
