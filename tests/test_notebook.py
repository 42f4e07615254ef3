"""The quickstart notebook runs from top to bottom, at small size."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import nbformat
from nbclient import NotebookClient

from experiments import bench_options, benchmark, widths

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "quickstart.ipynb"


def test_quickstart_runs_and_shows_its_table_and_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("DCE_NOTEBOOK_DIR", str(tmp_path))
    monkeypatch.setenv("DCE_NOTEBOOK_EPOCHS", "2")
    monkeypatch.setenv("XLA_FLAGS", "")  # it trains long enough for optimised code to pay
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook, timeout=1200, resources={"metadata": {"path": NOTEBOOK.parent}}
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
    said = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])
    )
    assert "computes bfloat16 in multiples of" in said
    if jax.default_backend() == "cpu":
        assert "no TPU or GPU here: nothing is timed" in said


def test_what_the_notebook_times_on_an_accelerator_are_commands_that_exist(monkeypatch):
    """The cells that a CPU skips, run with the measuring itself replaced."""
    asked = {}
    for module in (benchmark, widths):
        monkeypatch.setattr(module, "main", partial(_parsed, module, asked))
    cells = [cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells[-2:]]
    names = {
        "workdir": Path("there"),
        "jax": SimpleNamespace(devices=lambda: [SimpleNamespace(platform="tpu", device_kind="v5")]),
        "Image": lambda path, **_: asked.update(picture=path),
    }
    for source in cells:
        exec(source, names)
    assert asked["benchmark"].batch == 256
    assert min(asked["widths"].widths) == 64
    assert asked["picture"] == Path(asked["benchmark"].json).with_suffix(".png")


def _parsed(module, asked, words):
    parser = bench_options.parser() if module is benchmark else module._parser()
    arguments = parser.parse_args(words)
    asked[module.__name__.rpartition(".")[2]] = arguments
    return 0
