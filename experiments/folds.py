"""Folding in a pruning run: the means of channels that go, taken over training images."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dce_jax import masks
from dce_jax.pruning import folding
from dce_jax.pruning.choose import Kept
from dce_jax.pruning.folding import InputMeans
from dce_jax.signals import Scene
from dce_jax.training import LoopState
from dce_jax.types import Array
from experiments import evaluate, pruners
from experiments import placement as placing
from experiments.programs import Programs, call
from experiments.setup import Run
from experiments.sources import augmentation


def fold(run: Run, programs: Programs, loop: LoopState, kept: Kept) -> LoopState:
    """The network with the means of what goes in its consumers' biases, where the method folds.

    Args:
      run: by now.
      programs: where the program that takes means is kept.
      loop: the network, at the widths of the present budget.
      kept: group -> positions that stay.
    """
    count = 0 if run.pace is None else pruners.fold_batches(run.pace.pruner)
    if not count:
        return loop
    widths = run.budget.compact
    losing = [group for group, stay in kept.items() if len(stay) < widths[group]]
    example = jax.ShapeDtypeStruct((1, *run.data.image_shape), jnp.float32)
    ways = folding.routes(run.thin, run.channels, example, losing)
    means, seen = _means(run, programs, loop, count), masks.of(kept, widths)

    def folded(loop: LoopState, means: InputMeans, seen: dict[str, np.ndarray]) -> LoopState:
        params, state = folding.folded(loop.params, loop.model_state, means, seen, ways)
        return loop._replace(params=params, model_state=state)

    return jax.jit(folded)(loop, means, seen)


def _means(run: Run, programs: Programs, loop: LoopState, count: int) -> InputMeans:
    size = run.config.batch_size
    batches = evaluate.training_batches(
        run.data,
        augment=augmentation(run.config),
        examples=count * size,
        batch_size=size,
    )

    def of(loop: LoopState, batch: dict[str, Array]) -> InputMeans:
        scene = Scene(run.thin, run.channels, loop.params, loop.model_state)
        return folding.input_means(scene, batch["image"])

    cut, name = partial(placing.cut, run.placement), f"fold, budget {len(run.plans)}"
    found = [call(programs, name, of, loop, cut(batch)) for batch in batches]
    means = jax.tree.map(lambda *each: jnp.mean(jnp.stack(each), axis=0), *found)
    # On the host, so that the network may lie on any number of devices.
    return jax.device_get(placing.local(run.placement, means))
