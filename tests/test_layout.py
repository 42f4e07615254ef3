"""The table of imports in docs/layout.md is what the code does."""

import ast
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.one_set

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"\| `(\w+)(?:\.py|/)` \|.*\| ([^|]*) \|")


def imports(unit):
    """Other files and folders of the package that a file or folder imports."""
    path = ROOT / "dce_jax" / unit
    files = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dce_jax":
                _, *inside = node.module.split(".")
                found |= set(inside[:1]) or {alias.name for alias in node.names}
    return found - {unit, "types"}


def test_every_file_imports_what_the_table_says_and_only_from_above():
    lines = (ROOT / "docs/layout.md").read_text().splitlines()
    table = {found[1]: found[2] for found in map(ROW.fullmatch, lines) if found}
    package = ROOT / "dce_jax"
    units = {path.stem for path in package.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert set(table) == units - {"__init__", "__pycache__"}
    above = set()
    for unit, told in table.items():
        assert imports(unit) == set(told.replace("-", "").replace(",", " ").split()), unit
        assert imports(unit) <= above, unit
        above.add(unit)
