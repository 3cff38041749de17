"""The notebooks run from top to bottom, in a kernel of their own and without a network."""

import base64
import time
from functools import partial
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

from sepc_zoo.training.checkpoint import is_saved

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TINY = {
    "model": "retinanet_mnv4s_pconv",
    "model_kwargs": {"channels": 16, "neck": {"blocks": 1}},
    "image_size": (64, 64),
    "workers": 0,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder in which kernels find the package."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def execute(name, folder, parameters):
    """The outputs of a notebook with other parameters, as (MIME type, content)."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    cell.source = parameters
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not any("Traceback" in output.get("text", "") for output in outputs)
    return [item for output in outputs for item in output.get("data", {}).items()]


def num_pictures(outputs):
    pictures = [content for kind, content in outputs if kind == "image/png"]
    assert all(base64.b64decode(content).startswith(b"\x89PNG") for content in pictures)
    return len(pictures)


@pytest.mark.slow
def test_the_quick_start_shows_curves_and_detections(folder):
    outputs = execute("quickstart", folder, "IMAGES, EPOCHS = 12, 1")
    assert num_pictures(outputs) == 2
    assert any(kind == "text/plain" and "TrainResult(AP" in text for kind, text in outputs)


@pytest.mark.slow
def test_fine_tuning_shows_curves_inputs_detections_and_the_report(folder, shapes):
    parameters = f"DATA, START, EPOCHS = {str(shapes)!r}, {TINY!r}, 1"
    outputs = execute("finetune", folder, parameters)
    assert num_pictures(outputs) == 4
    assert any("report.html" in content for kind, content in outputs if kind == "text/html")
    assert [*folder.glob("runs/*/validation/report.html")]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert {(len(cell.outputs), cell.execution_count) for cell in code} == {(0, None)}


@pytest.mark.slow
def test_the_stop_button_leaves_a_run_to_resume_and_says_so(folder, shapes):
    manager, client = start_new_kernel(cwd=str(folder))
    options = {**TINY, "data": str(shapes), "epochs": 1000, "output": "run", "log_interval": 1}
    try:
        request = client.execute(f"import sepc_zoo; sepc_zoo.train(**{options!r})")
        deadline = time.monotonic() + 300
        while not (folder / "run" / "log.csv").exists():
            assert time.monotonic() < deadline
            time.sleep(0.2)
        manager.interrupt_kernel()
        replies = iter(partial(client.get_shell_msg, timeout=120), None)
        reply = next(r["content"] for r in replies if r["parent_header"].get("msg_id") == request)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert reply["ename"] == "KeyboardInterrupt"
    assert "saved after step" in reply["evalue"]
    assert "resume='run'" in reply["evalue"]
    assert is_saved(folder / "run")
