"""Dead units: channels that give nothing, always the same, or learn nothing.

Evci 2018 (arXiv 1806.06068) prunes units that neither learn nor make useful information. The formal
definitions are not known to us, so these three are ours. All are of inference mode, over the
examples that are shown, during or after training alike:

- zero: wherever the network reads the unit, it is 0 for every example and position;
- constant: everywhere it is read it is one number, which is not 0 throughout;
- never learning: no example's loss changes with what the unit's layers put out, so none moves their
  weights. A unit that is off for every example is so, and one that nobody listens to.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from dce_jax import channels as maps
from dce_jax.pruning.choose import Kept
from dce_jax.signals import reduction, sites
from dce_jax.signals.algebra import Formula
from dce_jax.signals.evaluate import value
from dce_jax.signals.sites import Places, Scene, Site
from dce_jax.types import Array, Path, PyTree, Rewards

_LEARNING = Formula("activations", "g", "l1", "none")
_SIGNAL = "dead units"


class Seen(NamedTuple):
    """What is known of units after some examples.

    Attributes:
      low: path of a gate -> float[C], smallest value of each unit.
      high: likewise the largest.
      slope: group -> float[C], largest mean over a batch of ``sum |dL/dy|`` of one example, over
        all outputs y of the layers that produce the channel.
    """

    low: dict[Path, Array]
    high: dict[Path, Array]
    slope: Rewards


class Dead(NamedTuple):
    """Which channels of a group are dead, and how; bool[C] on the host.

    Attributes:
      zero: never other than 0.
      constant: never other than one number, not 0 throughout.
      never_learning: no example has a gradient for them.
    """

    zero: npt.NDArray[np.bool_]
    constant: npt.NDArray[np.bool_]
    never_learning: npt.NDArray[np.bool_]

    @property
    def any(self) -> npt.NDArray[np.bool_]:
        """Dead in at least one way."""
        return self.zero | self.constant | self.never_learning


def report(
    scene: Scene, batches: Iterable[Mapping[str, Array]], *, tolerance: float = 1e-6
) -> dict[str, Dead]:
    """Finds the dead units of a network.

    Args:
      scene: the network, which gates every group (`networks.gate`); its batch is not read.
      batches: ``{"image": float[B, ...], "label": int[B]}`` each; one program per B.
      tolerance: what counts as nothing: of a unit's size and range, against its group's largest
        unit; of its gradient, against its group's largest one.

    Returns:
      Group -> its dead channels.

    Raises:
      ValueError: no batches, a negative tolerance, a group without a gate or without a layer that
        produces it.
    """
    if tolerance < 0:
        raise ValueError(f"tolerance is {tolerance}: it must not be negative")

    @jax.jit
    def of(params: PyTree, state: PyTree, batch: Mapping[str, Array]) -> Seen:
        return look(scene._replace(params=params, model_state=state, batch=batch))

    seen: Seen | None = None
    places: dict[Path, Places] = {}
    for batch in batches:
        places = places or _places(scene._replace(batch=batch))
        found = of(scene.params, scene.model_state, batch)
        seen = found if seen is None else merged(seen, found)
    if seen is None:
        raise ValueError("no examples to look at units on: give at least one batch")
    return judged(seen, places, maps.module_widths(scene.module), tolerance=tolerance)


def look(scene: Scene) -> Seen:
    """What a scene's batch tells; pure, so that it may run inside another program."""
    low, high = {}, {}

    def tap(site: Site, y: Array) -> Array:
        wide, axes = reduction.precise(y), tuple(range(y.ndim - 1))
        low[site.path], high[site.path] = jnp.min(wide, axis=axes), jnp.max(wide, axis=axes)
        return y

    sites.run(scene, sites.examples(scene, _SIGNAL)["image"], sites.UNITS, tap)
    return Seen(low, high, value(_LEARNING, scene))


def merged(one: Seen, two: Seen) -> Seen:
    """What two sets of batches tell together."""
    return Seen(
        jax.tree.map(jnp.minimum, one.low, two.low),
        jax.tree.map(jnp.maximum, one.high, two.high),
        jax.tree.map(jnp.maximum, one.slope, two.slope),
    )


def judged(
    seen: Seen, places: Mapping[Path, Places], widths: Mapping[str, int], *, tolerance: float
) -> dict[str, Dead]:
    """Who is dead, from what was seen.

    Args:
      seen: over all batches.
      places: path of a gate -> the groups that lie there.
      widths: group -> channels.
      tolerance: as for `report`.

    Raises:
      ValueError: units whose values or gradients are not finite.
    """
    _check_finite(seen)
    size = {group: np.zeros(width) for group, width in widths.items()}
    extent = {group: np.zeros(width) for group, width in widths.items()}
    for path, groups in places.items():
        low, high = np.asarray(seen.low[path]), np.asarray(seen.high[path])
        for group, (start, count) in groups.items():
            part = slice(start, start + count)
            largest = np.maximum(np.abs(low[part]), np.abs(high[part]))
            size[group] = np.maximum(size[group], largest)
            # A stream is read at many places: to be constant is to be so at each of them.
            extent[group] = np.maximum(extent[group], high[part] - low[part])
    found = {}
    for group in widths:
        limit, slope = tolerance * size[group].max(), np.asarray(seen.slope[group])
        zero = size[group] <= limit
        constant = ~zero & (extent[group] <= limit)
        found[group] = Dead(zero, constant, slope <= tolerance * slope.max())
    return found


def _check_finite(seen: Seen) -> None:
    # NaN and infinity would pass for the largest of a group, and hide or condemn all others.
    for name, tree in seen._asdict().items():
        for path, values in jax.tree_util.tree_leaves_with_path(tree):
            count = int(np.sum(~np.isfinite(np.asarray(values))))
            if count:
                raise ValueError(
                    f"{name} of {count} units at {jax.tree_util.keystr(path)} is not finite: a "
                    "network that overflows or diverged cannot be judged; go back to an earlier "
                    "checkpoint, or compute in float32"
                )


def survivors(dead: Mapping[str, Dead], *, least: int = 1) -> Kept:
    """Channels that stay where those that give nothing, or one number, go.

    With `pruning.fold` before they are cut, the network computes what it did, where folding is
    exact. Units that only never learn stay: what they give may be needed.

    Args:
      dead: of `report`.
      least: channels that a group keeps, be they all dead: the first ones.

    Returns:
      Group -> positions that stay, in order.

    Raises:
      ValueError: a floor below 1.
    """
    if least < 1:
        raise ValueError(f"least is {least}: a group keeps at least 1 channel")
    found = {}
    for group, each in dead.items():
        gone = each.zero | each.constant
        in_turn = np.argsort(gone, kind="stable")  # the living first, each kind as they stand
        stay = np.sort(in_turn[: max(least, int(np.sum(~gone)))])
        found[group] = stay.astype(np.int32)
    return found


def table(dead: Mapping[str, Dead]) -> str:
    """Dead units per group, as text for people."""
    heads = ("group", "width", "zero", "constant", "never learning", "dead")
    rows = [[group, len(d.zero), *map(np.sum, d[:3]), np.mean(d.any)] for group, d in dead.items()]
    total = [np.sum([row[i] for row in rows]) for i in range(1, 5)]
    gone = np.sum([each.any.sum() for each in dead.values()])
    rows.append(["all", *total, gone / total[0]])
    cells = [heads, *([*map(str, row[:-1]), f"{row[-1]:.1%}"] for row in rows)]
    wide = [max(len(line[i]) for line in cells) for i in range(len(heads))]
    return "\n".join(
        "  ".join([line[0].ljust(wide[0]), *map(str.rjust, line[1:], wide[1:])]) for line in cells
    )


def _places(scene: Scene) -> dict[Path, Places]:
    found = sites.checked(scene, sites.UNITS, _SIGNAL)
    return {path: site.places for path, site in found.items()}
