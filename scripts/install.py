"""Install what ``pip install ARGUMENTS`` would, into the environment of this Python: with uv, in less than half the time.

uv is told what pip goes by, as pip itself reads it from its configuration, the environment and ARGUMENTS: indexes, links,
constraints, certificates, proxy. Like pip it takes the best version that any of the indexes has. Where pip is told something
that is not said to uv here, or uv is not there or fails, pip installs.
"""

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

UV = Path(sys.executable).with_name("uv")
PIP = [sys.executable, "-m", "pip", "install", "-qq", "--no-input", "--disable-pip-version-check"]

#: By pip's name of an option: what says the same to uv.
SAME: dict[str, Callable[[Any], list[str]]] = {
    "cert": lambda file: ["--cert", file],
    "constraints": lambda files: [f"--constraints={file}" for file in files],
    "editables": lambda folders: [f"--editable={folder}" for folder in folders],
    "extra_index_urls": lambda urls: [f"--extra-index-url={url}" for url in urls],
    "find_links": lambda links: [f"--find-links={link}" for link in links],
    "ignore_dependencies": lambda _: ["--no-deps"],
    "index_url": lambda url: [f"--index-url={url}"],
    "no_index": lambda _: ["--no-index"],
    "pre": lambda _: ["--prerelease=allow"],
    "require_hashes": lambda _: ["--require-hashes"],
    "requirements": lambda files: [f"--requirements={file}" for file in files],
    "trusted_hosts": lambda hosts: [f"--allow-insecure-host={host}" for host in hosts],
}
#: What is said in the environment.
VARIABLES: dict[str, Callable[[Any], dict[str, str]]] = {
    "proxy": lambda url: {"HTTP_PROXY": url, "HTTPS_PROXY": url, "ALL_PROXY": url},
    "timeout": lambda seconds: {"UV_HTTP_TIMEOUT": f"{float(seconds):.0f}"},
}
#: What changes nothing about what is installed, or concerns pip's own output and cache.
UNRELATED = {
    "cache_dir", "debug_mode", "disable_pip_version_check", "log", "no_color", "no_input", "no_python_version_warning",
    "progress_bar", "quiet", "require_venv", "retries", "root_user_action", "verbose", "warn_script_location",
}  # fmt: skip


def as_uv_takes_it(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]] | None:
    """The command and the environment that say to uv what pip is told; None if something of it cannot be said."""
    try:
        from pip._internal.commands import create_command
        from pip._internal.exceptions import PipError
    except ImportError:  # pip's own modules promise nothing
        return None
    try:
        command = create_command("install")
        usual = copy.deepcopy(command.parser.defaults)  # pip appends to the lists among them
        options, packages = command.parse_args(list(arguments))
    except (AttributeError, TypeError, PipError):  # PipError: of its configuration, which pip itself will name
        return None
    said = [UV, "pip", "install", "--quiet", "--no-config", "--python", sys.executable, "--compile-bytecode"]
    said.append("--index-strategy=unsafe-best-match")
    environment = dict(os.environ)
    for name, value in vars(options).items():
        if name in UNRELATED or value == usual.get(name):
            continue
        if name == "constraints" and options.require_hashes:
            continue  # every version is pinned already, and uv asks for the constraints to be as well
        if name in SAME:
            said += SAME[name](value)
        elif name in VARIABLES:
            environment |= VARIABLES[name](value)
        else:
            return None
    if options.cert is None:
        said.append("--system-certs")
    return [*map(str, said), *packages], environment


def main(arguments: list[str]) -> int:
    told = as_uv_takes_it(arguments) if UV.exists() else None
    if told is not None:
        command, environment = told
        if subprocess.run(command, env=environment).returncode == 0:  # noqa: S603
            return 0
        print("uv could not install this (above is why). Trying with pip.", file=sys.stderr)
    return subprocess.run([*PIP, *arguments]).returncode  # noqa: S603


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
