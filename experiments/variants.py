"""The training steps that the benchmark compares, compiled and ready to run.

- *dense*: the ordinary step at full width.
- *narrow*: the ordinary step of the network at the budget's widths: the limit.
- *slab*: dynamic channel execution, a new selection every R steps.
- *committed*: the ordinary step on the slab of the final channels.
- *masked*: what mask-based pruning does: full width, the consumers of a channel multiplied by 0/1
  masks, which the gradient passes through.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dce_jax import budget as budgets
from dce_jax import channels as maps
from dce_jax import cost, forward, saliency, scores, step
from dce_jax.channels import AxisNames, ChannelMap
from dce_jax.types import Array, LossFn, PyTree
from experiments.timing import Contender, Program, compiled

SIGNAL = "norm_taylor"
"""Name of the reward, the one that costs nothing."""

ALPHA = 0.1
"""Scale of the bandit's radius; it does not change what a step costs."""


class Bench(NamedTuple):
    """What all variants share.

    Attributes:
      module: the network at full width.
      channels: its channel map.
      tx: the optimizer.
      data: {"image": float32[B, H, W, 3], "label": int32[B]} on the device.
      dispatch: training steps per dispatch; 1 on the CPU (jax-ml/jax#12868).
    """

    module: nn.Module
    channels: ChannelMap
    tx: optax.GradientTransformation
    data: dict[str, Array]
    dispatch: int


class Variant(NamedTuple):
    """A row of the benchmark, ready to be timed.

    Attributes:
      variant: ``dense``, ``narrow``, ``slab``, ``committed`` or ``masked``.
      keep: fraction of every group's channels.
      select_every: R of a slab, else None.
      compile_s: seconds, all of its programs.
      temp_bytes: temporaries of the largest program, or None.
      peak_bytes: the most that is held at once: arguments + outputs + temporaries - aliased of a
        program, and the full state that waits outside while a slab trains; or None.
      contender: what is timed.
    """

    variant: str
    keep: float
    select_every: int | None
    compile_s: float
    temp_bytes: int | None
    peak_bytes: int | None
    contender: Contender


def bench(
    module: nn.Module, *, batch: int, image_size: int, learning_rate: float, dispatch: int
) -> Bench:
    """Puts random images on the device and builds what the variants share.

    Args:
      module: the network at full width, with 10 classes.
      batch: B.
      image_size: H = W.
      learning_rate: of `optimizer`.
      dispatch: training steps per dispatch.

    Raises:
      ValueError: the network refuses images of that size.
    """
    draw = np.random.default_rng(0)
    images = draw.normal(size=(batch, image_size, image_size, 3)).astype(np.float32)
    labels = draw.integers(10, size=batch).astype(np.int32)
    data = {"image": jnp.asarray(images), "label": jnp.asarray(labels)}
    # The named networks' maps are proved by the tests; here shapes suffice, and cost no seconds.
    channels = maps.build(module, forward.shapes(module, data["image"]))
    return Bench(module, channels, optimizer(learning_rate), data, dispatch)


def optimizer(learning_rate: float) -> optax.GradientTransformation:
    """SGD with momentum 0.9 and an L2 term of 5e-4, the optimizer of all cost figures."""
    return optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(learning_rate, momentum=0.9))


def start(
    module: nn.Module, tx: optax.GradientTransformation, key: Array, images: Array
) -> step.LoopState:
    """The state of a network before its first step; pure, for `jax.jit` and `jax.eval_shape`.

    Args:
      module: the network, at any width.
      tx: the optimizer.
      key: PRNG key.
      images: float32[B, H, W, D]; one example is enough.
    """
    variables = nn.unbox(forward.initial(module, key, images))
    params = variables.pop("params")
    return step.start(params, variables, tx, key)


def count(keeps: Sequence[float], select_every: Sequence[int]) -> int:
    """How many variants `build` yields."""
    return 1 + len(keeps) * (3 + len(select_every))


def build(bench: Bench, keeps: Sequence[float], select_every: Sequence[int]) -> Iterator[Variant]:
    """Compiles the variants one by one: dense, then the others of each keep.

    Args:
      bench: what they share.
      keeps: fractions in (0, 1].
      select_every: values of R.
    """
    wide = _initial(bench, bench.module)
    dense = forward.classification_loss(bench.module)
    yield _ordinary(bench, "dense", 1.0, dense, wide, bench.data)
    for keep in keeps:
        budget = budgets.from_fraction(bench.channels.full, keep)
        thin = maps.with_widths(bench.module, budget.compact)
        loss = forward.classification_loss(thin)
        yield _ordinary(bench, "narrow", keep, loss, _initial(bench, thin), bench.data)
        pieces = _pieces(bench, budget, loss, wide)
        state = step.start_dce(pieces, wide)
        cycle = cache(partial(_cycle, bench, pieces, state))  # one set of programs serves every R
        for every in select_every:
            yield _slab(bench, pieces, keep, every, state, cycle)
        slab = jax.jit(partial(step.commit, pieces))(state).loop
        yield _ordinary(bench, "committed", keep, loss, slab, bench.data)
        data = {**bench.data, "masks": random_masks(budget)}
        yield _ordinary(bench, "masked", keep, masked_loss(dense, bench.channels), wide, data)


def random_masks(budget: budgets.Budget) -> dict[str, Array]:
    """Group -> float32[C] with K ones in random places."""
    draw = np.random.default_rng(1)
    masks = {}
    for group, width, chosen in budget.entries:
        mask = np.zeros(width, np.float32)
        mask[draw.permutation(width)[:chosen]] = 1.0
        masks[group] = jnp.asarray(mask)
    return masks


def masked_loss(loss: LossFn, channels: ChannelMap) -> LossFn:
    """The loss of a full-width network whose channels are masked, not cut.

    Only kernels that read a channel are multiplied, which removes it at the least cost: no work is
    put into its own kernel and norm, whose gradients become zero by themselves.

    Args:
      loss: of the full-width network.
      channels: its channel map.

    Returns:
      A loss for batches that also hold ``masks``: group -> float32[C].
    """

    def masked(
        params: PyTree, model_state: PyTree, gates: PyTree, batch: PyTree, key: Array
    ) -> tuple[Array, tuple[PyTree, dict[str, Array]]]:
        names = channels.names("params", params)
        params = jax.tree.map(partial(_mask_inputs, batch["masks"]), params, names)
        return loss(params, model_state, gates, batch, key)

    return masked


def _mask_inputs(masks: Mapping[str, Array], leaf: Array, names: AxisNames) -> Array:
    for axis, groups in enumerate(names.axes[:-1]):
        if groups:
            mask = jnp.concatenate([masks[group] for group in groups])
            leaf = leaf * mask.reshape([-1 if i == axis else 1 for i in range(leaf.ndim)])
    return leaf


def _initial(bench: Bench, module: nn.Module) -> step.LoopState:
    begin = jax.jit(partial(start, module, bench.tx))
    return begin(jax.random.key(0), bench.data["image"][:2])


def _pieces(
    bench: Bench, budget: budgets.Budget, loss: LossFn, wide: step.LoopState
) -> step.Pieces:
    return step.pieces(
        bench.channels,
        budget,
        params=wide.params,
        model_state=wide.model_state,
        tx=bench.tx,
        loss=loss,
        signal=saliency.norm_taylor(bench.module.reward_norms()),
        score=partial(scores.ucb, alpha=ALPHA),
    )


def _many(one_step: Any, length: int) -> Any:
    # No scan around a single step: on the CPU its body would run about 20 times slower.
    return one_step if length == 1 else step.repeat(one_step, length)


def _ordinary(
    bench: Bench, variant: str, keep: float, loss: LossFn, loop: step.LoopState, data: PyTree
) -> Variant:
    one_step = partial(step.plain, bench.tx, loss, step.whole_batch)
    program = compiled(_many(one_step, bench.dispatch), loop, data)
    name = f"{variant} at keep {keep:g}"
    own = jax.tree.map(jnp.copy, loop)  # every variant gives up its buffers
    contender = Contender(name, program.call, own, data, bench.dispatch)
    return _variant(variant, keep, None, [program], contender)


def _slab(
    bench: Bench,
    pieces: step.Pieces,
    keep: float,
    every: int,
    state: step.DceState,
    cycle: Callable[[int], list[Program]],
) -> Variant:
    name = f"slab at keep {keep:g}, select_every {every}"
    own = jax.tree.map(jnp.copy, state)
    if every == 1:
        fused = compiled(_many(partial(step.fused, pieces), bench.dispatch), state, bench.data)
        contender = Contender(name, fused.call, own, bench.data, bench.dispatch)
        return _variant("slab", keep, every, [fused], contender)
    scan = 1 if bench.dispatch == 1 else every
    programs, cycles = cycle(scan), max(1, bench.dispatch // every)
    run = partial(_select_and_train, programs, every // scan, cycles)
    contender = Contender(name, run, own, bench.data, cycles * every)
    return _variant("slab", keep, every, programs, contender, waiting=_bytes(state))


def _cycle(bench: Bench, pieces: step.Pieces, state: step.DceState, scan: int) -> list[Program]:
    inside = jax.eval_shape(partial(step.enter, pieces), state)
    return [
        compiled(partial(step.enter, pieces), state, donate=False),
        compiled(_many(partial(step.observe, pieces), scan), inside, bench.data),
        compiled(partial(step.leave, pieces), state, inside),
    ]


def _select_and_train(
    programs: Sequence[Program], calls: int, cycles: int, state: step.DceState, data: PyTree
) -> tuple[step.DceState, dict[str, Array]]:
    enter, inner, leave = programs
    for _ in range(cycles):
        inside = enter.call(state)
        for _ in range(calls):
            inside, metrics = inner.call(inside, data)
        state, _ = leave.call(state, inside)
    return state, metrics


def _variant(
    variant: str,
    keep: float,
    every: int | None,
    programs: Sequence[Program],
    contender: Contender,
    *,
    waiting: int = 0,
) -> Variant:
    seconds = sum(program.seconds for program in programs)
    memories = [program.memory for program in programs if program.memory is not None]
    if len(memories) < len(programs):
        return Variant(variant, keep, every, seconds, None, None, contender)
    peaks = [cost.peak_bytes(memory) for memory in memories]
    if waiting:
        peaks[1] += waiting  # of (enter, inner, leave) only inner does not hold the full state
    temporaries = max(memory.temporaries for memory in memories)
    return Variant(variant, keep, every, seconds, temporaries, max(peaks), contender)


def _bytes(tree: PyTree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
