"""JSON lines and JSON files of a workdir: whole or not at all, cut back on resume."""

import json
import os
from pathlib import Path
from typing import Any


def append(path: Path, line: dict[str, Any]) -> None:
    """Adds a line and hands it to the disk."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def cut(path: Path, step: int) -> None:
    """Drops the lines of steps after ``step``, and a half-written last line."""
    if not path.exists():
        return
    kept = []
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if line["step"] > step:
            break
        kept.append(text)
    write_text(path, "".join(text + "\n" for text in kept))


def write(path: Path, value: Any) -> None:
    """Writes a JSON file that appears whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file that appears whole or not at all."""
    partial = path.with_name(path.name + ".part")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
