"""The training steps that the benchmark compares, compiled and ready to run.

- *dense*: the ordinary step at full width.
- *narrow*: the ordinary step of the network at the budget's widths: the limit.
- *slab*: dynamic channel execution, a new selection every R steps. With R = 1 one program does it
  all; with R > 1 the inner step is timed by itself, and so are the selection, gather and scatter
  that R of them share: timing R steps at a time would leave room for few rounds.
- *committed*: the ordinary step on the slab of the final channels.
- *masked*: what mask-based pruning does: full width, the consumers of a channel multiplied by 0/1
  masks, which the gradient passes through.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from dce_jax import budget as budgets
from dce_jax import channels as maps
from dce_jax import forward, masks, scores, step, training
from dce_jax.cost import tree_bytes
from dce_jax.types import Array, LossFn, PyTree
from experiments import masking, ranking
from experiments.bench import Bench, initial, shapes
from experiments.budgeting import forward_macs
from experiments.composed import Part, Variant, memory
from experiments.timing import Contender, Program, compiled

SIGNAL = "norm_taylor"
"""The reward that costs nothing."""

ALPHA = 0.1
"""Scale of the bandit's radius; it does not change what a step costs."""


class Key(NamedTuple):
    """Which variant.

    Attributes:
      variant: ``dense``, ``narrow``, ``slab``, ``committed`` or ``masked``.
      keep: fraction of every group's channels; 1 for dense.
      select_every: R of a slab, else None.
      signal: reward of a slab, else None.
    """

    variant: str
    keep: float
    select_every: int | None = None
    signal: str | None = None


def keys(
    keeps: Sequence[float], select_every: Sequence[int], signals: Sequence[str] = (SIGNAL,)
) -> list[Key]:
    """Dense, then the others of each keep.

    Args:
      keeps: fractions in (0, 1].
      select_every: values of R.
      signals: rewards by name, of `experiments.ranking.make_signal`.
    """
    found = [Key("dense", 1.0)]
    for keep in keeps:
        slabs = [Key("slab", keep, every, signal) for signal in signals for every in select_every]
        found += [Key("narrow", keep), *slabs, Key("committed", keep), Key("masked", keep)]
    return found


class Place(NamedTuple):
    """What the variants of one keep share.

    Attributes:
      keep: fraction of every group's channels.
      budget: K per group.
      thin: the network at those widths.
      macs: of its forward pass, one example.
    """

    keep: float
    budget: budgets.Budget
    thin: nn.Module
    macs: int


def build(bench: Bench, asked: Sequence[Key]) -> Iterator[Variant]:
    """Compiles variants one by one; nothing of their states is allocated yet.

    Args:
      bench: what they share.
      asked: of `keys`.

    Raises:
      ValueError: unknown signal, or a network without what it reads.
    """
    place = cache(partial(_place, bench))
    cycle = cache(partial(_cycle, bench))  # one set of programs serves every R
    for key in asked:
        if key.variant == "slab":
            yield _slab(bench, place(key.keep), key, cycle)
        else:
            yield _ordinary(bench, place(key.keep), key)


def _place(bench: Bench, keep: float) -> Place:
    budget = budgets.from_fraction(bench.channels.full, keep)
    thin = maps.with_widths(bench.module, budget.compact)
    return Place(keep, budget, thin, forward_macs(thin, bench.data["image"]))


def pieces(bench: Bench, budget: budgets.Budget, thin: nn.Module, signal: str) -> step.Pieces:
    """What the slab's step functions close over.

    Args:
      bench: what the variants share.
      budget: K per group.
      thin: the network at the budget's widths.
      signal: name of the reward.

    Raises:
      ValueError: unknown signal, or a network without what it reads.
    """
    wide = shapes(bench, bench.module)
    return step.pieces(
        bench.channels,
        budget,
        params=wide.params,
        model_state=wide.model_state,
        tx=bench.tx,
        loss=forward.classification_loss(thin),
        signal=ranking.make_signal(signal, bench.module, bench.channels, budget),
        gate_shapes=forward.gate_shapes(thin, bench.data["image"][:1]),
        score=partial(scores.ucb, alpha=ALPHA),
    )


def many(one_step: Any, length: int) -> Any:
    """So many steps in one dispatch.

    Args:
      one_step: ``(state, data) -> (state, metrics)``.
      length: steps.
    """
    # No scan around a single step: on the CPU its body would run about 20 times slower.
    return one_step if length == 1 else training.repeat(one_step, length)


def _ordinary(bench: Bench, place: Place, key: Key) -> Variant:
    full = key.variant in ("dense", "masked")
    module = bench.module if full else place.thin
    data: dict[str, Any] = dict(bench.data)
    loss = forward.classification_loss(module)
    if key.variant == "masked":
        loss = masks.loss(loss, bench.channels)
        data["masks"] = masking.random_masks(place.budget)
    name = f"{key.variant} at keep {key.keep:g}"
    program, contender = ordinary(bench, name, module, loss, data)
    if key.variant == "committed":
        own = pieces(bench, place.budget, place.thin, SIGNAL)
        contender = contender._replace(start=partial(_committed, bench, own))
    work = _place(bench, 1.0).macs if full else place.macs
    return _variant(key, work, [program], [Part(contender, 1.0)])


def ordinary(
    bench: Bench, name: str, module: nn.Module, loss: LossFn, data: PyTree
) -> tuple[Program, Contender]:
    """Compiles an ordinary training step.

    Args:
      bench: what all variants share.
      name: of the contender.
      module: the network, at any width.
      loss: of it.
      data: the batch.
    """
    one_step = partial(training.plain, bench.tx, loss, training.whole_batch)
    program = compiled(many(one_step, bench.dispatch), shapes(bench, module), data)
    start = partial(initial, bench, module)
    return program, Contender(name, program.call, start, data, bench.dispatch)


def _committed(bench: Bench, own: step.Pieces) -> training.LoopState:
    state = step.start_dce(own, initial(bench, bench.module))
    return jax.jit(partial(step.commit, own))(state).loop


def _slab(bench: Bench, place: Place, key: Key, cycle: Any) -> Variant:
    own = pieces(bench, place.budget, place.thin, str(key.signal))
    state = jax.eval_shape(partial(step.start_dce, own), shapes(bench, bench.module))
    name = f"slab at keep {key.keep:g}, {key.signal}"
    if key.select_every == 1:
        fused = compiled(many(partial(step.fused, own), bench.dispatch), state, bench.data)
        start = partial(_exploring, bench, own)
        one = Contender(name, fused.call, start, bench.data, bench.dispatch)
        programs, parts = [fused], [Part(one, 1.0)]
    else:
        every = int(key.select_every or 1)
        scan = 1 if bench.dispatch == 1 else every
        programs, (switch, inner) = cycle(place, key.signal, name, scan)
        parts = [Part(switch, 1.0 / every), Part(inner, 1.0)]
    return _variant(key, place.macs, programs, parts, full=tree_bytes(state))


def _exploring(bench: Bench, own: step.Pieces) -> step.DceState:
    return step.start_dce(own, initial(bench, bench.module))


def _cycle(
    bench: Bench, place: Place, signal: str, name: str, scan: int
) -> tuple[list[Program], tuple[Contender, Contender]]:
    """Enter, inner, leave; and as contenders a change of selection, and ``scan`` inner steps."""
    own = pieces(bench, place.budget, place.thin, signal)
    entering = partial(step.enter, own)
    state = jax.eval_shape(partial(step.start_dce, own), shapes(bench, bench.module))
    inside = jax.eval_shape(entering, state)
    enter = compiled(entering, state, donate=False)
    inner = compiled(many(partial(step.observe, own), scan), inside, bench.data)
    leave = compiled(partial(step.leave, own), state, inside)
    start = partial(_exploring, bench, own)
    changing = partial(change_selection, enter, leave)
    switch = Contender(f"{name}, change", changing, start, bench.data, 1)
    begin = partial(_entered, enter, start)
    training = Contender(f"{name}, {scan} inside", inner.call, begin, bench.data, scan)
    return [enter, inner, leave], (switch, training)


def _entered(enter: Program, start: Callable[[], step.DceState]) -> step.SlabState:
    return enter.call(start())


def change_selection(
    enter: Program, leave: Program, state: step.DceState, data: PyTree
) -> tuple[step.DceState, dict[str, Array]]:
    """Selects and gathers a slab, and scatters it back without a step in between.

    Args:
      enter: compiled `step.enter`.
      leave: compiled `step.leave`.
      state: at full width; its buffers are given up.
      data: not used; every contender is given it.

    Returns:
      The state after, and no metrics.
    """
    del data
    state, _ = leave.call(state, enter.call(state))
    return state, {}


def _variant(
    key: Key, work: int, programs: Sequence[Program], parts: Sequence[Part], *, full: int = 0
) -> Variant:
    waiting = full if len(programs) > 1 else 0
    temporaries, peak = memory(programs, waiting=waiting)
    return Variant(
        **key._asdict(),
        macs=work,
        compile_s=sum(program.seconds for program in programs),
        temp_bytes=temporaries,
        peak_bytes=peak,
        outside_bytes=full,
        parts=tuple(parts),
    )
