"""scripts/install.py: uv is told what pip goes by, or pip installs."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "install.py"


@pytest.fixture(autouse=True)
def configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://index.example/simple\nconstraint = /of/the/machine.txt\n")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))


def told(*arguments: str) -> tuple[list[str], dict[str, str]] | None:
    """What uv is told, by a process of its own: pip keeps some of what it parsed."""
    code = "import json, sys, install; print(json.dumps(install.as_uv_takes_it(sys.argv[1:])))"
    run = subprocess.run([sys.executable, "-c", code, *arguments], cwd=SCRIPT.parent, capture_output=True, check=True)
    return json.loads(run.stdout)


def test_uv_goes_by_pips_configuration_environment_and_arguments(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels /more-wheels")
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "180")
    arguments = ["--extra-index-url", "https://cpu.example/simple", "--proxy", "http://proxy.example:3128"]
    command, environment = told(*arguments, "-c", "constraints.txt", "-e", ".[dev]") or ([], {})
    assert {
        "--index-url=https://index.example/simple", "--extra-index-url=https://cpu.example/simple",
        "--find-links=/wheels", "--find-links=/more-wheels", "--constraints=/of/the/machine.txt",
        "--constraints=constraints.txt", "--editable=.[dev]", "--index-strategy=unsafe-best-match",
    } <= set(command)  # fmt: skip
    assert environment["HTTPS_PROXY"] == "http://proxy.example:3128"
    assert environment["UV_HTTP_TIMEOUT"] == "180"


def test_hashes_stay_required():
    command, _ = told("--no-deps", "--require-hashes", "-r", "demo.txt") or ([], {})
    assert {"--no-deps", "--require-hashes", "--requirements=demo.txt"} <= set(command)
    assert not any(part.startswith("--constraint") for part in command)  # uv refuses those without hashes here


def test_an_index_in_the_environment_comes_before_the_file(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_INDEX_URL", "https://mine.example/simple")
    command, _ = told("gguf") or ([], {})
    assert "--index-url=https://mine.example/simple" in command
    assert not any("index.example" in part for part in command)
    assert command[-1] == "gguf"


@pytest.mark.parametrize("argument", ["--no-binary=gguf", "--upgrade", "--client-cert=mine.pem", "--target=there"])
def test_what_is_not_said_to_uv_is_left_to_pip(argument: str):
    assert told("gguf") is not None
    assert told(argument, "gguf") is None


@pytest.mark.parametrize(("uv_ends_with", "runs"), [(0, ["uv"]), (1, ["uv", "pip"])])
def test_pip_installs_where_uv_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, uv_ends_with: int, runs: list[str]
):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    install = importlib.import_module("install")
    uv = tmp_path / "uv"
    uv.touch()
    ran: list[str] = []

    def run(command: list[str], env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        ran.append("uv" if command[0] == str(uv) else "pip")
        return subprocess.CompletedProcess(command, uv_ends_with if ran[-1] == "uv" else 0)

    monkeypatch.setattr(install, "UV", uv)
    monkeypatch.setattr(install.subprocess, "run", run)
    assert install.main(["gguf"]) == 0
    assert ran == runs
