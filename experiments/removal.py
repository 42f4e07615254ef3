"""How many channels a ranking lets go before accuracy falls, without any training."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dce_jax.pruning.oracle import Judge
from experiments.correlation import Values

Order = tuple[tuple[str, int], ...]
"""(channel group, channel), the first to go first."""


class Curve(NamedTuple):
    """What is left of the accuracy as channels go.

    Attributes:
      removed: how many channels were gone, from 0.
      accuracy: share classified rightly by then.
    """

    removed: list[int]
    accuracy: list[float]


def order(values: Values) -> Order:
    """Channels by what they are worth, least first; the last one of every group stays.

    Of equally salient channels the first goes first.

    Args:
      values: group -> float[C], finite.
    """
    left = {group: len(each) for group, each in values.items()}
    channels = [(group, i) for group, each in values.items() for i in range(len(each))]
    worth = np.concatenate([np.asarray(each, np.float64) for each in values.values()])
    found = []
    for place in np.argsort(worth, kind="stable"):
        group, channel = channels[place]
        if left[group] > 1:
            left[group] -= 1
            found.append((group, channel))
    return tuple(found)


def walk(
    judge: Judge,
    widths: Mapping[str, int],
    wanted: Order,
    *,
    stride: int,
    until: float,
    report: Callable[[int], None] | None = None,
) -> Curve:
    """Accuracy as the first channels of an order go, a few at a time.

    Args:
      judge: of the network (`dce_jax.pruning.judge`).
      widths: group -> channels.
      wanted: the order.
      stride: channels between two looks.
      until: accuracy lost, in [0, 1], after which nobody looks further.
      report: called with the number of channels that are gone, after every look.

    Raises:
      ValueError: a stride below 1.
    """
    if stride < 1:
        raise ValueError(f"stride is {stride}: look at least at every channel, so choose 1 or more")
    masks = {group: np.ones(width, np.float32) for group, width in widths.items()}
    curve = Curve([0], [_accuracy(judge, masks)])
    for gone in range(stride, len(wanted) + 1, stride):
        for group, channel in wanted[gone - stride : gone]:
            masks[group] = np.where(np.arange(len(masks[group])) == channel, 0.0, masks[group])
        curve.removed.append(gone)
        curve.accuracy.append(_accuracy(judge, masks))
        if report is not None:
            report(gone)
        if curve.accuracy[0] - curve.accuracy[-1] > until:
            break
    return curve


def endured(curve: Curve, loss: float) -> int:
    """Channels that can go before accuracy has ever fallen by more than ``loss``.

    Args:
      curve: of `walk`.
      loss: of accuracy, in [0, 1].
    """
    held = 0
    for removed, accuracy in zip(*curve, strict=True):
        if curve.accuracy[0] - accuracy > loss:
            break
        held = removed
    return held


def _accuracy(judge: Judge, masks: Mapping[str, npt.NDArray[np.float32]]) -> float:
    return float(np.mean(judge(dict(masks)).right_N))
