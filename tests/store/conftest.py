import pytest

from headcount.store import begin_run
from tests.store.parts import FACTS


@pytest.fixture
def run(tmp_path):
    """A new run whose only writer is the test."""
    with begin_run(tmp_path / "run", **FACTS, command="headcount test") as run:
        yield run
