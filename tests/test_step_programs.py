"""Step programs: how often they compile, what they donate, and what they refuse."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict
from nets import ConvNet, batch, same_bits, split, variables
from steps import dense_setup, halves, host, jitted, setup

from dce_jax import budget, forward, saliency, scores, step, training

MODULE = ConvNet()
HALF, FULL = halves(MODULE), budget.full(MODULE.widths)
BOTH = budget.Budget((("a", 4, 2), ("b", 4, 2)))  # of the network without convolutions
ADAMW, MOMENTUM = optax.adamw(1e-2, weight_decay=0.1), optax.sgd(0.05, momentum=0.9)

COMPILED: list[str] = []


@pytest.fixture(autouse=True)
def _promotion():
    # Optax's Adam raises a float to the power of its int32 count.
    with jax.numpy_dtype_promotion("standard"):
        yield


def count_compilations(name, duration, **details):
    del duration, details
    if name == "/jax/core/compile/backend_compile_duration":
        COMPILED.append(name)


jax.monitoring.register_event_duration_secs_listener(count_compilations)


def scratch_and_committed():
    pieces, state = setup(MODULE, HALF, ADAMW)
    committed = jax.eval_shape(functools.partial(step.commit, pieces), state).loop
    thin = MODULE.clone(widths=FrozenDict(HALF.compact))
    params, model_state = split(variables(thin))
    scratch = training.start(params, model_state, ADAMW, jax.random.key(4))
    own = jitted(training.plain, ADAMW, forward.classification_loss(thin), training.whole_batch)
    ours = jitted(training.plain, pieces.tx, pieces.loss, pieces.batch_fn)
    return own, scratch, ours, committed


def test_the_committed_steps_lowered_text_is_scratchs():
    own, scratch, ours, committed = scratch_and_committed()
    text = ours.lower(committed, batch()).as_text()
    assert text == own.lower(scratch, batch()).as_text()
    assert text.count("stablehlo.convolution") >= 4


# Compilations and transfers.


@functools.cache
def donating(bud):
    pieces, _ = dense_setup(bud, score=scores.random)
    donated = {
        name: jitted(getattr(step, name), pieces, donate=(0,))
        for name in ("observe", "leave", "fused")
    }
    return pieces, {"enter": jitted(step.enter, pieces), **donated}


def run_hundred(bud):
    state, run = dense_setup(bud)[1], donating(bud)[1]
    data = jax.device_put([batch(i, shape=(5,)) for i in range(4)])
    jax.block_until_ready((state, data))
    before, compiled = len(COMPILED), []
    with jax.transfer_guard("disallow"):
        for i in range(50):
            state, _ = run["fused"](state, data[i % 4])
            inside = run["enter"](state)
            inside, _ = run["observe"](inside, data[(i + 1) % 4])
            state, _ = run["leave"](state, inside)
            compiled.append(len(COMPILED) - before)
    return compiled, state


def test_a_hundred_changing_steps_compile_every_program_once_per_budget():
    donating.cache_clear()
    for bud in (BOTH, budget.Budget((("a", 4, 1), ("b", 4, 3)))):
        compiled, state = run_hundred(bud)
        # Four programs, in the first round; nothing after it.
        assert compiled == [4] * 50
        assert int(state.loop.step) == 100
        for plays in state.bandit.plays.values():
            assert 0 < plays.min() <= plays.max() < 100  # the selections did change


def test_step_programs_never_call_the_host():
    pieces, state = setup(MODULE, HALF, ADAMW)
    text = jitted(step.fused, pieces).lower(state, batch()).as_text()
    assert "callback" not in text
    assert "infeed" not in text
    assert "outfeed" not in text


# Donation.


def buffers(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]


def pointers(tree):
    arrays = [leaf for leaf in buffers(tree) if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    return {leaf.unsafe_buffer_pointer() for leaf in arrays}


def test_donated_states_are_deleted_and_the_full_state_survives_slab_steps():
    (pieces, run), state = donating(BOTH), dense_setup(BOTH)[1]
    before, inside = host(state), run["enter"](state)
    for r in range(3):
        used, (inside, _) = inside, run["observe"](inside, batch(r, shape=(5,)))
        assert all(leaf.is_deleted() for leaf in buffers(used.loop.params))
        assert all(leaf.is_deleted() for leaf in buffers(used.loop.opt_state[0].trace))
    assert not any(leaf.is_deleted() for leaf in buffers(state))
    same_bits(host(state), before)
    # Not even a leaf that is never cut is shared, where the backend would have let it pass.
    assert not pointers(state) & pointers(run["enter"](state))
    after, _ = run["leave"](state, inside)
    names = jax.tree.leaves(pieces.params_names)
    for leaf, name in zip(buffers(state.loop.params), names, strict=True):
        # A leaf that is never cut is replaced by the slab's: its old buffer takes no part.
        assert leaf.is_deleted() or not name.groups
    assert not any(leaf.is_deleted() for leaf in buffers(inside))
    assert int(after.loop.step) == 3


def test_a_slab_shares_no_buffer_with_the_full_state_outside_jit_either():
    pieces, state = setup(MODULE, FULL, MOMENTUM)
    inside = step.cut(pieces, state, {})  # nothing is cut: every leaf could be handed through
    assert not pointers(state) & pointers(inside)


# Randomness, scans, errors.


def test_a_run_is_decided_by_its_key_and_each_step_draws_anew():
    def noisy(data, count, key):
        noise = jax.random.normal(key, data["image"].shape)
        return {**data, "image": data["image"] + noise}

    pieces, state = dense_setup(batch_fn=noisy)
    run, data = jitted(step.fused, pieces), batch(shape=(5,))
    (one, first), (same, again) = run(state, data), run(state, data)
    same_bits(host(one), host(same))
    assert first["loss"] == again["loss"]
    later = state._replace(loop=state.loop._replace(step=jnp.int32(1)))
    assert run(later, data)[1]["loss"] != first["loss"]


def test_a_scan_of_steps_is_the_steps_one_by_one():
    pieces, state = dense_setup()
    many, data, losses = state, batch(shape=(5,)), []
    fused = jitted(step.fused, pieces)
    for _ in range(3):
        state, metrics = fused(state, data)
        losses.append(float(metrics["loss"]))
    scanned = jax.jit(training.repeat(functools.partial(step.fused, pieces), 3))
    many, metrics = scanned(many, data)
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-4)
    same_bits(host(many.bandit.plays), host(state.bandit.plays))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bud": budget.full({"a": 4, "b": 7})}, r"budget is for widths .*'b': 7.* has .*'b': 6"),
        ({"discount": 0.0}, r"discount is 0\.0: it must be above 0 and at most 1"),
        ({"discount": 1.5}, r"discount is 1\.5"),
        ({"signal": saliency.fisher()}, r"'fisher' reads unit gates, .* call dce_jax\.networks\.g"),
        ({"tx": optax.adafactor(1e-3)}, r"optimizer state leaf 0/v_row/conv_a/kernel"),
    ],
)
def test_pieces_refuse_what_does_not_fit(options, message):
    options = {"bud": HALF, "tx": ADAMW, **options}
    with pytest.raises(ValueError, match=message):
        setup(MODULE, **options)


def test_a_signal_without_a_contested_group_is_refused_when_the_step_is_traced():
    signal = saliency.norm_taylor({"a": (("norm_a",),)})
    pieces, state = setup(MODULE, HALF, ADAMW, signal=signal)
    with pytest.raises(ValueError, match=r"no value for groups \['b'\]"):
        jax.eval_shape(functools.partial(step.fused, pieces), state, batch())


def test_nothing_in_a_state_is_weakly_typed():
    pieces, state = setup(MODULE, HALF, optax.inject_hyperparams(optax.adamw)(learning_rate=1e-3))
    after, _ = jax.eval_shape(functools.partial(step.fused, pieces), state, batch())
    before, then = (
        [(leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False)) for leaf in leaves]
        for leaves in (jax.tree.leaves(state), jax.tree.leaves(after))
    )
    assert not any(weak for _, _, weak in before)
    assert before == then


@pytest.mark.parametrize("function", [step.enter, step.observe, step.leave, step.fused])
def test_step_functions_take_pieces_and_state_first(function):
    assert list(inspect.signature(function).parameters)[:2] == ["pieces", "state"]
