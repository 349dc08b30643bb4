"""The C kernel of compiled attention: built once by the machine's C compiler, kept in the user's cache folder."""

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from torch import Tensor

from headcount.cache import changeable_by_others, kept

_SOURCES = Path(__file__).with_name("native")
# Not -ffast-math: linking with it makes gcc set the whole process to flush subnormal numbers to zero.
_FLAGS = ["-O3", "-std=gnu11", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"]
#: For this processor; the second is how some compilers for ARM say it, and the last is always understood.
_PROCESSOR_FLAGS = (["-march=native"], ["-mcpu=native"], [])


class KernelUnavailable(Exception):
    """The kernel could not be built or loaded, and why."""


class Strides(ctypes.Structure):
    """Elements between examples, heads and positions of a tensor ``[example, head, position, element]``."""

    _fields_ = [(name, ctypes.c_int64) for name in ("example", "head", "position")]

    @classmethod
    def of(cls, tensor: Tensor) -> "Strides":
        assert tensor.stride(-1) == 1 or tensor.shape[-1] == 1 or not tensor.numel()
        return cls(*tensor.stride()[:3])


class Call(ctypes.Structure):
    """``struct attention`` of ``native/attention.c``, which says what the fields mean."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("query", "key", "value")),
        *((name, Strides) for name in ("query_strides", "key_strides", "value_strides")),
        ("mask", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("mask_example", "mask_query")),
        *((name, ctypes.c_void_p) for name in ("sinks", "factor", "first")),
        *((name, ctypes.c_int64) for name in ("examples", "heads", "groups", "queries", "keys", "dim", "value_dim")),
        *((name, ctypes.c_int64) for name in ("factor_rows", "causal", "threads", "block_rows", "held_scores")),
        *((name, ctypes.c_float) for name in ("scale", "softcap")),
        ("output", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in ("entropy", "first_token_weight", "output_norm", "contribution_norm")),
        *((name, ctypes.c_void_p) for name in ("value_norm", "workspace")),
    ]  # fmt: skip


@cache
def load_kernel() -> ctypes.CDLL:
    """The built kernel, compiled now (a few seconds) if the cache folder lacks it.

    The compiler is ``$CC``, or ``cc``, ``gcc`` or ``clang`` on the path.

    Raises:
        KernelUnavailable: there is no compiler, it failed, or its result cannot be loaded.
    """
    compiler = _compiler()
    flags, processor = _for_this_processor(compiler)
    sources = [path.read_text() for path in sorted(_SOURCES.iterdir()) if path.suffix in (".c", ".h")]
    key = "\0".join([*sources, *compiler, *flags, processor])
    name = f"attention-{hashlib.sha256(key.encode()).hexdigest()[:16]}"

    def build(target: Path) -> None:
        _build([*compiler, *flags], target)

    try:
        library = kept(f"kernels/{name}", ".so", build, _load)
        if library is None:
            with tempfile.TemporaryDirectory(prefix="headcount-") as passing:
                if problem := changeable_by_others(Path(passing)):
                    raise KernelUnavailable(f"there is no safe folder to build it in: {problem}")
                build(Path(passing) / f"{name}.so")
                library = _load(Path(passing) / f"{name}.so")
        return library
    except OSError as error:
        raise KernelUnavailable(str(error)) from error


def _compiler() -> list[str]:
    named = shlex.split(os.environ.get("CC", ""))
    for command in [named] if named else [["cc"], ["gcc"], ["clang"]]:
        if path := shutil.which(command[0]):
            return [path, *command[1:]]
    raise KernelUnavailable(f"no C compiler ({' '.join(named) or 'cc, gcc or clang'}) was found")


def _for_this_processor(compiler: list[str]) -> tuple[list[str], str]:
    """Flags for this processor, and everything the compiler defines with them: its version and what the processor can do.

    That text names the built file, so a cache folder shared by the machines of a cluster holds one file for each kind of
    processor, and none runs another's.
    """
    problem = ""
    for wanted in _PROCESSOR_FLAGS:
        flags = [*_FLAGS, *wanted]
        made = _run([*compiler, *flags, "-dM", "-E", "-x", "c", os.devnull])
        if made.returncode == 0:
            return flags, made.stdout
        problem = problem or _last_line(made)
    raise KernelUnavailable(f"{compiler[0]} failed: {problem}")


def _build(command: list[str], target: Path) -> None:
    """Compile in a folder of this user alone, with what the compiler writes on the way."""
    made = _run([*command, "-shared", "-o", str(target), str(_SOURCES / "attention.c"), "-lm"], folder=target.parent)
    if made.returncode:
        raise KernelUnavailable(f"{command[0]} failed: {_last_line(made)}")


def _run(command: list[str], *, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"TMPDIR": str(folder)} if folder else {})
    try:
        return subprocess.run(  # noqa: S603 - the user's own compiler, and arguments of ours
            command, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise KernelUnavailable(f"{command[0]} took more than two minutes") from error


def _last_line(made: subprocess.CompletedProcess[str]) -> str:
    return (made.stderr.strip().splitlines() or [f"exit code {made.returncode}"])[-1]


def _load(built: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(built))
    try:
        for name in ("attention_bytes", "attention_lanes"):
            getattr(library, name).restype = ctypes.c_int64
        for dtype in ("float32", "bfloat16"):
            attention, workspace = (
                getattr(library, f"attention_{dtype}"),
                getattr(library, f"attention_workspace_{dtype}"),
            )
            attention.argtypes = workspace.argtypes = [ctypes.POINTER(Call)]
            attention.restype, workspace.restype = None, ctypes.c_int64
    except AttributeError as error:
        raise KernelUnavailable(f"the built kernel lacks a function: {error}") from error
    if library.attention_bytes() != ctypes.sizeof(Call):
        raise KernelUnavailable("the kernel's arguments have another layout than Python's")
    return library
