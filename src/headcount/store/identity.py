"""What a run was made with, and how two such descriptions differ."""

import functools
import json
import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "transformers", "lm_eval", "numpy")


def environment() -> dict[str, Any]:
    """The versions that a run's numbers depend on: headcount with its commit, Python, the libraries, the system."""
    known = {"headcount": version("headcount"), "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            known[package] = version(package)
        except PackageNotFoundError:  # lm-eval is not needed to measure texts
            continue
    return known | code_version() | {"system": f"{platform.system()} {platform.machine()}"}


@functools.cache
def code_version() -> dict[str, Any]:
    """``commit`` of the source that runs, and whether it was changed since (``dirty``); empty if that is not known."""
    try:
        installed = json.loads(distribution("headcount").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        installed = {}
    if commit := installed.get("vcs_info", {}).get("commit_id"):  # pip install git+https://…
        return {"commit": commit, "dirty": False}
    source = Path(__file__).resolve().parent
    if _git(source, "ls-files", "--error-unmatch", "identity.py") is None:  # somebody else's repository, or none
        return {}
    commit = _git(source, "rev-parse", "HEAD")
    changed = _git(source, "status", "--porcelain", "--untracked-files=no", "--", str(source.parent))
    return {} if commit is None else {"commit": commit, "dirty": bool(changed)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603  (arguments of our own)
            # The user's own git; a repository may name a program for it to run as its monitor.
            ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments],  # noqa: S607
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def differences(expected: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    """The facts in which what is found differs from what is wanted, as readable phrases."""
    for name, wanted in expected.items():
        if (have := found.get(name)) != wanted:
            yield f"{name} is {_short(have)} there and {_short(wanted)} here"


def _short(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit // 2]}…{text[-limit // 2 + 1 :]}"
