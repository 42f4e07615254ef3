"""What the latency command times: a network as it is, and the ways to run only what is decided."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dce_jax.runtime import (
    MASKED,
    SWITCHED,
    Execution,
    Policy,
    chunked,
    costs,
    run,
    systems,
)
from dce_jax.runtime.chain import TILES
from dce_jax.types import Array, PyTree
from experiments import timing
from experiments.latency_decisions import Draws
from experiments.latency_subject import Subject

FULL = "full"
IN_TILES = ", kernels in tiles"
IN_A_ROW = 8
"""Single images of a round: one after another through the same form, as a stream of them comes."""


class Form(NamedTuple):
    """A compiled way to run the network.

    Attributes:
      execution: how decisions are run; None: the network as it is, without any.
      program: compiled.
      variables: of the network, that it runs on.
    """

    execution: Execution | None
    program: timing.Program
    variables: PyTree

    @property
    def name(self) -> str:
        """``full``, or the execution's, and whether some kernels are in tiles."""
        if self.execution is None:
            return FULL
        return self.execution.name + (IN_TILES if TILES in self.variables else "")


def overruled(policy: Policy, levels_SB: Array) -> Policy:
    """A policy that decides, and is then told what to run.

    Whether it is told is known at run time only, so that no compiler can leave its work out.

    Args:
      policy: the decision network's.
      levels_SB: int32[sites, B], what runs; negative: what the policy decided.
    """

    def decide(site: int, pooled: Array, carry: Any) -> tuple[Any, Any, Any]:
        own, carry, note = policy(site, pooled, carry)
        told = levels_SB[site]
        return own._replace(level=jnp.where(told < 0, own.level, told)), carry, note

    return decide


def whole(subject: Subject) -> Callable[[PyTree, Array], Array]:
    """The network as it is: ``(variables, images) -> logits``."""
    module: Any = subject.module

    def logits(variables: PyTree, images: Array) -> Array:
        found: Array = module.apply(variables, images, train=False)
        return found

    return logits


def deciding(
    subject: Subject, execution: Execution
) -> Callable[[PyTree, Array, PyTree, Array, Array], Array]:
    """The network by a way to run decisions.

    Args:
      subject: network and system.
      execution: the way.

    Returns:
      ``(variables, images, params of the decision network, knob, levels int32[sites, B]) ->
      logits``; levels as `overruled` takes them.
    """
    system = subject.system

    def logits(
        variables: PyTree, images: Array, params: PyTree, knob: Array, levels_SB: Array
    ) -> Array:
        policy = overruled(systems.policy(system, params, knob), levels_SB)
        return run(system.chain, system.levels, variables, images, policy, execution).logits

    return logits


def computed(subject: Subject, form: Form, draws: Draws, chunk: int) -> float:
    """Mean share of the whole network's multiply-accumulates that a form computes.

    Args:
      subject: network and system.
      form: what runs.
      draws: what is decided.
      chunk: images in a chunk.
    """
    system = subject.system
    if form.execution is None:
        return 1.0
    if form.execution is MASKED:
        return 1.0 + system.deciding / system.costs.full
    if form.execution.shared:
        return draws.share
    found = [
        costs.chunked_share(system.costs, levels_SB, chunk, system.deciding)
        for levels_SB in draws.levels_RSB
    ]
    return sum(found) / len(found)


def ways(subject: Subject, batch: int, chunk: int) -> tuple[tuple[Execution, bool], ...]:
    """Ways to run a batch, and whether on tiles: one image by a switch, several in chunks.

    Args:
      subject: network and system.
      batch: B.
      chunk: images in a chunk.
    """
    if batch > 1:
        loop, unrolled = chunked(chunk), chunked(chunk, unrolled=True)
        return ((loop, False), (unrolled, False), (MASKED, False))
    tiles = jax.eval_shape(partial(_tiled, subject), subject.variables).get(TILES)
    on_tiles = ((SWITCHED, True),) if tiles else ()
    return (*on_tiles, (SWITCHED, False), (MASKED, False))


def _tiled(subject: Subject, variables: PyTree) -> PyTree:
    image = jax.ShapeDtypeStruct((1, *subject.images.shape[1:]), jnp.float32)
    return systems.tiled(subject.system, variables, image)


def forms(
    subject: Subject, *, batch: int, chunk: int, tell: Callable[[str], None]
) -> tuple[Form, ...]:
    """Compiles everything that is timed at one batch size; decisions are arguments.

    Args:
      subject: network and system.
      batch: B.
      chunk: images in a chunk.
      tell: told the name of what is compiled next.
    """
    images = jax.ShapeDtypeStruct((batch, *subject.images.shape[1:]), jnp.float32)
    levels = jax.ShapeDtypeStruct((len(subject.system.levels), batch), jnp.int32)
    rest = (subject.params, _knob(subject), levels)
    tell(FULL)
    first = timing.compiled(whole(subject), subject.variables, images, donate=False)
    found = [Form(None, first, subject.variables)]
    for execution, on_tiles in ways(subject, batch, chunk):
        tell(execution.name)
        variables = _tiled(subject, subject.variables) if on_tiles else subject.variables
        program = timing.compiled(
            deciding(subject, execution), variables, images, *rest, donate=False
        )
        found.append(Form(execution, program, variables))
    return tuple(found)


def in_a_row(batch: int) -> int:
    """How many batches of a round a form runs in a row."""
    return IN_A_ROW if batch == 1 else 1


def contender(subject: Subject, form: Form, draws: Draws) -> timing.Contender:
    """A form to be timed: its state counts rounds, each of which takes the next decisions.

    A form runs `in_a_row` of them, each when the one before has ended, so that but for the first
    the caches hold what this form uses, not what the one before it used.

    Args:
      subject: network and system.
      form: compiled.
      draws: decisions; the full network takes their number and batch size alone.
    """
    decisions, _, batch = draws.levels_RSB.shape
    images = _batches(subject.images, decisions, batch)
    levels = [jax.device_put(each) for each in draws.levels_RSB] if form.execution else []
    knob, row = _knob(subject), in_a_row(batch)

    def turn(done: int, variables: PyTree) -> tuple[int, dict[str, Array]]:
        for at in range(done * row, (done + 1) * row):
            which = at % decisions
            more = (subject.params, knob, levels[which]) if form.execution else ()
            logits = jax.block_until_ready(form.program.call(variables, images[which], *more))
        return done + 1, {"logits": logits}

    # Warming up takes the last decisions, the first round the first.
    return timing.Contender(form.name, turn, lambda: decisions // row - 1, form.variables, row)


def _knob(subject: Subject) -> Array:
    return jnp.asarray(subject.knob, jnp.float32)


def _batches(images: Array, rounds: int, batch: int) -> Sequence[Array]:
    """Images of every round: the next ones, from the beginning again where they end."""
    if batch == images.shape[0]:
        return [images] * rounds
    every = (jnp.arange(rounds * batch) % images.shape[0]).reshape(rounds, batch)
    return [images[rows] for rows in every]
