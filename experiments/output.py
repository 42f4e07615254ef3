"""Files that a long computation writes at its end, checked before it begins."""

import json
from pathlib import Path
from typing import Any


def check_writable(path: Path) -> None:
    """Makes the directory of a file to be written and refuses a path that cannot be one.

    Args:
      path: the file; one that exists keeps its content.

    Raises:
      OSError: a directory, no permission, or a parent that is a file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    existed = path.exists()
    with path.open("ab"):
        pass
    if not existed:
        path.unlink()


def write_json(path: Path, value: Any) -> None:
    """Writes what was computed; call it when everything has been printed.

    Raises:
      OSError: a disk that is full, or a file that cannot be written, by its name.
    """
    try:
        path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise OSError(
            f"{path} could not be written ({error.strerror or error}), the figures are printed "
            "above: make room there, or give --json another place"
        ) from error
