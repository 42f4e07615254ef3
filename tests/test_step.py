"""The training step: identities, what stays untouched, compilations, donation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict
from nets import (
    IMAGES,
    ConvNet,
    MixNet,
    batch,
    bits,
    channel_map,
    evidence,
    mask,
    same_bits,
    split,
    variables,
)
from steps import dense_setup, halves, host, jitted, setup

from dce_jax import bandit, budget, compact, forward, saliency, slab, step, training

MODULE = ConvNet()
HALF = halves(MODULE)
FULL = budget.full(MODULE.widths)
ADAMW, MOMENTUM = optax.adamw(1e-2, weight_decay=0.1), optax.sgd(0.05, momentum=0.9)
OPTIMIZERS = {"sgd": MOMENTUM, "adamw": ADAMW}


@pytest.fixture(autouse=True)
def _promotion(request):
    # Optax's Adam raises a float to the power of its int32 count; under SGD all stays strict.
    params = getattr(request.node, "callspec", None)
    strict = params is not None and params.params.get("name") == "sgd"
    with jax.numpy_dtype_promotion("strict" if strict else "standard"):
        yield


@functools.cache
def programs(tx_name, signal_name="norm_taylor"):
    """Step programs at half width, compiled once for the whole file."""
    tx, gates = OPTIMIZERS[tx_name], signal_name != "norm_taylor"
    signal = saliency.gate_taylor() if gates else None
    pieces, _ = setup(MODULE, HALF, tx, signal=signal, gates=gates)
    names = ("enter", "observe", "leave", "fused")
    return pieces, {name: jitted(getattr(step, name), pieces) for name in names}


def fresh(tx_name):
    return setup(MODULE, HALF, OPTIMIZERS[tx_name])[1]


# K = C is the plain dense step, written here once more without the library's step.


@functools.cache
def dense_reference(name, steps=5):
    """Parameters, model state, optimizer state and loss after every step."""
    tx, history = OPTIMIZERS[name], []
    params, state = split(variables(MODULE))
    opt_state = tx.init(params)

    @jax.jit
    def one(params, state, opt_state, data):
        def loss(params):
            logits, new = MODULE.apply(
                {"params": params, **state}, data["image"], train=True, mutable=["batch_stats"]
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, data["label"])
            return losses.mean(), new

        (value, new), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state_ = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), new, opt_state_, value

    for i in range(steps):
        params, state, opt_state, value = one(params, state, opt_state, batch(i))
        history.append((params, state, opt_state, value))
    return history


def check_close(ours, expected):
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_full_budget_is_the_plain_dense_optax_step(name):
    pieces, state = setup(MODULE, FULL, OPTIMIZERS[name])
    run = jitted(step.fused, pieces)
    for i, expected in enumerate(dense_reference(name)):
        state, metrics = run(state, batch(i))
        loop = state.loop
        ours = (loop.params, loop.model_state, loop.opt_state, metrics["loss"])
        check_close(ours, expected)


def test_a_selection_of_every_channel_is_the_plain_dense_step_too():
    # Here gather and scatter really run, with every index.
    pieces, state = setup(MODULE, FULL, MOMENTUM)
    everything = {g: jnp.arange(c, dtype=jnp.int32) for g, c in FULL.full.items()}

    @jax.jit
    def run(state, data):
        inside, metrics = step.observe(pieces, step.cut(pieces, state, everything), data)
        return step.leave(pieces, state, inside)[0], metrics

    for i in range(3):
        state, _ = run(state, batch(i))
        expected = dense_reference("sgd")[i][:3]
        check_close((state.loop.params, state.loop.model_state, state.loop.opt_state), expected)


# What was not selected keeps its bits.


def check_untouched(pieces, before, after, selection):
    pairs = [
        (before.loop.params, after.loop.params, pieces.params_names),
        (before.loop.model_state, after.loop.model_state, pieces.state_names),
        (before.loop.opt_state, after.loop.opt_state, pieces.opt_names),
    ]
    for old_tree, new_tree, names in pairs:
        moved = 0
        for old, new, name in zip(*map(jax.tree.leaves, (old_tree, new_tree, names)), strict=True):
            touched = mask(name, selection, pieces.full, old.shape)
            np.testing.assert_array_equal(bits(old[~touched]), bits(new[~touched]))
            if name.groups:
                assert np.any(old[touched] != new[touched])
                moved += np.sum(~touched)
        assert moved > 0 or not jax.tree.leaves(old_tree)


def selected(before, after):
    """What a step selected, read off the bandit's plays."""
    return {
        g: np.flatnonzero(np.asarray(after.bandit.plays[g]) > np.asarray(before.bandit.plays[g]))
        for g in before.bandit.plays
    }


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_unselected_entries_keep_their_bits_in_a_fused_step(name):
    pieces, run = programs(name)
    state, seen = fresh(name), set()
    for i in range(6):
        before = host(state)
        state, metrics = run["fused"](state, batch(i))
        after = host(state)
        selection = selected(before, after)
        assert {g: len(s) for g, s in selection.items()} == HALF.compact
        check_untouched(pieces, before, after, selection)
        seen.add(tuple(selection["b"].tolist()))
        assert int(metrics["bad_rewards"]) == 0
    assert len(seen) > 1  # the selections did change


def test_unselected_entries_keep_their_bits_through_enter_observe_leave():
    pieces, run = programs("adamw")
    state = fresh("adamw")
    for i in range(3):
        before, inside = host(state), run["enter"](state)
        for r in range(3):
            inside, _ = run["observe"](inside, batch(3 * i + r))
        state, _ = run["leave"](state, inside)
        assert int(state.loop.step) == 3 * (i + 1)
        assert int(state.bandit.selections) == i + 1
        check_untouched(pieces, before, host(state), selected(before, host(state)))


def test_leave_without_a_step_gives_every_bit_back():
    _, run = programs("adamw")
    state, _ = run["fused"](fresh("adamw"), batch())
    back, _ = run["leave"](state, run["enter"](state))
    same_bits(host(back.loop), host(state.loop))


# R steps of one selection are R plain steps of the narrow network.


def test_inner_steps_are_plain_narrow_training_of_the_slab():
    pieces, run = programs("adamw")
    state, _ = run["fused"](fresh("adamw"), batch(9))
    inside = run["enter"](state)
    narrow = jax.tree.map(jnp.copy, inside.loop)
    plain = jitted(training.plain, pieces.tx, pieces.loss, training.whole_batch, donate=(0,))
    for r in range(4):
        inside, metrics = run["observe"](inside, batch(r))
        used, (narrow, expected) = narrow, plain(narrow, batch(r))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(used.params))
        np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-6)
    for a, b in zip(*map(jax.tree.leaves, (host(inside.loop), host(narrow))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    after, _ = run["leave"](state, inside)
    again = slab.gather(after.loop.params, pieces.params_names, inside.selection, MODULE.widths)
    same_bits(host(again), host(inside.loop.params))


def test_rewards_of_a_selection_are_the_mean_of_its_steps():
    _, run = programs("adamw")
    state = fresh("adamw")
    inside, total = run["enter"](state), {}
    for r in range(3):
        before = inside.rewards
        inside, _ = run["observe"](inside, batch(r))
        for group, reward in inside.rewards.items():
            gained = np.asarray(reward) - np.asarray(before[group])
            assert gained.min() >= 0
            np.testing.assert_allclose(gained.max(), 1.0, rtol=1e-5)  # scaled per step and group
            total[group] = total.get(group, 0) + gained
    assert int(inside.taken) == 3
    after, _ = run["leave"](state, inside)
    for group, chosen in inside.selection.items():
        sums = np.zeros(MODULE.widths[group])
        sums[np.asarray(chosen)] = total[group] / 3
        np.testing.assert_allclose(after.bandit.sums[group], sums, rtol=1e-5)


def test_a_reward_is_the_signal_at_the_parameters_that_the_forward_pass_used():
    pieces, state = dense_setup()
    inside, data = jitted(step.enter, pieces)(state), batch(shape=(5,))
    tree = {"params": inside.loop.params, **inside.loop.model_state}
    seen = evidence(MixNet(widths=FrozenDict({"a": 2, "b": 4})), tree, data)
    expected = saliency.to_unit(pieces.signal.value(seen))["a"]
    after, _ = jitted(step.observe, pieces)(inside, data)
    np.testing.assert_allclose(after.rewards["a"], expected, rtol=1e-3, atol=1e-5)


def test_rewards_are_what_the_scaling_makes_of_the_signal():
    pieces, state = dense_setup()
    inside, data = jitted(step.enter, pieces)(state), batch(shape=(5,))
    by_max, _ = jitted(step.observe, pieces)(inside, data)
    ranked, _ = jitted(step.observe, pieces._replace(unit=saliency.to_ranks))(inside, data)
    for group, rewards in by_max.rewards.items():
        expected = saliency.to_ranks({group: rewards})[group]
        np.testing.assert_array_equal(ranked.rewards[group], expected)
    same_bits(host(ranked.loop.params), host(by_max.loop.params))


def test_gate_signals_reward_the_same_training():
    _, free = programs("adamw")
    pieces, gated = programs("adamw", "gate_taylor")
    one, _ = free["fused"](fresh("adamw"), batch())
    two, _ = gated["fused"](fresh("adamw"), batch())
    for a, b in zip(*map(jax.tree.leaves, (one.loop.params, two.loop.params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert pieces.signal.needs_gates
    assert not np.allclose(one.bandit.sums["b"], two.bandit.sums["b"], atol=1e-4)


def test_rewards_that_are_no_numbers_are_counted():
    signal = saliency.norm_taylor(MODULE.reward_norms())

    def value(given):
        found = signal.value(given)
        return {group: values.at[0].set(jnp.nan) for group, values in found.items()}

    broken = signal._replace(value=value)
    pieces, state = setup(MODULE, HALF, MOMENTUM, signal=broken)
    after, metrics = jitted(step.fused, pieces)(state, batch())
    assert int(metrics["bad_rewards"]) == 2  # one channel of each of two groups
    inside, _ = jitted(step.observe, pieces)(step.enter(pieces, state), batch())
    _, info = jitted(step.leave, pieces)(state, inside)
    assert int(info.bad_rewards) == 2
    assert all(np.all(np.isfinite(sums)) for sums in after.bandit.sums.values())


def weighed(params, state, gates, given, key):
    """The loss times what a batch holds beside its examples."""
    value, rest = forward.classification_loss(MODULE)(params, state, gates, given, key)
    return value * given["weight"] * jnp.mean(given.get("classes", 1.0)), rest


def test_a_batch_may_hold_numbers_that_are_not_per_example():
    loop, shapes = fresh("adamw").loop, forward.gate_shapes(MODULE, IMAGES)
    given = {**batch(), "weight": jnp.float32(2.0), "classes": jnp.ones(3)}
    found, *_ = training.evidence_of(weighed, loop, given, None)
    once, *_ = training.evidence_of(forward.classification_loss(MODULE), loop, batch(), None)
    for a, b in zip(*map(jax.tree.leaves, (found.grads, once.grads)), strict=True):
        np.testing.assert_allclose(a, 2 * b, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"a gate per example, .*classes.*3.* close the loss over"):
        training.evidence_of(weighed, loop, given, shapes)
    del given["classes"]
    assert set(training.evidence_of(weighed, loop, given, shapes)[0].gates) == {"a", "b"}


# Commit: the K best, then nothing but the narrow network's ordinary step.


def test_commit_takes_the_best_means_and_the_compact_model_is_the_slab():
    pieces, state = setup(MODULE, HALF, ADAMW)
    means = {"a": [0.1, 0.9, 0.0, 0.4], "b": [0.5, 0.0, 0.7, 0.2, 0.9, 0.1]}
    sums = {g: jnp.asarray(m, jnp.float32) * 2 for g, m in means.items()}
    plays = {g: jnp.full(len(m), 2.0, jnp.float32) for g, m in means.items()}
    # An arm never played has the highest hopes, but no seat in the end.
    plays["a"] = plays["a"].at[0].set(0.0)
    state = state._replace(bandit=bandit.BanditState(plays, sums, *state.bandit[2:]))
    inside = jitted(step.commit, pieces)(state)
    assert {g: s.tolist() for g, s in inside.selection.items()} == {"a": [1, 3], "b": [0, 2, 4]}
    tree = {"params": state.loop.params, **state.loop.model_state}
    model = compact.extract(channel_map(MODULE), HALF, tree, inside.selection)
    same_bits(
        host(model.variables), host({"params": inside.loop.params, **inside.loop.model_state})
    )
