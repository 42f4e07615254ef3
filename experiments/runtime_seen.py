"""A whole split through a network that decides, and through decisions made elsewhere."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

from dce_jax import runtime
from dce_jax.runtime import Choice, costs, systems
from dce_jax.types import Array, PyTree
from experiments.dataset import Split
from experiments.pipeline import eval_batches, normalise
from experiments.runtime_setup import Job

BATCH = 250

Floats = npt.NDArray[np.float32]


class Seen(NamedTuple):
    """What happened to every image of a split.

    Attributes:
      right: bool[N].
      loss: float32[N].
      share: float32[N], multiply-accumulates over those of the whole network, deciding included.
      choices: per site, of N images, on the host.
    """

    right: npt.NDArray[np.bool_]
    loss: Floats
    share: Floats
    choices: tuple[Choice, ...]


class Watcher(NamedTuple):
    """Compiled programs that look at a split; decisions and knobs are arguments.

    Attributes:
      job: the run.
      decide: (variables, deciding, images, knob) -> (logits, choices).
      follow: (variables, images, choices) -> logits.
      plain: (variables, images) -> logits of the whole network.
    """

    job: Job
    decide: Any
    follow: Any
    plain: Any


def watcher(job: Job) -> Watcher:
    """The programs of a run."""
    system, data = job.system, job.subject.data
    scale = partial(normalise, mean=data.mean, std=data.std)

    def decide(variables: PyTree, deciding: PyTree, images: Array, knob: Array) -> Any:
        policy = systems.policy(system, deciding, knob)
        found = runtime.run(system.chain, system.levels, variables, scale(images), policy)
        return found.logits, found.choices

    def follow(variables: PyTree, images: Array, choices: tuple[Choice, ...]) -> Array:
        policy = runtime.replay(choices)
        return runtime.run(system.chain, system.levels, variables, scale(images), policy).logits

    def plain(variables: PyTree, images: Array) -> Any:
        return job.subject.scene.module.apply(variables, scale(images), train=False)

    return Watcher(job, jax.jit(decide), jax.jit(follow), jax.jit(plain))


def decided(
    watcher: Watcher, variables: PyTree, deciding: PyTree, split: Split, knob: float
) -> Seen:
    """Every image with its own decisions.

    Args:
      watcher: the programs.
      variables: of the network.
      deciding: parameters of what decides.
      split: images and labels.
      knob: inside the system's span.
    """
    system = watcher.job.system
    parts = []
    for batch, count in _batches(split):
        logits, choices = watcher.decide(variables, deciding, batch["image"], jnp.float32(knob))
        share = costs.share(system.costs, choices, system.deciding)
        right, loss = _judged(logits, batch["label"])
        parts.append(_host((right, loss, share, choices), count))
    right, loss, share, choices = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
    return Seen(right, loss, share, choices)


def followed(
    watcher: Watcher, variables: PyTree, split: Split, choices: tuple[Choice, ...]
) -> npt.NDArray[np.bool_]:
    """Whether every image is classified rightly under decisions that are given.

    Args:
      watcher: the programs.
      variables: of the network.
      split: images and labels.
      choices: per site, of as many images, or of one that all follow.
    """
    found, start = [], 0
    for batch, count in _batches(split):
        size = batch["label"].shape[0]
        mine = choices
        if choices[0].level.shape[0] > 1:
            rows = np.minimum(np.arange(start, start + size), split.num_images - 1)
            mine = jax.tree.map(lambda leaf, rows=rows: leaf[rows], choices)
        logits = watcher.follow(variables, batch["image"], jax.tree.map(jnp.asarray, mine))
        found.append(_host(_judged(logits, batch["label"])[0], count))
        start += count
    return np.concatenate(found)


def whole(watcher: Watcher, variables: PyTree, split: Split) -> tuple[Floats, Floats]:
    """The whole network, nothing decided: (right, loss) of every image."""
    parts = [
        _host(_judged(watcher.plain(variables, batch["image"]), batch["label"]), count)
        for batch, count in _batches(split)
    ]
    right, loss = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
    return right, loss


def _batches(split: Split) -> Iterator[tuple[dict[str, Array], int]]:
    """Batches of one shape, and how many of their images count."""
    for batch in eval_batches(split, min(BATCH, split.num_images)):
        yield batch, int(batch["weight"].sum())


def _judged(logits: Array, labels: Array) -> tuple[Array, Array]:
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.argmax(logits, axis=-1) == labels, loss


def _host(tree: PyTree, count: int) -> PyTree:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:count], tree)
