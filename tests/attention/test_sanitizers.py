"""The kernel under the compiler's address and undefined-behaviour sanitizers, with inputs that nothing else tries."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import headcount
from headcount.attention import kernel

ROOT = Path(__file__).parents[2]


def run(*command, **environment):
    paths = os.pathsep.join([str(ROOT), str(Path(headcount.__file__).parents[1])])
    known = os.environ | {"PYTHONPATH": paths, "ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "2"}
    return subprocess.run(command, env=known | environment, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The kernel with sanitizers in it, and the library that has to be loaded before Python."""
    compiler = kernel._compiler()
    flags = [*kernel._for_this_processor(compiler)[0], "-O1", "-g", "-fsanitize=address,undefined"]
    flags += ["-fno-sanitize-recover=all"]
    built = tmp_path_factory.mktemp("sanitized") / "attention.so"
    made = run(*compiler, *flags, "-shared", "-o", str(built), str(kernel._SOURCES / "attention.c"), "-lm")
    runtime = run(*compiler, "-print-file-name=libasan.so").stdout.strip()
    if made.returncode or not Path(runtime).is_absolute():
        pytest.skip("a compiler without the sanitizers, or with others than gcc's")
    return built, runtime


def python(library, code):
    """Runs code under the sanitizers, once PyTorch is imported."""
    built, runtime = library
    begun = "import torch; print('began', flush=True)\n"
    made = run(sys.executable, "-c", begun + code, str(built), LD_PRELOAD=runtime)
    if not made.stdout.startswith("began\n"):
        pytest.skip("PyTorch does not run under the address sanitizer here")
    return made


def test_no_call_reads_or_writes_out_of_place_or_does_what_c_leaves_undefined(library):
    made = python(library, "import runpy; runpy.run_module('tests.attention.sanitized', run_name='__main__')")
    assert made.returncode == 0, made.stderr[-4000:]
    assert made.stdout == "began\n152\n"


def test_the_sanitizers_see_a_read_beyond_a_tensor(library):
    code = (
        "import sys; from headcount.attention import compiled, kernel; from tests.attention.reference import make\n"
        "compiled.load_kernel = lambda: library\n"
        "library = kernel._load(__import__('pathlib').Path(sys.argv[1])); inputs, positions = make(length=40)\n"
        "compiled.Strides.of = lambda tensor: kernel.Strides(*(2 * stride for stride in tensor.stride()[:3]))\n"
        "compiled.attend_compiled(inputs, positions)"
    )
    made = python(library, code)
    assert made.returncode != 0
    assert "heap-buffer-overflow" in made.stderr
