"""Files that a long computation will write at its end, checked before it begins."""

from pathlib import Path


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
