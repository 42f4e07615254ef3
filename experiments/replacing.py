"""What is left of a network as units go, cut out plainly or leaving their means behind.

Nothing is trained. Units go in the order of a score, over all layers together, the last one of
every group stays; of each removed unit the mean over training images is folded into its consumers,
or not (`dce_jax.pruning.folding`).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt

from dce_jax import channels as maps
from dce_jax import masks, signals
from dce_jax.pruning import folding, oracle
from dce_jax.pruning.folding import InputMeans, Route
from dce_jax.signals import named
from dce_jax.types import Array, PyTree
from experiments import removal
from experiments.correlation import host
from experiments.subject import Subject

Batches = Sequence[Mapping[str, Array]]

SCORES: dict[str, str] = {
    "removal score": "evci_removal",
    "mean replacement score": "evci_mean_replacement",
    "l1 norm": "weights.x.l1.l2",
}
"""Name of an order -> the signal that makes it; l2 norms per layer make layers comparable."""

MEASURED: dict[str, oracle.Replacement] = {
    "measured removal": "zero",
    "measured mean replacement": "mean",
}
"""Name of an order -> the penalty that makes it: the loss change when a unit alone goes."""

DRAWS = 3
"""Random orders."""


class Means(NamedTuple):
    """What folding needs, once for all removals.

    Attributes:
      inputs: of `folding.averages`.
      ways: of `folding.routes`.
    """

    inputs: InputMeans
    ways: tuple[Route, ...]


def orders(
    asked: Subject, batches: Batches, measured: Callable[[str, int, int], None] | None = None
) -> dict[str, removal.Order]:
    """Order of removal -> units, least worth first.

    Args:
      asked: the trained network.
      batches: training images that scores are read off.
      measured: penalties are measured, too, a forward pass of all images for each unit; called as
        ``measured(name, done, units)`` after every one.
    """
    points = {
        name: named.BY_NAME[signal].formula if signal in named.BY_NAME else signals.parse(signal)
        for name, signal in SCORES.items()
    }
    values = signals.averages(list(points.values()), asked.scene, batches)
    found = {name: removal.order(host(values[point])) for name, point in points.items()}
    if measured is not None:
        for name, replacement in MEASURED.items():
            tell = partial(measured, name)
            worth = oracle.penalties(asked.scene, batches, replacement=replacement, report=tell)
            found[name] = removal.order(worth)
    widths = maps.module_widths(asked.scene.module)
    for draw in range(DRAWS):
        random = np.random.default_rng(draw)
        found[f"random {draw}"] = removal.order({g: random.random(c) for g, c in widths.items()})
    return found


def means(asked: Subject, batches: Batches) -> Means:
    """Means of what every layer reads, over training images.

    Raises:
      CannotFoldError: a network that cannot fold, named by layer.
    """
    scene, images = asked.scene, [batch["image"] for batch in batches]
    ways = folding.routes(scene.module, scene.channels, images[0], maps.module_widths(scene.module))
    return Means(folding.averages(scene, images), ways)


def curve(
    asked: Subject,
    order: removal.Order,
    removed: Sequence[int],
    taken: Means | None,
    batches: Batches,
    report: Callable[[], None],
) -> list[dict[str, Any]]:
    """Loss and accuracy as more and more units go.

    Args:
      asked: the trained network.
      order: of removal.
      removed: how many are gone at each point.
      taken: of `means`; None: units are cut out plainly.
      batches: images that loss and accuracy are of.
      report: called after every point.

    Returns:
      Per point ``removed``, and ``loss`` and ``accuracy`` of ``plain`` and, where means were
      taken, of ``folded``.
    """
    widths = maps.module_widths(asked.scene.module)
    own = (asked.scene.params, asked.scene.model_state)
    fold = (
        None
        if taken is None
        else jax.jit(partial(folding.folded, *own, taken.inputs, ways=taken.ways))
    )
    found = []
    for count in removed:
        seen = masks.of(_kept(order[:count], widths), widths)
        row: dict[str, Any] = {"removed": count, "plain": _judged(asked, own, seen, batches)}
        if fold is not None:
            row["folded"] = _judged(asked, fold(seen), seen, batches)
        found.append(row)
        report()
    return found


def _judged(
    asked: Subject, trees: tuple[PyTree, PyTree], seen: masks.Masks, batches: Batches
) -> dict[str, float]:
    params, state = trees
    scene = asked.scene._replace(params=params, model_state=state)
    judged = oracle.judge(scene, batches)(seen)
    return {"loss": float(judged.loss_N.mean()), "accuracy": float(judged.right_N.mean())}


def _kept(gone: removal.Order, widths: Mapping[str, int]) -> dict[str, npt.NDArray[np.int64]]:
    return {
        group: np.setdiff1d(np.arange(width), [c for g, c in gone if g == group])
        for group, width in widths.items()
    }
