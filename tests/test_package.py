"""The public names, and that importing them costs nothing."""

import importlib
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

import headcount


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
