"""The training step: the only place where the bandit and the slab meet.

Three pure functions make it: `enter` selects and gathers, `observe` is an ordinary step of the
narrow network that also adds up rewards, `leave` scatters back and tells the bandit. `plain` is
the same step without rewards: it trains dense networks, narrow networks from scratch, and the
committed slab, and is one and the same function for all of them.
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dce_jax import bandit as bandits
from dce_jax import idle, lookups, newcomers, saliency, scores, slab, training
from dce_jax.budget import Budget
from dce_jax.channels import ChannelMap
from dce_jax.lookups import Lookup
from dce_jax.moments import optimizer_names
from dce_jax.types import (
    Array,
    LossFn,
    PyTree,
    Rewards,
    ScoreFn,
    Selection,
    Signal,
    UnitFn,
)


class DceState(NamedTuple):
    """Everything a run carries between selections, at full width.

    Attributes:
      loop: the full-width network and its optimizer.
      bandit: plays and rewards.
      last: int32 tree like the parameters (`idle.init`), or None where idle channels are frozen.
    """

    loop: training.LoopState
    bandit: bandits.BanditState
    last: PyTree


class SlabState(NamedTuple):
    """What steps inside one selection carry, at the budget's widths.

    Attributes:
      loop: the narrow network and its optimizer.
      selection: group -> int32[K].
      rewards: group -> float32[K], rewards in [0, 1] added up since `enter`.
      taken: int32[], steps since `enter`.
    """

    loop: training.LoopState
    selection: Selection
    rewards: Rewards
    taken: Array


class Pieces(NamedTuple):
    """Static facts that the step functions close over (`pieces` builds and checks them).

    Attributes:
      full: group -> C.
      budget: K per group.
      params_names: names tree of the parameters.
      state_names: names tree of the model state.
      opt_names: names tree of the optimizer's state.
      tx: the optimizer.
      loss: of the narrow network.
      signal: what a channel was worth in a step.
      unit: how the signal's values become rewards.
      gate_shapes: gates collection of the narrow network for one example, or {}.
      score: ranks the arms of a group.
      discount: of the bandit's means.
      batch_fn: ``(data, step, key) -> batch``, inside the compiled step.
      catch_up: decay rule of idle elements, or None: freeze.
      forget: whether the moments of what does not execute start anew.
      quiet: whether consumers start to read a newcomer from zero (`dce_jax.newcomers`).
      lookup: how slabs are gathered and scattered.
    """

    full: dict[str, int]
    budget: Budget
    params_names: PyTree
    state_names: PyTree
    opt_names: PyTree
    tx: optax.GradientTransformation
    loss: LossFn
    signal: Signal
    unit: UnitFn
    gate_shapes: PyTree
    score: ScoreFn
    discount: float
    batch_fn: Callable[[Any, Array, Array], PyTree]
    catch_up: idle.CatchUp | None
    forget: bool
    quiet: bool
    lookup: Lookup


def pieces(
    channels: ChannelMap,
    budget: Budget,
    *,
    params: PyTree,
    model_state: PyTree,
    tx: optax.GradientTransformation,
    loss: LossFn,
    signal: Signal,
    unit: UnitFn = saliency.to_unit,
    gate_shapes: PyTree | None = None,
    score: ScoreFn = scores.greedy,
    discount: float = 1.0,
    batch_fn: Callable[[Any, Array, Array], PyTree] = training.whole_batch,
    catch_up: idle.CatchUp | None = None,
    forget: bool = False,
    quiet: bool = False,
    lookup: Lookup = "index",
) -> Pieces:
    """Checks and collects what the step functions close over.

    Args:
      channels: the proved channel map.
      budget: K per group.
      params: full-width parameters or their shapes.
      model_state: full-width model state or its shapes.
      tx: the optimizer; its state must have its parameters' shapes.
      loss: of the network *at the budget's widths*.
      signal: what a channel was worth.
      unit: how its values become rewards: `saliency.to_unit` or `saliency.to_ranks`.
      gate_shapes: `forward.gate_shapes` of the narrow network; needed by gate signals.
      score: ranks the arms.
      discount: in (0, 1].
      batch_fn: makes the batch inside the step.
      catch_up: decay rule of idle elements; None freezes them.
      forget: whether elements that did not execute have the moments that the optimizer starts
        with. Adam's first steps are larger when they return, as its count goes on.
      quiet: whether consumers start to read a newcomer from zero.
      lookup: how slabs are gathered and scattered: by ``"index"``, or by products with
        ``"one_hot"`` matrices, bit for bit the same.

    Raises:
      ValueError: a budget of another network, a refused optimizer, gates missing, bad discount, an
        unknown lookup.
    """
    lookups.check(lookup)
    if budget.full != channels.full:
        raise ValueError(f"the budget is for widths {budget.full}, the network has {channels.full}")
    if not 0.0 < discount <= 1.0:
        raise ValueError(f"discount is {discount}: it must be above 0 and at most 1 (plain mean)")
    if signal.needs_gates and not gate_shapes:
        raise ValueError(
            f"signal {signal.name!r} reads unit gates, but the network has none: call "
            "dce_jax.networks.gate(self, y, group) where each group's channels are read"
        )
    names = channels.names("params", params)
    return Pieces(
        full=channels.full,
        budget=budget,
        params_names=names,
        state_names={name: channels.names(name, tree) for name, tree in model_state.items()},
        opt_names=optimizer_names(tx, params, names),
        tx=tx,
        loss=loss,
        signal=signal,
        unit=unit,
        gate_shapes=gate_shapes or {},
        score=score,
        discount=discount,
        batch_fn=batch_fn,
        catch_up=catch_up,
        forget=forget,
        quiet=quiet,
        lookup=lookup,
    )


def start_dce(
    pieces: Pieces, loop: training.LoopState, groups: Collection[str] | None = None
) -> DceState:
    """The state of a dynamic run before its first selection; ``groups`` as in `bandit.init`."""
    last = idle.init(loop.params) if pieces.catch_up else None
    return DceState(loop, bandits.init(pieces.budget, groups), last)


def enter(pieces: Pieces, state: DceState) -> SlabState:
    """Selects a super arm and gathers its slab."""
    key = training.step_key(state.loop, training.SELECT)
    selection, _ = bandits.select(key, state.bandit, budget=pieces.budget, score=pieces.score)
    return cut(pieces, state, selection)


def cut(pieces: Pieces, state: DceState, selection: Selection) -> SlabState:
    """Gathers the slab of a given selection; idle elements catch up first, if they may."""
    loop = state.loop

    def pick(tree: PyTree, names: PyTree) -> PyTree:
        # A leaf that is never cut must not share the full state's buffer: slab steps donate theirs.
        found = slab.gather(tree, names, selection, pieces.full, lookup=pieces.lookup)
        return jax.tree.map(jnp.copy, found)

    params = pick(loop.params, pieces.params_names)
    if pieces.catch_up:
        last = pick(state.last, pieces.params_names)
        params = idle.settle(pieces.catch_up, params, last, loop.step)
    if pieces.quiet:
        first = newcomers.unplayed(state.bandit, selection)
        params = newcomers.quieted(params, pieces.params_names, first, pieces.budget.compact)
    narrow = loop._replace(
        params=params,
        model_state=pick(loop.model_state, pieces.state_names),
        opt_state=pick(loop.opt_state, pieces.opt_names),
        key=jnp.copy(loop.key),
        step=jnp.copy(loop.step),
    )
    rewards = {group: jnp.zeros(k.shape, jnp.float32) for group, k in selection.items()}
    return SlabState(narrow, selection, rewards, jnp.zeros((), jnp.int32))


def observe(pieces: Pieces, state: SlabState, data: PyTree) -> tuple[SlabState, dict[str, Array]]:
    """One ordinary step of the narrow network that adds up its channels' rewards."""
    gates = pieces.gate_shapes if pieces.signal.needs_gates else None
    loop, metrics, evidence = training.observed(
        pieces.tx, pieces.loss, pieces.batch_fn, state.loop, data, gates
    )
    values = pieces.signal.value(evidence)
    saliency.check_cover(pieces.signal, values, tuple(state.rewards))
    asked = {group: values[group] for group in state.rewards}
    scaled = pieces.unit(asked, signed=pieces.signal.signed)
    rewards = {group: before + scaled[group] for group, before in state.rewards.items()}
    return SlabState(loop, state.selection, rewards, state.taken + 1), metrics


def leave(
    pieces: Pieces, state: DceState, inside: SlabState
) -> tuple[DceState, bandits.UpdateInfo]:
    """Scatters the slab back and books the selection's mean rewards."""
    selection, narrow, wide = inside.selection, inside.loop, state.loop

    def put(tree: PyTree, part: PyTree, names: PyTree) -> PyTree:
        return slab.scatter(tree, part, names, selection, pieces.full, lookup=pieces.lookup)

    params = put(wide.params, narrow.params, pieces.params_names)
    moments = pieces.tx.init(params) if pieces.forget else wide.opt_state
    loop = narrow._replace(
        params=params,
        model_state=put(wide.model_state, narrow.model_state, pieces.state_names),
        opt_state=put(moments, narrow.opt_state, pieces.opt_names),
    )
    last = state.last
    if pieces.catch_up:
        touched = jax.tree.map(lambda p: jnp.full(p.shape, narrow.step, jnp.int32), narrow.params)
        last = put(last, touched, pieces.params_names)
    steps = jnp.maximum(inside.taken, 1).astype(jnp.float32)
    rewards = {group: total / steps for group, total in inside.rewards.items()}
    bandit, info = bandits.update(
        training.step_key(narrow, training.SELECT),
        state.bandit,
        selection=selection,
        rewards=rewards,
        discount=pieces.discount,
    )
    return DceState(loop, bandit, last), info


def fused(pieces: Pieces, state: DceState, data: PyTree) -> tuple[DceState, dict[str, Array]]:
    """`enter`, one step and `leave` as one program: a selection per step (R = 1)."""
    inside, metrics = observe(pieces, enter(pieces, state), data)
    state, info = leave(pieces, state, inside)
    return state, {**metrics, "bad_rewards": info.bad_rewards}


def commit(pieces: Pieces, state: DceState, score: ScoreFn = scores.best) -> SlabState:
    """Cuts the final slab: the K best channels of every group by mean reward."""
    return enter(pieces._replace(score=score), state)


def settle(pieces: Pieces, state: DceState) -> DceState:
    """Brings idle elements up to date, where they catch up at all."""
    if not pieces.catch_up:
        return state
    step = state.loop.step
    params = idle.settle(pieces.catch_up, state.loop.params, state.last, step)
    last = jax.tree.map(lambda leaf: jnp.full(leaf.shape, step, jnp.int32), state.last)
    return state._replace(loop=state.loop._replace(params=params), last=last)
