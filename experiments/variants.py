"""The training steps that the benchmark compares, compiled and ready to run.

- *dense*: the ordinary step at full width.
- *narrow*: the ordinary step of the network at the budget's widths: the limit.
- *slab*: dynamic channel execution, a new selection every R steps.
- *committed*: the ordinary step on the slab of the final channels.
- *masked*: what mask-based pruning does: full width, the consumers of a channel multiplied by 0/1
  masks, which the gradient passes through.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax

from dce_jax import budget as budgets
from dce_jax import channels as maps
from dce_jax import cost, forward, saliency, scores, step
from dce_jax.parts import norm_parts
from dce_jax.types import Array, LossFn, PyTree
from experiments import masking
from experiments.bench import Bench, initial
from experiments.timing import Contender, Program, compiled

SIGNAL = "norm_taylor"
"""Name of the reward, the one that costs nothing."""

ALPHA = 0.1
"""Scale of the bandit's radius; it does not change what a step costs."""


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
    wide = initial(bench, bench.module)
    dense = forward.classification_loss(bench.module)
    yield ordinary(bench, "dense", 1.0, dense, wide, bench.data)
    for keep in keeps:
        budget = budgets.from_fraction(bench.channels.full, keep)
        thin = maps.with_widths(bench.module, budget.compact)
        loss = forward.classification_loss(thin)
        yield ordinary(bench, "narrow", keep, loss, initial(bench, thin), bench.data)
        pieces = _pieces(bench, budget, loss, wide)
        state = step.start_dce(pieces, wide)
        cycle = cache(partial(_cycle, bench, pieces, state))  # one set of programs serves every R
        for every in select_every:
            yield _slab(bench, pieces, keep, every, state, cycle)
        slab = jax.jit(partial(step.commit, pieces))(state).loop
        yield ordinary(bench, "committed", keep, loss, slab, bench.data)
        data = {**bench.data, "masks": masking.random_masks(budget)}
        yield ordinary(
            bench, "masked", keep, masking.masked_loss(dense, bench.channels), wide, data
        )


def _own(state: PyTree) -> PyTree:
    # Every contender gives up its buffers, so it must not share them.
    return jax.device_put(state, may_alias=False)


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
        signal=saliency.norm_taylor(
            bench.module.reward_norms(), norm_parts(bench.channels, budget.compact)
        ),
        score=partial(scores.ucb, alpha=ALPHA),
    )


def many(one_step: Any, length: int) -> Any:
    """So many steps in one dispatch.

    Args:
      one_step: ``(state, data) -> (state, metrics)``.
      length: steps.
    """
    # No scan around a single step: on the CPU its body would run about 20 times slower.
    return one_step if length == 1 else step.repeat(one_step, length)


def ordinary(
    bench: Bench, variant: str, keep: float, loss: LossFn, loop: step.LoopState, data: PyTree
) -> Variant:
    """Compiles an ordinary training step.

    Args:
      bench: what all variants share.
      variant: what the step is called.
      keep: share of the channels that execute, for messages.
      loss: of the network.
      loop: its state.
      data: the batch.
    """
    one_step = partial(step.plain, bench.tx, loss, step.whole_batch)
    program = compiled(many(one_step, bench.dispatch), loop, data)
    name = f"{variant} at keep {keep:g}"
    contender = Contender(name, program.call, _own(loop), data, bench.dispatch)
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
    if every == 1:
        fused = compiled(many(partial(step.fused, pieces), bench.dispatch), state, bench.data)
        contender = Contender(name, fused.call, _own(state), bench.data, bench.dispatch)
        return _variant("slab", keep, every, [fused], contender)
    scan = 1 if bench.dispatch == 1 else every
    programs, cycles = cycle(scan), max(1, bench.dispatch // every)
    run = partial(select_and_train, programs, every // scan, cycles)
    contender = Contender(name, run, _own(state), bench.data, cycles * every)
    return _variant("slab", keep, every, programs, contender, waiting=_bytes(state))


def _cycle(bench: Bench, pieces: step.Pieces, state: step.DceState, scan: int) -> list[Program]:
    inside = jax.eval_shape(partial(step.enter, pieces), state)
    return [
        compiled(partial(step.enter, pieces), state, donate=False),
        compiled(many(partial(step.observe, pieces), scan), inside, bench.data),
        compiled(partial(step.leave, pieces), state, inside),
    ]


def select_and_train(
    programs: Sequence[Program], calls: int, cycles: int, state: step.DceState, data: PyTree
) -> tuple[step.DceState, dict[str, Array]]:
    """Trains in slab space: per cycle one selection and ``calls`` calls of the inner program.

    Args:
      programs: enter, inner (one step, or a scan of R) and leave.
      calls: of the inner program per selection.
      cycles: selections.
      state: at full width; its buffers are given up.
      data: the batch.

    Returns:
      The state after, and the metrics of the last call.
    """
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
    temporaries, peak = memory(programs, waiting=waiting)
    seconds = sum(program.seconds for program in programs)
    return Variant(variant, keep, every, seconds, temporaries, peak, contender)


def memory(programs: Sequence[Program], *, waiting: int = 0) -> tuple[int | None, int | None]:
    """Temporaries of the largest program, and the most bytes held at once.

    Args:
      programs: one, or (enter, inner, leave).
      waiting: bytes of the full state, which waits while inner runs and is an argument elsewhere.

    Returns:
      (bytes, bytes), or (None, None) where XLA keeps no account.
    """
    memories = [program.memory for program in programs if program.memory is not None]
    if len(memories) < len(programs):
        return None, None
    peaks = [cost.peak_bytes(memory) for memory in memories]
    if waiting:
        peaks[1] += waiting
    return max(memory.temporaries for memory in memories), max(peaks)


def _bytes(tree: PyTree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
