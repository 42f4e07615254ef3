"""Generated blocks in a Markdown document: the markers say what each block is made of.

An opening marker `<!-- table:NAME PATH ... -->` and a closing one `<!-- /table:NAME -->` stand on
lines of their own; what lies between them is replaced. Markers inside a fenced code block are text.
"""

import os
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

OPENING = re.compile(r"<!-- table:(\S+)(.*)-->\s*")


def _resolve(words: str, base: Path, name: str) -> list[Path]:
    paths = [base / word for word in shlex.split(words)]
    if not paths:
        raise ValueError(
            f"marker {name!r} names no files: write <!-- table:{name} PATH ... -->, with paths "
            "relative to the document"
        )
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(
                f"marker {name!r} names {path}, which does not exist: correct the marker, or "
                "restore the files"
            )
    return paths


def _closing(lines: Sequence[str], start: int, name: str) -> int:
    """Index of the line that closes block `name`, which opens on line `start`."""
    for i in range(start + 1, len(lines)):
        if lines[i].strip() == f"<!-- /table:{name} -->":
            return i
        if OPENING.fullmatch(lines[i]):
            break
    raise ValueError(
        f"marker {name!r} on line {start + 1} is not closed: add <!-- /table:{name} --> on a line "
        "of its own below it"
    )


def _relative(paths: Sequence[Path], base: Path) -> str:
    """Paths as words of a marker in a document in `base`."""
    words = [Path(os.path.relpath(path, base)).as_posix() for path in paths]
    return " " + " ".join(map(shlex.quote, words)) + " "


def rewrite(
    text: str,
    make: Callable[[Sequence[Path]], str],
    *,
    base: Path,
    only: str | None = None,
    paths: Sequence[Path] = (),
) -> str:
    """A document with its generated blocks made anew.

    Args:
      text: the document.
      make: files and directories -> the block's Markdown.
      base: directory of the document; the markers' paths are relative to it.
      only: name of the one block to make; None makes all.
      paths: what the markers name from now on; empty leaves them as they are.

    Returns:
      The document; everything outside the blocks is unchanged.

    Raises:
      FileNotFoundError: a marker names a path that does not exist.
      ValueError: a marker without files or without an end, no such block, or a name used twice.
    """
    lines, made, names, fenced, i = text.split("\n"), [], [], False, 0
    while i < len(lines):
        made.append(lines[i])
        fenced ^= lines[i].lstrip().startswith("```")
        opening = None if fenced else OPENING.fullmatch(lines[i])
        if opening:
            name, words = opening.groups()
            names.append(name)
            end = _closing(lines, i, name)
            if only in (None, name):
                words = _relative(paths, base) if paths else words
                block = make(_resolve(words, base, name))
                made[-1:] = [f"<!-- table:{name}{words}-->", "", block, "", lines[end]]
            else:
                made.extend(lines[i + 1 : end + 1])
            i = end
        i += 1
    _check_names(names, only)
    return "\n".join(made)


def _check_names(names: Sequence[str], only: str | None) -> None:
    if not names or (only is not None and only not in names):
        raise ValueError(
            f"the document has no table {only or ''!r}; its tables: {', '.join(names) or 'none'}. "
            "Add <!-- table:NAME PATH ... --> and <!-- /table:NAME --> on lines of their own"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"the document uses a table's name twice ({', '.join(names)}): rename one")
