"""What a compiled program sends between devices, read off its HLO text."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)

_LINE = re.compile(
    r"^\s*(?:ROOT )?%?(?P<name>\S+) = (?P<type>.*?) "
    rf"(?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\("
)
_ELEMENT = re.compile(
    r" = \S+ get-tuple-element\(%?(?P<name>[^\s),]+)\), index=(?P<index>\d+)"
    r".*op_name=\"(?P<op>[^\"]*)\""
)
_OP = re.compile(r"op_name=\"([^\"]*)\"")
_ARRAY = re.compile(r"\b(?P<dtype>[a-z]+\d*)\[(?P<shape>[\d,]*)\]")
_BITS = re.compile(r"\d+")


class Collective(NamedTuple):
    """One array that crosses devices; XLA may combine several into one operation.

    Attributes:
      kind: of the operation, as HLO names it.
      dtype: as HLO names it: ``f32``, ``bf16``, ``s32``.
      shape: of the result on one device.
      bytes: of the result on one device.
      op: the JAX operation it comes from, ``jit(f)/transpose(jvp(Net))/conv/...``; '' if unknown.
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    op: str


def collectives(text: str) -> list[Collective]:
    """Every array that a program sends between devices.

    Args:
      text: optimised HLO, as ``compiled.as_text()`` gives it.

    Raises:
      ValueError: an element type whose size is not known.
    """
    lines = text.splitlines()
    origins = {
        (found["name"], int(found["index"])): found["op"]
        for found in map(_ELEMENT.search, lines)
        if found
    }
    return [each for line in lines for each in _of_line(line, origins)]


def is_gradient(one: Collective) -> bool:
    """Whether an array comes from a backward pass."""
    return "transpose(" in one.op


def source(one: Collective) -> str:
    """Where an array comes from: backward, forward, gather (of a sharded state) or other."""
    if is_gradient(one):
        return "backward"
    # Newer partitioners name what makes an argument whole after the argument, not an operation.
    argument = one.kind == "all-gather" and not one.op.startswith("jit(")
    if argument or "sharding_constraint" in one.op or one.op.endswith("/gather"):
        return "gather"
    return "forward" if "jvp(" in one.op else "other"


def _of_line(line: str, origins: dict[tuple[str, int], str]) -> Iterator[Collective]:
    found = _LINE.match(line)
    if not found:
        return
    arrays = list(_ARRAY.finditer(found["type"]))
    if found["start"] and found["kind"] != "all-reduce":
        arrays = arrays[len(arrays) // 2 :]  # operands come before results
    own = _OP.search(line)
    for index, array in enumerate(arrays):
        shape = tuple(int(size) for size in array["shape"].split(",") if size)
        yield Collective(
            found["kind"],
            array["dtype"],
            shape,
            math.prod(shape) * _bytes(array["dtype"]),
            origins.get((found["name"], index), own[1] if own else ""),
        )


def _bytes(dtype: str) -> int:
    if dtype == "pred":
        return 1
    bits = _BITS.search(dtype)
    if bits is None:
        raise ValueError(f"HLO element type {dtype!r} has no size that is known here: add it")
    return -(-int(bits[0]) // 8)
