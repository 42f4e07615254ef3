"""Learned budgets: saliencies of all layers on one scale, and the budget that meets a target.

Everything here runs on the host in float64, so that one set of saliencies gives one budget on any
number of devices.
"""

from collections.abc import Callable, Collection, Mapping

import numpy as np

from dce_jax.budget import Budget, check_group, from_wishes
from dce_jax.types import Widths

Saliencies = Mapping[str, np.ndarray]
"""Channel group -> float[C], non-negative."""

CostFn = Callable[[Widths], int]
"""Group widths -> cost of the network: MACs of one forward pass, or parameters."""


def as_they_are(saliencies: Saliencies) -> dict[str, np.ndarray]:
    """Leaves every group on its own scale, for saliencies that are comparable as measured."""
    return {group: np.asarray(values, np.float64) for group, values in saliencies.items()}


def by_max(saliencies: Saliencies) -> dict[str, np.ndarray]:
    """Divides each group by its largest value, an all-zero group stays zero."""
    return {group: _divided(v, np.max(v)) for group, v in as_they_are(saliencies).items()}


def by_l2(saliencies: Saliencies) -> dict[str, np.ndarray]:
    """Divides each group by its Euclidean norm (Molchanov et al. 2017, section 2.2)."""
    return {group: _divided(v, np.linalg.norm(v)) for group, v in as_they_are(saliencies).items()}


def by_mean(saliencies: Saliencies) -> dict[str, np.ndarray]:
    """Divides each group by its mean: channels compare with their own layer's average."""
    return {group: _divided(v, np.mean(v)) for group, v in as_they_are(saliencies).items()}


def per_cost(saliencies: Saliencies, widths: Widths, cost_of: CostFn) -> dict[str, np.ndarray]:
    """Divides each group by what one of its channels costs at full width.

    Args:
      saliencies: group -> float[C].
      widths: group -> C.
      cost_of: of the network.
    """
    full = cost_of(widths)
    return {
        group: _divided(values, full - cost_of({**widths, group: max(1, widths[group] - 1)}))
        for group, values in as_they_are(saliencies).items()
    }


def budget(
    widths: Widths,
    saliencies: Saliencies,
    fraction: float,
    cost_of: CostFn,
    *,
    multiple_of: int = 1,
    min_channels: int = 1,
    floor: float = 0.0,
    whole: Collection[str] = (),
) -> Budget:
    """The budget of the best-ranked channels of all layers that costs a share of the full network.

    All channels are ranked together, equal ones in the network's order. The longest head of the
    ranking is taken whose budget, each group rounded as `budget.rounded` does, stays within the
    target: one channel more of one group, or one rung of ``multiple_of``, would exceed it.

    Args:
      widths: group -> C.
      saliencies: group -> float[C] on one scale, non-negative; of every group that is not whole.
      fraction: target share of the full network's cost, in (0, 1].
      cost_of: of the network, not falling in any width.
      multiple_of: K is a multiple of it.
      min_channels: no group gets fewer, nor more than it has.
      floor: no group gets less than this share of its channels, rounded up.
      whole: groups held at full width.

    Returns:
      The budget.

    Raises:
      ValueError: a missing or unknown group, saliencies of another shape, negative or not finite,
        a fraction outside (0, 1], or one below what the narrowest budget costs; a floor outside
        [0, 1].
    """
    if not 0.0 <= floor <= 1.0:
        raise ValueError(f"floor is {floor}: it is a share of every group's channels, 0 to 1")
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"target {fraction} is outside (0, 1]: it is a share of the full cost")
    ranked = _ranked_groups(widths, saliencies, whole)
    # A share computed from integers may, multiplied back, fall just short of what it came from.
    target = fraction * cost_of(dict(widths)) * (1 + 1e-12)

    def at(taken: int) -> Budget:
        counts = np.bincount(ranked[:taken], minlength=len(widths))
        return from_wishes(
            widths,
            dict(zip(widths, counts.tolist(), strict=True)),
            multiple_of=multiple_of,
            min_channels=min_channels,
            floor=floor,
            whole=whole,
        )

    narrowest = cost_of(at(0).compact)
    if narrowest > target:
        raise ValueError(
            f"a target of {fraction} ({target:,.0f} of {cost_of(dict(widths)):,}) cannot be met: "
            f"the narrowest budget with multiple_of={multiple_of}, min_channels={min_channels}, "
            f"floor={floor} costs {narrowest:,}; raise the target or lower those"
        )
    low, high = 0, len(ranked)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost_of(at(middle).compact) <= target else (low, middle - 1)
    return at(low)


def _ranked_groups(widths: Widths, saliencies: Saliencies, whole: Collection[str]) -> np.ndarray:
    """int[channels]: index of the group of each ranked channel, the best first."""
    for group in (*saliencies, *whole):
        check_group(group, widths)
    values, groups = [], []
    for index, (group, width) in enumerate(widths.items()):
        if group in whole:
            continue
        if group not in saliencies:
            raise ValueError(f"no saliency of group {group!r}: give one, or hold the group whole")
        given = np.asarray(saliencies[group], np.float64)
        if given.shape != (width,) or not np.all(np.isfinite(given)) or np.any(given < 0):
            raise ValueError(
                f"saliency of group {group!r} must be {width} finite non-negative numbers, got "
                f"{given.shape} from {given.min(initial=0):g} to {given.max(initial=0):g}"
            )
        values.append(given)
        groups.append(np.full(width, index))
    if not values:
        raise ValueError("every group is held whole: there is nothing to allocate")
    order = np.argsort(-np.concatenate(values), kind="stable")
    return np.concatenate(groups)[order]


def _divided(values: np.ndarray, by: float | np.floating) -> np.ndarray:
    return values / (by if by > 0 else 1.0)
