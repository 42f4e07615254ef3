"""Budgets: how many of a group's channels execute. Plain Python integers, frozen and hashable."""

import difflib
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from operator import index


@dataclass(frozen=True)
class Budget:
    """Widths and budgets of all channel groups.

    Attributes:
      entries: ``(group, C, K)`` per group, in the network's order; ``1 <= K <= C``.
    """

    entries: tuple[tuple[str, int, int], ...]

    def __post_init__(self) -> None:
        """Refuses an empty budget, repeated groups, and any K outside 1..C or no integer."""
        if not self.entries:
            raise ValueError("a budget needs at least one channel group, got none")
        try:
            plain = tuple((g, int(index(c)), int(index(k))) for g, c, k in self.entries)
        except TypeError as error:
            raise ValueError(f"widths of a budget must be integers: {self.entries}") from error
        object.__setattr__(self, "entries", plain)
        names = [group for group, _, _ in self.entries]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"channel groups named twice in a budget: {repeated}")
        for group, width, chosen in self.entries:
            if not 1 <= chosen <= width:
                raise ValueError(
                    f"budget {chosen} of group {group!r} is outside 1..{width}: at least one "
                    f"channel must execute and the group has {width}; choose K in that range"
                )

    @property
    def full(self) -> dict[str, int]:
        """Group -> C, the width that exists."""
        return {group: width for group, width, _ in self.entries}

    @property
    def compact(self) -> dict[str, int]:
        """Group -> K, the width that executes."""
        return {group: chosen for group, _, chosen in self.entries}

    @property
    def contested(self) -> tuple[str, ...]:
        """Groups with K < C, the only ones that need a selection."""
        return tuple(group for group, width, chosen in self.entries if chosen < width)


def full(widths: Mapping[str, int]) -> Budget:
    """The budget that executes every channel of ``widths``."""
    return Budget(tuple((group, width, width) for group, width in widths.items()))


def from_widths(
    widths: Mapping[str, int], chosen: Mapping[str, int], *, allow_missing: bool = False
) -> Budget:
    """A budget from explicit widths.

    Args:
      widths: group -> C.
      chosen: group -> K.
      allow_missing: groups absent from ``chosen`` keep their full width instead of being refused.

    Raises:
      ValueError: unknown or missing group, or K outside 1..C.
    """
    for group in chosen:
        check_group(group, widths)
    missing = [group for group in widths if group not in chosen]
    if missing and not allow_missing:
        raise ValueError(
            f"no width given for groups {missing}: name every group of {sorted(widths)}, "
            "or pass allow_missing=True to keep them whole"
        )
    return Budget(
        tuple((group, width, chosen.get(group, width)) for group, width in widths.items())
    )


def from_fraction(
    widths: Mapping[str, int],
    keep: float,
    *,
    multiple_of: int = 1,
    min_channels: int = 1,
    whole: Collection[str] = (),
) -> Budget:
    """A budget that keeps the same fraction of every group.

    K is ``keep * C`` rounded to the nearest multiple of ``multiple_of`` (halves up), raised to
    the smallest allowed width and cut at the largest; ``keep = 1`` is always the full width.

    Args:
      widths: group -> C.
      keep: fraction in (0, 1].
      multiple_of: K is a multiple of it (hardware tiles: 8 on GPU, 8 or 128 on TPU).
      min_channels: no group gets fewer, nor more than it has.
      whole: groups held at full width.

    Raises:
      ValueError: ``keep`` outside (0, 1], or a rounding that fits nowhere.
    """
    if not 0.0 < keep <= 1.0:
        raise ValueError(f"keep is {keep}: the fraction of channels must be above 0 and at most 1")
    for group in whole:
        check_group(group, widths)
    wanted = {group: keep * width for group, width in widths.items()}
    return from_wishes(
        widths, wanted, multiple_of=multiple_of, min_channels=min_channels, whole=whole
    )


def from_wishes(
    widths: Mapping[str, int],
    wanted: Mapping[str, float],
    *,
    multiple_of: int = 1,
    min_channels: int = 1,
    floor: float = 0.0,
    whole: Collection[str] = (),
) -> Budget:
    """A budget of the allowed widths that are nearest to wished ones (`rounded`).

    Args:
      widths: group -> C.
      wanted: group -> channels wished for, in [0, C]; ignored for whole groups.
      multiple_of: K is a multiple of it.
      min_channels: no group gets fewer, nor more than it has.
      floor: no group gets less than this share of its channels, rounded up.
      whole: groups held at full width.

    Raises:
      ValueError: a rounding that fits nowhere.
    """

    def width_of(group: str, width: int) -> int:
        if group in whole:
            return width
        # 0.07 * 100 is a little above 7 in floating point.
        least = max(min_channels, math.ceil(floor * width - 1e-9)) if floor else min_channels
        return rounded(group, width, wanted[group], multiple_of=multiple_of, min_channels=least)

    return Budget(tuple((group, width, width_of(group, width)) for group, width in widths.items()))


def from_macs(
    widths: Mapping[str, int],
    fraction: float,
    macs_of: Callable[[Mapping[str, int]], int],
    *,
    multiple_of: int = 1,
    min_channels: int = 1,
    whole: Collection[str] = (),
) -> Budget:
    """The largest uniform fraction whose MACs do not exceed a share of the full network's.

    Args:
      widths: group -> C.
      fraction: target share of the full network's MACs, in (0, 1].
      macs_of: group widths -> MACs of one forward pass of one example.
      multiple_of: as in `from_fraction`.
      min_channels: as in `from_fraction`.
      whole: as in `from_fraction`.

    Raises:
      ValueError: fraction outside (0, 1], or below what the narrowest budget costs.
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"MACs target {fraction} is outside (0, 1]: it is a share of dense MACs")
    dense = macs_of(dict(widths))
    # A share computed from integers may, multiplied back, fall just short of what it came from.
    target = fraction * dense * (1 + 1e-12)

    def at(keep: float) -> Budget:
        return from_fraction(
            widths, keep, multiple_of=multiple_of, min_channels=min_channels, whole=whole
        )

    keeps = _thresholds(widths.values(), multiple_of)
    low, high = 0, len(keeps) - 1
    if macs_of(at(keeps[0]).compact) > target:
        raise ValueError(
            f"a MACs target of {fraction} ({target:,.0f} of {dense:,}) cannot be met: the "
            f"narrowest uniform budget with multiple_of={multiple_of}, "
            f"min_channels={min_channels} costs {macs_of(at(keeps[0]).compact):,}; "
            "raise the target or lower those"
        )
    while low < high:
        middle = (low + high + 1) // 2
        if macs_of(at(keeps[middle]).compact) <= target:
            low = middle
        else:
            high = middle - 1
    return at(keeps[low])


def rounded(
    group: str, width: int, wanted: float, *, multiple_of: int = 1, min_channels: int = 1
) -> int:
    """The allowed number of channels that is nearest to a wish.

    Args:
      group: for messages.
      width: C.
      wanted: channels wished for, in [0, C]; C itself is always allowed.
      multiple_of: K is a multiple of it; halves go up.
      min_channels: smallest K, or C where that is smaller.

    Raises:
      ValueError: no number is allowed, or a limit below 1.
    """
    if multiple_of < 1 or min_channels < 1:
        raise ValueError(
            f"multiple_of is {multiple_of} and min_channels is {min_channels}: both must be >= 1"
        )
    if wanted == width:
        return width
    if multiple_of > width:
        raise ValueError(
            f"multiple_of {multiple_of} fits nowhere in group {group!r}, which has {width} "
            f"channels; lower it to at most {width}, or hold the group at full width"
        )
    smallest = math.ceil(min(min_channels, width) / multiple_of) * multiple_of
    largest = width // multiple_of * multiple_of
    if smallest > largest:
        raise ValueError(
            f"group {group!r} has {width} channels: no multiple of {multiple_of} is both at least "
            f"min_channels={min_channels} and at most {width}; lower one of the two"
        )
    nearest = math.floor(wanted / multiple_of + 0.5) * multiple_of
    return min(max(nearest, smallest), largest)


def check_group(group: str, known: Iterable[str]) -> None:
    """Refuses a group that does not exist, with the nearest name that does.

    Raises:
      ValueError: ``group`` is not in ``known``.
    """
    names = sorted(known)
    if group not in names:
        near = difflib.get_close_matches(group, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"unknown channel group {group!r}{hint} The groups are {names}")


def _thresholds(widths: Iterable[int], multiple_of: int) -> list[float]:
    # Every fraction at which some group's rounding steps up: a uniform budget changes nowhere else.
    steps = {1.0}
    for width in set(widths):
        for rung in range(1, width // multiple_of + 1):
            keep = (rung - 0.5) * multiple_of / width
            steps.update(k for k in (keep, math.nextafter(keep, 2.0)) if 0.0 < k < 1.0)
    return sorted(steps)
