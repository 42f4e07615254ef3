"""How fast batches come and steps go: each alone, and both at a time."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax

from dce_jax import budget as budgets
from dce_jax import channels as maps
from dce_jax import forward
from dce_jax.training import plain
from dce_jax.types import PyTree
from experiments import bench, timing
from experiments.augment import Augment
from experiments.batches import Source
from experiments.dataset import DataSet
from experiments.streaming import stream

Consumer: TypeAlias = Callable[[PyTree], Callable[[], Any]]
"""Begins a step on a batch; what it returns waits for that step's end."""


class Window(NamedTuple):
    """What was measured in the middle of a stream.

    Attributes:
      seconds: of wall time.
      waited: share of it that the loop waited for batches.
    """

    seconds: float
    waited: float


def open_stream(data: DataSet, *, batch: int, batches: int, threads: int) -> Source:
    """The run's own pipeline: decode, cut a random window, flip, put on the device.

    Args:
      data: encoded images.
      batch: B.
      batches: how many there will be.
      threads: that decode.
    """
    return stream(
        data.train,
        batch_size=batch,
        steps=batches,
        seed=0,
        mean=data.mean,
        std=data.std,
        augment=Augment(flip=True),
        threads=threads,
    )


def consume(source: Source, consumer: Consumer, *, batches: int, margin: int) -> Window:
    """Takes batches as a training loop does, timed between the margins.

    Args:
      source: freshly opened, of ``batches + 2 * margin`` batches.
      consumer: what is done with a batch.
      batches: that are timed.
      margin: batches before, while the threads begin, and after, while they run out of work.
    """
    begun, waited = 0.0, 0.0
    result = Window(0.0, 0.0)
    for index in range(batches + 2 * margin):
        end = consumer(source.data_at(index))
        if index == margin - 1:
            end()
            begun, waited = time.perf_counter(), source.waited()
        elif index == margin + batches - 1:
            end()
            seconds = time.perf_counter() - begun
            result = Window(seconds, (source.waited() - waited) / seconds)
    return result


def take(batch: PyTree) -> Callable[[], Any]:
    """Does nothing with a batch but see that it lies on the device."""
    return partial(jax.block_until_ready, batch)


def sleeping(seconds: float) -> Consumer:
    """Stands for a device that leaves the host's processors alone."""

    def begin(_: PyTree) -> Callable[[], Any]:
        time.sleep(seconds)
        return lambda: None

    return begin


def training(data: DataSet, module: Any, *, keep: float, batch: int) -> Consumer:
    """A real, compiled training step of a narrow network.

    Args:
      data: for the shape of an image.
      module: the network at full width.
      keep: share of every group's channels.
      batch: B.
    """
    side = data.image_shape[0]
    shared = bench.prepare(module, batch=batch, image_size=side, learning_rate=1e-3, dispatch=1)
    thin = maps.with_widths(module, budgets.from_fraction(shared.channels.full, keep).compact)
    source = open_stream(data, batch=batch, batches=1, threads=1)
    one = partial(plain, shared.tx, forward.classification_loss(thin), source.batch_fn)
    state = bench.initial(shared, thin)
    run = timing.compiled(one, state, source.data_at(0)).call

    def begin(batch: PyTree) -> Callable[[], Any]:
        nonlocal state
        state, metrics = run(state, batch)
        return partial(jax.block_until_ready, metrics)

    return begin


def alone(consumer: Consumer, batch: PyTree, *, batches: int) -> float:
    """Seconds a step without a pipeline beside it, always on the same batch."""
    consumer(batch)()
    begun = time.perf_counter()
    ends = [consumer(batch) for _ in range(batches)]
    ends[-1]()
    return (time.perf_counter() - begun) / batches
