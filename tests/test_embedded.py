"""Models that come in packages: where they lie, how their parts are joined, and how they are fetched."""

import hashlib
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import get_args

import pytest

from headcount.embedded import EMBEDDED, EmbeddedName
from headcount.embedded.fetch import fetch
from headcount.errors import ModelError
from headcount.models.loading import default_name, load

PARTS = (b"GGUF", b" in two parts")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADCOUNT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pieces(cache, tmp_path, monkeypatch):
    """A model in two packages that fail when they are imported."""
    for number, content in enumerate(PARTS):
        package = tmp_path / "site" / f"pieces_part{number}"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise RuntimeError('imported')")
        (package / "piece").write_bytes(content)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return replace(
        EMBEDDED["gemma"], name="pieces", title="Pieces", sha256=hashlib.sha256(b"".join(PARTS)).hexdigest(),
        parts=(("pieces_part0", "piece"), ("pieces_part1", "piece")),
    )  # fmt: skip


def test_parts_are_joined_once_without_importing_their_packages(pieces, cache, monkeypatch):
    assert pieces.installed
    joined = pieces.path()
    assert joined.read_bytes() == b"GGUF in two parts"
    assert joined == cache / f"pieces-{pieces.sha256[:16]}.gguf"
    monkeypatch.setattr("headcount.embedded.Embedded._join", None)
    assert pieces.path() == joined


def test_parts_that_are_not_the_file_are_refused_and_nothing_is_kept(pieces, cache, tmp_path):
    (tmp_path / "site/pieces_part1/piece").write_bytes(b" in two pairs")
    with pytest.raises(
        ModelError, match=r"The parts of Pieces are not whole.*Install them again.*headcount fetch pieces"
    ):
        pieces.path()
    assert not list(cache.iterdir())


def test_a_joined_file_that_was_altered_is_joined_again(pieces):
    pieces.path().write_bytes(b"GGUF in no parts")
    with pytest.warns(UserWarning, match="It is made again"):
        assert pieces.path().read_bytes() == b"GGUF in two parts"


def test_a_part_that_lacks_is_not_installed(pieces, tmp_path):
    (tmp_path / "site/pieces_part1/piece").unlink()
    assert not pieces.installed
    with pytest.raises(
        ModelError, match="'pieces', is not installed. `headcount fetch pieces` installs it after naming"
    ):
        pieces.path()


@pytest.mark.filterwarnings("ignore:The cache")
@pytest.mark.parametrize("make", [lambda path: path.touch(), lambda path: path.mkdir() or path.chmod(0o777)])
def test_without_a_cache_it_says_what_is_needed(pieces, tmp_path, monkeypatch, make):
    make(tmp_path / "cache")
    monkeypatch.setenv("HEADCOUNT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ModelError, match="give HEADCOUNT_CACHE a folder of your own"):
        pieces.path()


def test_the_names_that_commands_take_are_those_of_the_models():
    assert get_args(EmbeddedName) == tuple(EMBEDDED)


@pytest.mark.parametrize("name", EMBEDDED)
def test_every_requirement_has_a_version_and_a_hash(name):
    text = EMBEDDED[name].requirements.read_text(encoding="utf-8")
    pinned = re.findall(r"^(\S+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}$", text, re.MULTILINE)
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert 2 * len(pinned) == len(lines)
    modules = {package.replace("-", "_") for package, _ in pinned}
    assert {module for module, _ in EMBEDDED[name].parts} <= modules
    for package, wanted in pinned:
        with suppress(PackageNotFoundError):
            assert version(package) == wanted


def test_a_model_that_is_not_installed_is_refused_by_its_name(monkeypatch):
    monkeypatch.setattr("headcount.embedded._found", lambda *_: None)
    with pytest.raises(
        ModelError, match="Gemma 3 270M .* is not installed. `headcount fetch gemma` installs it after naming"
    ):
        load("gemma")
    with pytest.raises(ModelError, match="SmolLM2.* is not installed. `headcount fetch demo` installs it.$"):
        load("demo")
    assert default_name("gemma") == "Gemma 3 270M (Q4_K_M)"


@pytest.fixture
def ran(monkeypatch):
    """What would have been run, which installs nothing and ends as ``ran.code`` says."""

    class Ran(list):
        code = 0

        def run(self, command):
            self.append(command)
            return subprocess.CompletedProcess(command, self.code)

    ran = Ran()
    monkeypatch.setattr("headcount.embedded.fetch.subprocess.run", ran.run)
    return ran


def test_fetching_installs_exactly_what_is_pinned(pieces, ran):
    fetch(pieces)
    ((python, *command),) = ran
    assert python == sys.executable
    assert command[:3] == ["-m", "pip", "install"]
    assert {"--no-deps", "--require-hashes", "--only-binary"} <= set(command)
    assert command[-2:] == ["-r", str(pieces.requirements)]


def test_without_pip_it_is_uv_and_without_both_a_sentence(pieces, ran, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr("headcount.embedded.Embedded.installed", True)
    monkeypatch.setattr("shutil.which", lambda _: "/bin/uv")
    fetch(pieces)
    assert ran[0][:5] == ["/bin/uv", "pip", "install", "--quiet", "--python"]
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(ModelError, match="neither pip for .* nor uv .*ensurepip"):
        fetch(pieces)


def test_what_cannot_be_installed_is_said_with_what_was_run(pieces, ran):
    ran.code = 1
    with pytest.raises(ModelError, match=r"Pieces could not be installed .*this is what was run: .*--require-hashes"):
        fetch(pieces)
