"""The notebook of examples/ runs from the first cell to the last, and what it shows on a page is its own."""

import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
import timm
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"
PATH = EXAMPLES / "first_merge.ipynb"
SMALL = {"IMAGES": "16", "EPOCHS": "1", "BUDGET": "4", "MASKS": "2"}
MOST_BYTES = 200_000


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(PATH, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_notebook_runs_from_checkpoints_to_a_report(notebook, tmp_path, monkeypatch):
    shutil.copy(EXAMPLES / "make_experts.py", tmp_path)
    for name, value in SMALL.items():
        monkeypatch.setenv(name, value)
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    folder = tmp_path / "with a space"
    folder.mkdir()
    shutil.move(tmp_path / "make_experts.py", folder)
    ran = nbformat.from_dict(json.loads(json.dumps(notebook)))
    NotebookClient(ran, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()

    shown = [output for cell in code(ran) for output in cell.outputs]
    assert not [output for output in shown if output.get("name") == "stderr"]
    answer = next(output.data["text/markdown"] for output in shown if "text/markdown" in output.get("data", {}))
    report = (folder / "report" / "report.md").read_text(encoding="utf-8").replace("\\", "")
    sentences = answer.split("\n\n")[:2]
    assert [sentence for sentence in sentences if sentence not in report] == []
    assert [output for output in shown if "image/png" in output.get("data", {})]
    assert "<html" in (folder / "report" / "report.html").read_text(encoding="utf-8")
    assert timm.create_model(f"local-dir:{folder / 'merged'}", pretrained=True)


def test_the_notebook_has_ten_cells_and_shows_what_came_out(notebook):
    cells = code(notebook)
    assert len(cells) == 10
    assert [cell.execution_count for cell in cells] == list(range(1, 11))
    kinds = {kind for cell in cells for output in cell.outputs for kind in output.get("data", {})}
    assert {"text/markdown", "image/png"} <= kinds
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    text = PATH.read_text(encoding="utf-8")
    assert len(text) < MOST_BYTES
    assert re.findall(r"(?:/(?:tmp|root|home|work|usr)/|site-packages|0x[0-9a-f]{6})", text) == []
