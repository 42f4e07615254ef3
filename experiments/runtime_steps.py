"""Training steps of per-input execution, and the state that they carry."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dce_jax import runtime
from dce_jax.runtime import Policy, costs, lcnet, rnp, systems
from dce_jax.runtime.systems import FBS
from dce_jax.types import Array, PyTree
from experiments.runtime_setup import BOTH, DECIDE, NETWORK, RANDOM, Job

_KNOBS = 8  # in a batch, where images share them
_MEMORY = 0.98  # of the loss that alpha is the inverse of


class State(NamedTuple):
    """Where a run stands.

    Attributes:
      variables: of the network, collection -> tree.
      deciding: parameters of what decides.
      moments: of the network's optimizer.
      deciding_moments: of the other.
      typical: float32[], running mean of the loss under random decisions (`rnp`).
    """

    variables: PyTree
    deciding: PyTree
    moments: PyTree
    deciding_moments: PyTree
    typical: Array


Step = Callable[[State, PyTree, Array, Array], tuple[State, dict[str, Array]]]
"""``(state, data, step int32[], key) -> (state, metrics)``."""


def start(job: Job) -> State:
    """The state before the first step."""
    deciding = systems.initial(job.system, jax.random.fold_in(jax.random.key(job.config.seed), 2))
    return State(
        jax.tree.map(jnp.copy, job.variables),  # steps donate theirs
        deciding,
        job.network.init(job.variables["params"]),
        job.deciding.init(deciding),
        jnp.float32(1.0),
    )


def programs(job: Job) -> dict[str, Step]:
    """Phase -> its step, compiled once; states are donated."""
    bodies = {
        RANDOM: partial(_network, job, RANDOM),
        NETWORK: partial(_network, job, NETWORK),
        DECIDE: partial(_decide, job),
        BOTH: partial(_both, job),
    }
    return {name: jax.jit(body, donate_argnums=0) for name, body in bodies.items()}


def _losses(logits: Array, batch: dict[str, Array]) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


def _metrics(job: Job, outcome: runtime.Outcome, batch: dict[str, Array], loss: Array) -> Any:
    right = jnp.argmax(outcome.logits, axis=-1) == batch["label"]
    return {
        "loss": loss,
        "accuracy": jnp.mean(right, dtype=jnp.float32),
        "macs_share": costs.share(job.system.costs, outcome.choices, job.system.deciding).mean(),
    }


def _run(
    job: Job, variables: PyTree, batch: dict[str, Array], policy: Policy, *, train: bool
) -> runtime.Outcome:
    system = job.system
    return runtime.run(system.chain, system.levels, variables, batch["image"], policy, train=train)


def _updated(job: Job, state: State, grads: PyTree, variables: PyTree) -> tuple[PyTree, PyTree]:
    """The network's variables and moments after a step."""
    params = state.variables["params"]
    updates, moments = job.network.update(grads, state.moments, params)
    return {**variables, "params": optax.apply_updates(params, updates)}, moments


def _decided(job: Job, state: State, grads: PyTree) -> tuple[PyTree, PyTree]:
    """What decides and its moments after a step."""
    updates, moments = job.deciding.update(grads, state.deciding_moments, state.deciding)
    return optax.apply_updates(state.deciding, updates), moments


def _network(
    job: Job, phase: str, state: State, data: PyTree, step: Array, key: Array
) -> tuple[State, dict[str, Array]]:
    """Trains the network alone, under random decisions or under those of what decides.

    The latter explore as what decides does when it is trained itself: a network that has only met
    greedy ones forgets the others, and what decides can no longer choose them (our choice).
    """
    batch = job.source.batch_fn(data, step, key)
    place, noise = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, step), 1))
    knob = systems.at(job.system, _places(place, batch))
    policy = systems.policy(
        job.system, state.deciding, knob, key=noise, epsilon=exploration(job, step)
    )
    if phase == RANDOM:
        policy = rnp.random_policy(len(job.system.levels[0]), noise)

    def loss_of(params: PyTree) -> tuple[Array, runtime.Outcome]:
        outcome = _run(job, {**state.variables, "params": params}, batch, policy, train=True)
        return _losses(outcome.logits, batch).mean(), outcome

    (loss, outcome), grads = jax.value_and_grad(loss_of, has_aux=True)(state.variables["params"])
    variables, moments = _updated(job, state, grads, outcome.variables)
    typical = state.typical
    if phase == RANDOM:
        typical = _MEMORY * typical + (1 - _MEMORY) * loss
    state = state._replace(variables=variables, moments=moments, typical=typical)
    return state, _metrics(job, outcome, batch, loss)


def _decide(
    job: Job, state: State, data: PyTree, step: Array, key: Array
) -> tuple[State, dict[str, Array]]:
    """Trains what decides, by Q-learning on the network as it stands, in inference mode.

    What an image loses is counted from its loss in the whole network: how hard it is then does not
    drown what an action changes, and no action's rank is another (our choice).
    """
    batch = job.source.batch_fn(data, step, key)
    place, noise = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, step), 1))
    price = systems.at(job.system, _places(place, batch))
    epsilon = exploration(job, step)
    plain: Any = job.subject.scene.module.apply(state.variables, batch["image"], train=False)
    whole = _losses(plain, batch)

    def loss_of(deciding: PyTree) -> tuple[Array, Any]:
        policy = systems.policy(job.system, deciding, price, key=noise, epsilon=epsilon)
        outcome = _run(job, state.variables, batch, policy, train=False)
        losses = _losses(outcome.logits, batch)
        error = rnp.squared_error(
            outcome.notes,
            [choice.level for choice in outcome.choices],
            losses - whole,
            price,
            alpha=1.0 / state.typical,
            gamma=job.config.gamma,
        )
        return error, (outcome, losses.mean())

    (error, (outcome, loss)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.deciding)
    deciding, moments = _decided(job, state, grads)
    state = state._replace(deciding=deciding, deciding_moments=moments)
    return state, {**_metrics(job, outcome, batch, loss), "temporal_difference": error}


def exploration(job: Job, step: Array) -> Array:
    """Share of random decisions at a step: 1 where deciding begins, then down to ``epsilon``."""
    first = job.config.random * job.steps
    done = jnp.clip((step.astype(jnp.float32) - first) / max(1, job.steps - first), 0.0, 1.0)
    return 1.0 + (job.config.epsilon - 1.0) * done


def _places(key: Array, batch: dict[str, Array]) -> Array:
    """A place in the knob's span for every image."""
    return jax.random.uniform(key, batch["label"].shape, minval=-1.0, maxval=1.0)


def _few_places(key: Array, batch: dict[str, Array]) -> Array:
    """A place for every image; images share one of `_KNOBS`, for a budget is that of their mean.

    With one for the whole batch, each batch would be normalised by statistics of its own knob, and
    inference, at any knob, by the average over knobs.
    """
    size = batch["label"].shape[0]
    few = min(_KNOBS, size)
    return jax.random.uniform(key, (few,), minval=-1.0, maxval=1.0)[jnp.arange(size) % few]


def _both(
    job: Job, state: State, data: PyTree, step: Array, key: Array
) -> tuple[State, dict[str, Array]]:
    """Trains the network and what decides at once, at a few knobs drawn for the batch."""
    batch = job.source.batch_fn(data, step, key)
    place, noise = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, step), 1))
    knob = systems.at(job.system, _few_places(place, batch))
    left = 1.0 - step.astype(jnp.float32) / job.steps  # at the end decisions are those of use

    def loss_of(params: PyTree, deciding: PyTree) -> tuple[Array, Any]:
        policy = systems.policy(job.system, deciding, knob, key=noise, noise=left)
        variables = {**state.variables, "params": params}
        outcome = _run(job, variables, batch, policy, train=True)
        loss = _losses(outcome.logits, batch).mean()
        return loss + _term(job, outcome, knob), (outcome, loss)

    grad = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)
    (_, (outcome, loss)), grads = grad(state.variables["params"], state.deciding)
    variables, moments = _updated(job, state, grads[0], outcome.variables)
    deciding, deciding_moments = _decided(job, state, grads[1])
    after = State(variables, deciding, moments, deciding_moments, state.typical)
    metrics = _metrics(job, outcome, batch, loss)
    if job.system.name != FBS:  # in training, what is not kept is computed all the same
        metrics["macs_share"] = lcnet.share(job.system.costs, outcome.notes).mean()
    return after, metrics


def _term(job: Job, outcome: runtime.Outcome, knob: Array) -> Array:
    if job.system.name == FBS:
        return job.config.sparsity * jnp.stack(outcome.notes).mean()
    return job.config.weight * lcnet.budget_term(job.system.costs, outcome.notes, knob)
