"""Building the kernel, keeping it, and doing without."""

import subprocess
import sys

import pytest

from headcount import cache
from headcount.attention import kernel
from headcount.attention.kernel import KernelUnavailable, load_kernel


@pytest.fixture(autouse=True)
def _fresh(monkeypatch, tmp_path):
    monkeypatch.setenv("HEADCOUNT_CACHE", str(tmp_path))
    monkeypatch.setattr(kernel, "_FLAGS", ["-O0", *kernel._FLAGS[1:]])  # is built in a fraction of the time
    load_kernel.cache_clear()
    yield
    load_kernel.cache_clear()


def test_it_is_built_once_and_kept(monkeypatch, tmp_path):
    load_kernel()
    (built,) = (tmp_path / "kernels").iterdir()
    assert built.suffix == ".so"
    load_kernel.cache_clear()
    monkeypatch.setattr(kernel, "_build", lambda *_: pytest.fail("compiled again"))
    load_kernel()


def test_another_processor_another_compiler_or_another_source_builds_another(monkeypatch, tmp_path):
    built = []
    monkeypatch.setattr(kernel, "_build", lambda _, target: target.write_bytes(b""))
    monkeypatch.setattr(kernel, "_load", lambda path: built.append(path.name) or path)
    flags, processor = kernel._for_this_processor(kernel._compiler())
    sources = tmp_path / "sources"
    for given in ((flags, processor), (flags, processor + "#define __AVX1024__ 1"), ([*flags, "-g"], processor)):
        monkeypatch.setattr(kernel, "_for_this_processor", lambda _, given=given: given)
        load_kernel.cache_clear()
        load_kernel()
    sources.mkdir()
    (sources / "attention.c").write_text("int x;")
    monkeypatch.setattr(kernel, "_SOURCES", sources)
    load_kernel.cache_clear()
    load_kernel()
    assert len(set(built)) == 4


def test_processes_that_build_at_the_same_time_do_not_meet(tmp_path):
    code = (
        "from headcount.attention import kernel; kernel._FLAGS[0] = '-O0'; "
        "assert kernel.load_kernel().attention_bytes() > 0"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert [path.suffix for path in (tmp_path / "kernels").iterdir()] == [".so"]


def test_a_kept_kernel_that_is_not_the_one_built_is_never_loaded_and_built_again(tmp_path):
    load_kernel()
    (built,) = (tmp_path / "kernels").iterdir()
    whole = built.read_bytes()
    for content in (whole[:1000], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        built.unlink()  # the process that has it loaded keeps its file
        built.write_bytes(content)
        load_kernel.cache_clear()
        with pytest.warns(UserWarning, match=f"{built.name}' is not what was built here: .* made again"):
            assert load_kernel().attention_lanes() in (4, 8, 16)
        (built,) = (tmp_path / "kernels").iterdir()
        assert built.read_bytes() == whole
        cache._say.cache_clear()


def test_a_library_that_lacks_a_function_is_built_again(tmp_path):
    load_kernel()
    (built,) = (tmp_path / "kernels").iterdir()
    name = built.name
    (tmp_path / "other.c").write_text("int x;")
    other = tmp_path / "other.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(other), str(tmp_path / "other.c")], check=True)
    other.chmod(0o700)
    built.unlink()
    other.rename(built.with_name(f"{name[:26]}-{cache._digest(other)}.so"))
    load_kernel.cache_clear()
    with pytest.warns(UserWarning, match="is not what was built here"):
        assert load_kernel().attention_lanes() in (4, 8, 16)
    assert [path.name for path in (tmp_path / "kernels").iterdir()] == [name]


def test_a_compiler_that_is_killed_leaves_nothing_and_keeps_its_own_files_where_nobody_else_can_write(
    monkeypatch, tmp_path
):
    compiler = tmp_path / "compiler"
    compiler.write_text(
        f'#!/bin/sh\necho "$TMPDIR" > {tmp_path}/where\ncase "$*" in *-dM*) exit 0;; esac\nkill -9 $$\n'
    )
    compiler.chmod(0o700)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(KernelUnavailable, match="exit code -9"):
        load_kernel()
    assert (tmp_path / "where").read_text().startswith(f"{tmp_path}/kernels/.headcount.making-")
    assert [*(tmp_path / "kernels").iterdir()] == []


def test_with_nowhere_to_keep_it_it_is_built_and_left_nowhere(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HEADCOUNT_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.warns(UserWarning, match="built anew each time: it cannot be made .Not a directory."):
        assert load_kernel().attention_lanes() in (4, 8, 16)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("compiler", "said"), [("no-such-compiler", "no C compiler .no-such-compiler. was found"), ("false", "exit code 1")]
)
def test_without_a_working_compiler_it_says_so(compiler, said, monkeypatch, tmp_path):
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(KernelUnavailable, match=said):
        load_kernel()
    assert not [*tmp_path.rglob("*.so")]


def test_a_compiler_for_which_no_flag_names_this_processor_builds_for_any(monkeypatch):
    monkeypatch.setattr(kernel, "_PROCESSOR_FLAGS", (["-march=no-such"], []))
    flags, _ = kernel._for_this_processor(kernel._compiler())
    assert flags == kernel._FLAGS


def test_a_source_that_does_not_compile_leaves_nothing(monkeypatch, tmp_path):
    (tmp_path / "attention.c").write_text("int x")
    monkeypatch.setattr(kernel, "_SOURCES", tmp_path)
    with pytest.raises(KernelUnavailable, match="failed"):
        load_kernel()
    assert not [*(tmp_path / "kernels").iterdir()]
