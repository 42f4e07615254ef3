"""Newcomers that join quietly: nobody reads them at first, and nobody else is touched."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict
from nets import ConcatNet, ConvNet, batch, channel_map, same_bits, variables
from steps import halves, setup

from dce_jax import bandit, budget, newcomers, step

MODULE = ConvNet()
TX = optax.sgd(0.05, momentum=0.9)
FIRST = {"a": [0, 1], "b": [0, 2, 4]}
MIXED = {"a": [1, 3], "b": [0, 1, 4]}  # 3 of a, 1 of b are new
STRANGERS = {"a": [2, 3], "b": [1, 3, 5]}


def chosen(lists):
    return {group: jnp.asarray(indices, jnp.int32) for group, indices in lists.items()}


def after_one_selection(quiet, bud=None):
    pieces, state = setup(MODULE, bud or halves(MODULE), TX, quiet=quiet)
    # A budget that grows contests no group any more, but the bandit remembers.
    state = step.start_dce(pieces, state.loop, tuple(MODULE.widths))
    known, _ = bandit.update(
        jax.random.key(0),
        state.bandit,
        selection=chosen(FIRST),
        rewards={group: jnp.ones(len(indices)) for group, indices in FIRST.items()},
    )
    return pieces, state._replace(bandit=known)


def logits(pieces, params, state):
    thin = MODULE.clone(widths=FrozenDict(pieces.budget.compact))
    return thin.apply({"params": params, **state}, batch(0)["image"])


def test_nobody_reads_a_newcomer():
    pieces, state = after_one_selection(True)
    loop = step.cut(pieces, state, chosen(MIXED)).loop
    before = logits(pieces, loop.params, loop.model_state)
    kernel = loop.params["conv_a"]["kernel"].at[..., 1].add(1.0)  # channel 3 of a
    params = {**loop.params, "conv_a": {"kernel": kernel}}
    np.testing.assert_array_equal(before, logits(pieces, params, loop.model_state))
    kernel = loop.params["conv_a"]["kernel"].at[..., 0].add(1.0)  # channel 1 of a is read
    params = {**loop.params, "conv_a": {"kernel": kernel}}
    assert np.any(before != logits(pieces, params, loop.model_state))


def test_only_the_newcomers_rows_change():
    pieces, state = after_one_selection(True)
    plain = step.cut(pieces._replace(quiet=False), state, chosen(MIXED)).loop
    quiet = step.cut(pieces, state, chosen(MIXED)).loop
    expected = jax.tree.map(np.array, plain.params)
    expected["conv_b"]["kernel"][:, :, 1] = 0  # reads a
    expected["head"]["kernel"][1] = 0  # reads b
    same_bits(quiet.params, expected)
    same_bits(quiet.opt_state, plain.opt_state)
    same_bits(quiet.model_state, plain.model_state)


@pytest.mark.parametrize("selection", [FIRST, STRANGERS], ids=["all_old", "all_new"])
def test_a_selection_without_both_kinds_stays_as_it_is(selection):
    pieces, state = after_one_selection(True)
    plain = step.cut(pieces._replace(quiet=False), state, chosen(selection)).loop
    same_bits(step.cut(pieces, state, chosen(selection)).loop.params, plain.params)


def test_a_budget_that_grows_to_all_channels_adds_the_others_quietly():
    pieces, state = after_one_selection(True, budget.full(MODULE.widths))
    loop = step.cut(pieces, state, {}).loop
    kernel = np.array(loop.params["conv_b"]["kernel"])
    assert not np.any(kernel[:, :, [2, 3]])
    assert np.all(np.any(kernel[:, :, [0, 1]], axis=(0, 1, 3)))
    head = np.array(loop.params["head"]["kernel"])
    assert not np.any(head[[1, 3, 5]])
    assert np.all(np.any(head[[0, 2, 4]], axis=1))


def test_a_consumer_of_several_groups_ignores_each_ones_newcomers():
    channels = channel_map(ConcatNet(), jax.ShapeDtypeStruct((4, 5), jnp.float32))
    params = variables(ConcatNet(), jax.ShapeDtypeStruct((4, 5), jnp.float32))["params"]
    new = {"a": jnp.asarray([True, False, False]), "c": jnp.asarray([False] * 4 + [True])}
    found = newcomers.quieted(params, channels.names("params", params), new, channels.full)
    expected = jax.tree.map(np.array, params)
    expected["both"]["kernel"][0] = 0
    expected["stream"]["kernel"][4] = 0
    expected["head"]["kernel"][4] = 0
    same_bits(found, expected)


def test_newcomers_learn_to_be_read():
    pieces, state = after_one_selection(True)
    inside = step.cut(pieces, state, chosen(MIXED))
    after, _ = jax.jit(lambda s, d: step.observe(pieces, s, d))(inside, batch(0))
    assert np.all(np.any(np.array(after.loop.params["head"]["kernel"]), axis=1))
