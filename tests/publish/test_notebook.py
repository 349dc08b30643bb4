"""The notebook runs on the demo model, in little time, and what it shows is small."""

import json
import shutil
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient", reason="what scripts/publish.txt installs is not there")
pytestmark = [pytest.mark.publish, pytest.mark.demo]
NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "quickstart.ipynb"
SECONDS, BYTES = 120, 300_000


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook with its outputs, its folder, and the seconds of processor time that its cells took."""
    import nbformat

    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(shutil.copy(NOTEBOOK, folder), as_version=4)
    timed = nbformat.v4.new_code_cell("import time\nprint(time.process_time())")
    notebook.cells.append(timed)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    notebook.cells.pop()
    return notebook, folder, float(timed.outputs[0].text)


def test_it_runs_in_little_time_and_leaves_a_page(executed):
    _, folder, seconds = executed
    assert seconds < SECONDS
    assert (folder / "quickstart-run/report.html").stat().st_size > 1_000_000


def test_what_it_shows_is_small_and_rendered(executed):
    notebook, _, _ = executed
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    told = [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    assert not [text for text in told if "IProgress not found" not in text]  # tqdm wants ipywidgets
    assert len(json.dumps(outputs)) < BYTES
    shown = [output.data for output in outputs if output.output_type in ("execute_result", "display_data")]
    assert sum("text/html" in data for data in shown) >= 4  # scores, policy, run, table
    assert sum("image/png" in data for data in shown) == 1


def test_no_outputs_are_kept_in_the_repository():
    for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"]:
        assert not cell.get("outputs"), "clear the outputs before committing"
