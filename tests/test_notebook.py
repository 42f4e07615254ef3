"""The quickstart notebook runs from top to bottom, at small size."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "quickstart.ipynb"


def test_quickstart_runs_and_shows_its_table_and_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("DCE_NOTEBOOK_DIR", str(tmp_path))
    monkeypatch.setenv("DCE_NOTEBOOK_EPOCHS", "2")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": NOTEBOOK.parent}}
    )
    client.execute()
    shown = [
        kind
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        for kind in output.get("data", {})
    ]
    assert shown.count("image/png") >= 2
    assert "text/markdown" in shown
    assert (tmp_path / "dce" / "compact" / "structure.json").is_file()
