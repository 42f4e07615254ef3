"""The blocks of residual networks and their channel groups: one stream per stage."""

from collections.abc import Iterator
from typing import NamedTuple

from flax.core import FrozenDict


class Place(NamedTuple):
    """Where a block stands and which groups it reads and writes.

    Attributes:
      name: of the block's module.
      before: group of the stream that it reads.
      inner: groups of the branch's convolutions but the last.
      after: group of the stream that it writes; equal to ``before`` but in a stage's first block.
      stride: of the block.
    """

    name: str
    before: str
    inner: tuple[str, ...]
    after: str
    stride: int


def places(depths: tuple[int, ...], *, bottleneck: bool, stem: str) -> Iterator[Place]:
    """The blocks of a residual network, in order; every stage but the first halves the image.

    Args:
      depths: blocks per stage.
      bottleneck: two inner groups per block, else one.
      stem: group that the first block reads.
    """
    before = stem
    for stage, depth in enumerate(depths):
        for block in range(depth):
            name, after = f"stage{stage}_block{block}", f"stage{stage}"
            inner = tuple(f"{name}_conv{i}" for i in range(2 if bottleneck else 1))
            yield Place(name, before, inner, after, 2 if stage and not block else 1)
            before = after


def group_widths(
    depths: tuple[int, ...],
    sizes: tuple[int, ...],
    *,
    bottleneck: bool = False,
    stem: int | None = None,
) -> FrozenDict[str, int]:
    """Channel groups of a residual network and their full widths, in the network's order.

    Args:
      depths: blocks per stage.
      sizes: channels of the inner convolutions per stage; a bottleneck's stream has four times as
        many.
      bottleneck: see `Layout`.
      stem: channels of the first convolution where they are a group of their own; None where it
        writes the first stage's stream.
    """
    widths = {} if stem is None else {"stem": stem}
    first = "stage0" if stem is None else "stem"
    for place in places(depths, bottleneck=bottleneck, stem=first):
        size = sizes[int(place.after.removeprefix("stage"))]
        widths.setdefault(place.after, 4 * size if bottleneck else size)
        widths |= dict.fromkeys(place.inner, size)
    return FrozenDict(widths)
