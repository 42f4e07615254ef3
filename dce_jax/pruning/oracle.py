"""What a channel is really worth: the loss without it, measured channel by channel.

Two penalties of Evci 2018 (arXiv 1806.06068): a unit's output becomes zero (removal), or its own
mean (mean replacement). Which channels are gone is data, so one compiled program serves all of
them; each costs a forward pass of every example at full width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple, TypeAlias, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

from dce_jax import channels as maps
from dce_jax import forward, masks, means
from dce_jax.channels import ChannelMap
from dce_jax.masks import Masks
from dce_jax.signals import sites
from dce_jax.signals.sites import Scene, Site
from dce_jax.types import Array, Path, PyTree

Replacement: TypeAlias = Literal["zero", "mean"]
"""What takes a removed unit's place."""

Batches: TypeAlias = Sequence[Mapping[str, Array]]
"""``{"image": float[B, ...], "label": int[B]}`` each; one program per B."""

Means: TypeAlias = dict[Path, Array]
"""Path of a gate -> float[C], mean over examples and positions of the units that it gates."""


class Judged(NamedTuple):
    """What a network with some channels gone does.

    Attributes:
      loss_N: float64[N], cross-entropy of each example.
      right_N: bool[N], whether it is classified rightly.
    """

    loss_N: npt.NDArray[np.float64]
    right_N: npt.NDArray[np.bool_]


Judge: TypeAlias = Callable[[Masks], Judged]
"""``masks -> what the network does`` on a fixed set of examples; masks are of every group."""


def penalties(
    scene: Scene,
    batches: Batches,
    *,
    replacement: Replacement = "zero",
    report: Callable[[int, int], None] | None = None,
) -> dict[str, npt.NDArray[np.float64]]:
    """Loss change when each channel alone is taken away, in inference mode.

    Args:
      scene: the network; its batch is not read.
      batches: the examples, in chunks; give all chunks one size, for each size is a compilation.
      replacement: ``zero``: nobody reads the channel, as when it is cut out. ``mean``: whoever
        reads it reads its mean over these examples and all positions; needs gates.
      report: called as ``report(done, channels)`` after every channel.

    Returns:
      Group -> float64[C], mean over examples of the loss without the channel less the loss with
      it; negative where the network is better off without.

    Raises:
      ValueError: see `judge`.
    """
    examine = judge(scene, batches, replacement=replacement)
    widths = maps.module_widths(scene.module)
    whole, total, done = masks.of({}, widths), sum(widths.values()), 0
    before = examine(whole).loss_N
    found = {group: np.zeros(width) for group, width in widths.items()}
    for group, width in widths.items():
        for channel in range(width):
            after = examine({**whole, group: _without(width, channel)}).loss_N
            found[group][channel] = np.mean(after - before)
            done += 1
            if report is not None:
                report(done, total)
    return found


def judge(scene: Scene, batches: Batches, *, replacement: Replacement = "zero") -> Judge:
    """A function from masks to what the network does without the masked channels.

    Args:
      scene: as for `penalties`.
      batches: as for `penalties`.
      replacement: as for `penalties`.

    Raises:
      ValueError: no examples, an unknown replacement, or, for ``mean``, a group without a gate.
    """
    if replacement not in get_args(Replacement):
        known = " or ".join(get_args(Replacement))
        raise ValueError(f"replacement {replacement!r} is unknown: a removed unit becomes {known}")
    if not batches:
        raise ValueError("no examples to measure a loss on: give at least one batch")
    replaced = unit_means(scene, batches) if replacement == "mean" else None
    program = partial(_PROGRAM, *scene[:4], replaced)

    def judged(seen: Masks) -> Judged:
        # What is small beside a loss is looked for: reduced-precision products would hide it.
        with jax.default_matmul_precision("highest"):
            found = [program(seen, batch) for batch in batches]
        loss, right = zip(*jax.device_get(found), strict=True)
        return Judged(np.concatenate(loss).astype(np.float64), np.concatenate(right))

    return judged


def unit_means(scene: Scene, batches: Batches) -> Means:
    """Mean of every unit over all examples and positions, where the network gates it.

    Args:
      scene: as for `penalties`.
      batches: as for `penalties`.

    Raises:
      ValueError: no examples, or a group without a gate.
    """

    @jax.jit
    def of(params: PyTree, state: PyTree, images: Array) -> Means:
        seen: Means = {}

        def tap(site: Site, y: Array) -> Array:
            seen[site.path] = jnp.mean(y, axis=tuple(range(y.ndim - 1)))
            return y

        inside = scene._replace(params=params, model_state=state)
        sites.run(inside, images, sites.UNITS, tap)
        return seen

    def parts() -> Iterator[tuple[Means, int]]:
        for batch in batches:
            yield of(scene.params, scene.model_state, batch["image"]), len(batch["label"])

    if batches:
        sites.checked(scene._replace(batch=batches[0]), sites.UNITS, "mean replacement")
    found: Means = means.over(parts(), "units")
    return found


def _examine(
    module: nn.Module,
    channels: ChannelMap,
    params: PyTree,
    state: PyTree,
    replaced: Means | None,
    seen: Masks,
    batch: Mapping[str, Array],
) -> tuple[Array, Array]:
    if replaced is None:
        params = masks.unread(params, channels.names("params", params), seen)
        state = {n: masks.unread(t, channels.names(n, t), seen) for n, t in state.items()}
        logits = forward.apply(module, params, state, batch["image"], train=False)[0]
    else:
        scene = Scene(module, channels, params, state)
        tap = partial(_replaced, replaced, seen)
        logits = sites.run(scene, batch["image"], sites.UNITS, tap)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return loss, jnp.argmax(logits, axis=-1) == batch["label"]


# Kept between calls: other parameters of the same network need no other program.
_PROGRAM = jax.jit(_examine, static_argnums=(0, 1))


def _replaced(instead: Means, seen: Masks, site: Site, y: Array) -> Array:
    here = jnp.concatenate([jnp.asarray(seen[group]) for group in site.places]) > 0
    along = (1,) * (y.ndim - 1) + (-1,)
    return jnp.where(here.reshape(along), y, instead[site.path].reshape(along).astype(y.dtype))


def _without(width: int, channel: int) -> npt.NDArray[np.float32]:
    mask = np.ones(width, np.float32)
    mask[channel] = 0.0
    return mask
