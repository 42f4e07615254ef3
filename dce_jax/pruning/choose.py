"""Which channels stay: greedy removal at a cost that is recomputed as neighbours shrink.

Everything here runs on the host in float64 and integers, so that one set of saliencies gives one
choice on any number of devices.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dce_jax.budget import check_group
from dce_jax.pruning.costs import Costs, savings, total
from dce_jax.types import Widths

Saliencies = Mapping[str, npt.ArrayLike]
"""Channel group -> float[C] of the channels that are there; may be negative."""

Kept = dict[str, npt.NDArray[np.int32]]
"""Channel group -> int32[K], sorted positions among the channels that are there."""


class Order(NamedTuple):
    """Which channel goes first: the one of the smallest worth.

    Worth is ``saliency - penalty * saving``, or ``saliency / saving``; a saving is what the
    network's cost falls by, at the widths that all groups have by then.

    Attributes:
      penalty: per unit of cost: the FLOPs regularisation of Molchanov et al. 2017, or the beta of
        Theis et al. 2018, who minimise ``L + beta C``; 0 looks at no cost.
      per_saving: the ranking by ``-dL/dC`` of Theis et al. 2018, which needs no beta.
    """

    penalty: float = 0.0
    per_saving: bool = False


class _Ranked(NamedTuple):
    """The channels of a group, least salient first, and what the first n of them are worth."""

    order_C: npt.NDArray[np.intp]
    running: npt.NDArray[np.float64]


def greedy(
    saliencies: Saliencies,
    costs: Costs,
    *,
    target: float,
    least: Widths,
    multiple_of: int = 1,
    order: Order | None = None,
) -> Kept:
    """Removes channel after channel, over all groups, until the network costs no more than asked.

    Within a group the least salient goes first, of equal ones the first. Where widths are to be
    multiples, as many go at once as the next multiple takes, at the mean of their saliencies and
    savings. The last to go may save more than was left to save: those that still fit come back
    then, the last that went before others, so that no group can take its next width and stay
    within the target. (Our own choice: Molchanov et al. and Theis et al. remove one by one.)

    Args:
      saliencies: group -> float[C], at the present widths, of every group.
      costs: of the network.
      target: cost to reach, in the unit of ``costs``.
      least: group -> channels that stay at least; a group that has no more loses none.
      multiple_of: every width that changes becomes a multiple of it.
      order: which channel goes first; None: the least salient of all.

    Raises:
      ValueError: a target below what ``least`` costs; a missing or unknown group; a saliency that
        is not finite.
    """
    order = order or Order()
    ranked = _ranked(saliencies, costs.groups)
    start = {group: len(each.order_C) for group, each in ranked.items()}
    check_target(costs, start, target=target, least=least, multiple_of=multiple_of)
    widths, cost = dict(start), total(costs, start)
    gone: list[tuple[str, int]] = []
    while cost > target:
        fewer = {g: width - _next(width, multiple_of, least[g]) for g, width in widths.items()}
        saved_G = savings(costs, widths, fewer)
        worth = [
            _worth(ranked[g], start[g] - widths[g], fewer[g], int(saved), order)
            for g, saved in zip(costs.groups, saved_G, strict=True)
        ]
        place = int(np.argmin(worth))
        group = costs.groups[place]
        widths[group] -= fewer[group]
        cost -= int(saved_G[place])
        gone.append((group, fewer[group]))
    return _kept(ranked, _given_back(costs, widths, gone, target))


def best(saliencies: Saliencies, widths: Widths) -> Kept:
    """The most salient channels of every group; of equal ones the last.

    Args:
      saliencies: group -> float[C].
      widths: group -> K, of every group.

    Raises:
      ValueError: a missing or unknown group, a K outside 1..C, a saliency that is not finite.
    """
    ranked = _ranked(saliencies, tuple(widths))
    for group, each in ranked.items():
        there = len(each.order_C)
        if not 1 <= widths[group] <= there:
            raise ValueError(
                f"{widths[group]} channels of group {group!r} cannot stay of the {there} that are "
                f"there: choose 1 to {there}"
            )
    return _kept(ranked, widths)


def check_target(
    costs: Costs, widths: Widths, *, target: float, least: Widths, multiple_of: int = 1
) -> None:
    """Refuses a target that cannot be met without going below the floor.

    Args:
      costs: of the network.
      widths: group -> channels that are there.
      target: as for `greedy`.
      least: as for `greedy`.
      multiple_of: as for `greedy`.

    Raises:
      ValueError: naming the target and what the narrowest network costs; a floor below 1.
    """
    for group, width in least.items():
        check_group(group, widths)
        if width < 1:
            raise ValueError(
                f"the floor of group {group!r} is {width}: at least one channel must stay"
            )
    narrowest = {g: _narrowest(w, multiple_of, least[g]) for g, w in widths.items()}
    if total(costs, narrowest) > target:
        raise ValueError(
            f"a target of {target:,.0f} is below the floor: with at least {dict(least)} channels "
            f"and multiple_of={multiple_of} the network still costs {total(costs, narrowest):,} "
            f"of {total(costs, widths):,}; raise the target, or lower the floor"
        )


def _ranked(saliencies: Saliencies, groups: tuple[str, ...]) -> dict[str, _Ranked]:
    for group in saliencies:
        check_group(group, groups)
    missing = [group for group in groups if group not in saliencies]
    if missing:
        raise ValueError(f"no saliency of groups {missing}: a signal must say what each is worth")
    found = {}
    for group in groups:
        values = np.asarray(saliencies[group], np.float64)
        if values.ndim != 1 or not np.all(np.isfinite(values)):
            raise ValueError(
                f"saliency of group {group!r} must be one finite number per channel, got "
                f"{values.tolist()}: lower the learning rate if training went astray"
            )
        order = np.argsort(values, kind="stable")
        found[group] = _Ranked(order, np.concatenate([[0.0], np.cumsum(values[order])]))
    return found


def _given_back(
    costs: Costs, widths: Widths, gone: list[tuple[str, int]], target: float
) -> dict[str, int]:
    """Widths with every removal undone that fits; within a group the last is undone first."""
    widths, stuck = dict(widths), set()
    for group, count in reversed(gone):
        wider = {**widths, group: widths[group] + count}
        if group not in stuck and total(costs, wider) <= target:
            widths = wider
        else:
            stuck.add(group)  # what went before stood on what does not come back
    return widths


def _next(width: int, multiple_of: int, least: int) -> int:
    """The next smaller width that is allowed, or the same where there is none."""
    smaller = (width - 1) // multiple_of * multiple_of
    return smaller if smaller >= least else width


def _narrowest(width: int, multiple_of: int, least: int) -> int:
    rounded = -(-least // multiple_of) * multiple_of
    return min(width, rounded)


def _worth(ranked: _Ranked, gone: int, count: int, saving: int, order: Order) -> float:
    if count == 0:
        return np.inf
    saliency = (ranked.running[gone + count] - ranked.running[gone]) / count
    if order.per_saving:
        return float(saliency * count / saving)
    return float(saliency - order.penalty * saving / count)


def _kept(ranked: Mapping[str, _Ranked], widths: Widths) -> Kept:
    return {
        group: np.sort(each.order_C[len(each.order_C) - widths[group] :]).astype(np.int32)
        for group, each in ranked.items()
    }
