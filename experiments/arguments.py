"""What command lines share: types of arguments, mistakes in a line, words as results store them."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def list_of(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """An argparse type for ``A,B,C``: distinct values in the order given.

    Args:
      kind: makes one value of one word.
    """

    def parse(text: str) -> tuple[Any, ...]:
        try:
            return tuple(dict.fromkeys(kind(word) for word in text.split(",")))
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not a list such as 1,10") from error

    return parse


_PLACES = {
    "--workdir": "runs/{}",
    "--study": "runs/{}",
    "--data_dir": "DIR",
    "--json": "{}",
    "--plot": "{}",
    "--compact": "{}",
    "--decisions": "{}",
    "--frequencies": "{}",
}


def portable(words: Sequence[str]) -> list[str]:
    """A command line as results store it: without the directories of this machine.

    Args:
      words: options and their values, apart or joined by ``=``.
    """
    apart = [
        part for word in words for part in (word.split("=", 1) if word[:2] == "--" else [word])
    ]
    return [
        _PLACES[before].format(Path(word).absolute().name) if before in _PLACES else word
        for before, word in zip(["", *apart], apart, strict=False)
    ]


def status(work: Callable[[], object]) -> int:
    """Does a command's work; mistakes are told in a line.

    Args:
      work: all of it.

    Returns:
      The exit status: 0, or 2 where it met wrong input. A reader that has seen enough, as ``head``
      has, is no mistake.
    """
    try:
        work()
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer must not fail once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
