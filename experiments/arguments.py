"""Types of command-line arguments."""

import argparse
from collections.abc import Callable
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
