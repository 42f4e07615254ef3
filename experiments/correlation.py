"""Rank correlation of signals with what removing channels really costs."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from dce_jax.types import Array

Values = Mapping[str, npt.NDArray[np.float64]]
"""Channel group -> one number per channel."""


class Agreement(NamedTuple):
    """How well one ranking of channels agrees with another (Spearman's rank correlation).

    Attributes:
      per_layer: mean over the groups in which both rank anything; None where there is none.
      across: of all channels of all groups together; None where one ranks nothing.
      layers: group -> correlation, None where one of both is constant.
    """

    per_layer: float | None
    across: float | None
    layers: dict[str, float | None]


def agreement(one: Values, other: Values) -> Agreement:
    """Spearman's rank correlation, ties at their mean rank.

    Args:
      one: group -> float[C].
      other: of the same groups.

    Raises:
      ValueError: other groups, or other numbers of channels.
    """
    shapes = [{group: len(each) for group, each in values.items()} for values in (one, other)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"rankings of different channels: {shapes[0]} and {shapes[1]}")
    layers = {group: spearman(one[group], other[group]) for group in one}
    known = [each for each in layers.values() if each is not None]
    return Agreement(
        per_layer=float(np.mean(known)) if known else None,
        across=spearman(flat(one), flat({group: other[group] for group in one})),
        layers=layers,
    )


def spearman(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float | None:
    """Spearman's rank correlation of two rankings of N, or None where one of them is constant.

    Args:
      one: float[N].
      other: float[N].
    """
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(stats.spearmanr(one, other).statistic)


def host(values: Mapping[str, Array]) -> dict[str, npt.NDArray[np.float64]]:
    """What a signal says, on the host."""
    return {group: np.asarray(each, np.float64) for group, each in values.items()}


def flat(values: Values) -> npt.NDArray[np.float64]:
    """All channels of all groups, one group after another."""
    return np.concatenate([np.asarray(each, np.float64) for each in values.values()])
