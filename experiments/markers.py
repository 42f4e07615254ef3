"""Generated blocks in a Markdown document: the markers say what each block is made of.

An opening marker `<!-- KIND:NAME PATH ... -->` and a closing one `<!-- /KIND:NAME -->` stand on
lines of their own; what lies between them is replaced. The kind says what is made of the paths;
comments of other kinds, and markers inside a fenced code block, are text.
"""

import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

Maker: TypeAlias = Callable[[Sequence[Path]], str]
"""Files and directories -> a block's Markdown."""


def _opening(kinds: Iterable[str]) -> re.Pattern[str]:
    return re.compile(rf"<!-- ((?:{'|'.join(map(re.escape, kinds))}):\S+)(.*)-->\s*")


def _resolve(words: str, base: Path, marker: str) -> list[Path]:
    paths = [base / word for word in shlex.split(words)]
    if not paths:
        raise ValueError(
            f"marker {marker!r} names no files: write <!-- {marker} PATH ... -->, with paths "
            "relative to the document"
        )
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(
                f"marker {marker!r} names {path}, which does not exist: correct the marker, or "
                "restore the files"
            )
    return paths


def _closing(lines: Sequence[str], start: int, marker: str, opening: re.Pattern[str]) -> int:
    """Index of the line that closes the block of `marker`, which opens on line `start`."""
    for i in range(start + 1, len(lines)):
        if lines[i].strip() == f"<!-- /{marker} -->":
            return i
        if opening.fullmatch(lines[i]):
            break
    raise ValueError(
        f"marker {marker!r} on line {start + 1} is not closed: add <!-- /{marker} --> on a line "
        "of its own below it"
    )


def _relative(paths: Sequence[Path], base: Path) -> str:
    """Paths as words of a marker in a document in `base`."""
    words = [Path(os.path.relpath(path, base)).as_posix() for path in paths]
    return " " + " ".join(map(shlex.quote, words)) + " "


def rewrite(
    text: str,
    makers: Mapping[str, Maker],
    *,
    base: Path,
    only: str | None = None,
    paths: Sequence[Path] = (),
) -> str:
    """A document with its generated blocks made anew.

    Args:
      text: the document.
      makers: kind of a block -> what makes it.
      base: directory of the document; the markers' paths are relative to it.
      only: name of the one block to make, of every kind that has it; None makes all.
      paths: what the markers name from now on; empty leaves them as they are.

    Returns:
      The document; everything outside the blocks is unchanged.

    Raises:
      FileNotFoundError: a marker names a path that does not exist.
      ValueError: a marker without files or without an end, no such block, or a name used twice.
    """
    opening = _opening(makers)
    lines, made, found, fenced, i = text.split("\n"), [], [], False, 0
    while i < len(lines):
        made.append(lines[i])
        fenced ^= lines[i].lstrip().startswith("```")
        match = None if fenced else opening.fullmatch(lines[i])
        if match:
            marker, words = match.groups()
            kind, _, name = marker.partition(":")
            found.append(marker)
            end = _closing(lines, i, marker, opening)
            if only in (None, name):
                words = _relative(paths, base) if paths else words
                block = makers[kind](_resolve(words, base, marker))
                made[-1:] = [f"<!-- {marker}{words}-->", "", block, "", lines[end]]
            else:
                made.extend(lines[i + 1 : end + 1])
            i = end
        i += 1
    _check_markers(found, only)
    return "\n".join(made)


def _check_markers(found: Sequence[str], only: str | None) -> None:
    names = dict.fromkeys(marker.partition(":")[2] for marker in found)
    if not names or (only is not None and only not in names):
        raise ValueError(
            f"the document has no table {only or ''!r}; its tables: {', '.join(names) or 'none'}. "
            "Add <!-- table:NAME PATH ... --> and <!-- /table:NAME --> on lines of their own"
        )
    if len(set(found)) < len(found):
        raise ValueError(f"the document uses a marker twice ({', '.join(found)}): rename one")
