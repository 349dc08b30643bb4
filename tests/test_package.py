"""The public names, and that importing them costs nothing."""

import importlib
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import headcount


def test_the_version_to_cite_is_that_of_the_package():
    root = Path(__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    citation = yaml.safe_load((root / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]


def test_no_public_name_is_hidden_by_a_module_of_that_name():
    for module in pkgutil.walk_packages(headcount.__path__, "headcount."):
        importlib.import_module(module.name)
    for name in set(headcount.__all__) - {"plot"}:
        assert not isinstance(getattr(headcount, name), ModuleType), name


def test_every_public_name_is_there_and_no_other():
    assert dir(headcount) == sorted(headcount.__all__)
    with pytest.raises(AttributeError, match="no attribute 'heads_of_state'"):
        _ = headcount.heads_of_state


def test_plot_is_a_namespace_of_functions():
    assert "accuracy" in headcount.plot.__all__
    assert all(callable(getattr(headcount.plot, name)) for name in headcount.plot.__all__)


def test_importing_loads_nothing_heavy():
    heavy = "torch", "transformers", "lm_eval", "matplotlib", "plotly", "xarray"
    code = f"import sys, headcount; assert not set({heavy!r}) & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def modules_after(code: str) -> set[str]:
    """What a fresh process has imported once it has run ``code``."""
    told = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint(*sys.modules, file=sys.stderr)"
    run = subprocess.run([sys.executable, "-c", told], check=True, capture_output=True, text=True)
    return set(run.stderr.split())


def modules_of(*arguments: str) -> set[str]:
    """What a command imports."""
    return modules_after(f"sys.argv = {['headcount', *arguments]!r}; from headcount.cli import main; main()")


def test_commands_that_need_no_model_import_as_little_as_their_answer_takes():
    of_torch = modules_after("import torch")
    for quick in (modules_of("--version"), modules_of("--help"), modules_of("evaluate", "--help")):
        assert not {"numpy", "torch", "transformers"} & quick
        assert len(quick) < 0.45 * len(of_torch)  # small ones: a fifth of the time
    scores = modules_of("scores")
    assert not {"pandas", "transformers", "xarray"} & scores
    assert len(scores) < 1.25 * len(of_torch)
