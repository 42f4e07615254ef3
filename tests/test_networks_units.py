"""Norm, ReLU and gates in one, against the three one after another."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

from dce_jax import budget, forward, networks, step, training
from dce_jax import channels as maps
from dce_jax.networks import gates, layers, units
from experiments import bench, timing, variants

PARTS = {"a": 3, "b": 2}


class Unit(nn.Module):
    """One place; ``plain`` writes norm, ReLU and gates one after another."""

    plain: bool = False
    train: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        if not self.plain:
            return units.norm_relu(self, x, PARTS, name="norm", train=self.train, dtype=self.dtype)
        y = layers.norm(tuple(PARTS), name="norm", train=self.train, dtype=self.dtype)(x)
        return gates.gate_parts(self, nn.relu(y), PARTS)


def variables(dtype=jnp.float32):
    key = jax.random.key(0)
    x = 2 * jax.random.normal(key, (4, 3, 3, 5), dtype) + 1
    with jax.numpy_dtype_promotion("standard"):
        found = nn.unbox(Unit(dtype=dtype).init(key, x))
    draw = partial(jax.random.uniform, shape=(5,), minval=0.5, maxval=2.0)
    keys = jax.random.split(jax.random.key(1), 4)
    params = {"scale": draw(keys[0]), "bias": draw(keys[1]) - 1}
    stats = {"mean": draw(keys[2]), "var": draw(keys[3])}
    assert jax.tree.structure(found["params"]["norm"]) == jax.tree.structure(params)
    return {"params": {"norm": params}, "batch_stats": {"norm": stats}}, x


def ones(value=1.0, dtype=jnp.float32):
    return {f"gate:{g}": jnp.full((4, size), value, dtype) for g, size in PARTS.items()}


def run(module, held, x):
    # Flax's norm subtracts float32 means of bfloat16 images.
    with jax.numpy_dtype_promotion("standard"):
        return jax.jit(partial(module.apply, mutable=["batch_stats"]))(held, x)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("train", [True, False])
def test_with_gates_of_one_output_and_statistics_are_the_norms_bit_for_bit(train, dtype):
    held, x = variables(dtype)
    module = Unit(train=train, dtype=dtype)
    expected, stats = run(module.clone(plain=True), held, x)
    y, found = run(module, {**held, "gates": ones(dtype=dtype)}, x)
    assert y.dtype == expected.dtype == dtype
    np.testing.assert_array_equal(y, expected)
    jax.tree.map(np.testing.assert_array_equal, found, stats)
    moved = found["batch_stats"]["norm"]["mean"] != held["batch_stats"]["norm"]["mean"]
    assert np.all(moved) == train


def total(module, x, params, gated, held):
    weights = jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
    all_held = {"params": params, "batch_stats": held["batch_stats"], "gates": gated}
    y, _ = module.apply(all_held, x, mutable=["batch_stats"])
    return jnp.sum(weights * y * y)


@pytest.mark.parametrize("value", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("train", [True, False])
def test_value_and_gradients_are_those_of_a_gate_behind_the_relu(train, value):
    held, x = variables()
    module = Unit(train=train)

    def both(module):
        of = partial(total, module)
        return jax.value_and_grad(of, argnums=(0, 1, 2))(x, held["params"], ones(value), held)

    close = partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-4)
    jax.tree.map(close, both(module), both(module.clone(plain=True)))


def test_gates_of_some_groups_leave_the_others_alone():
    held, x = variables()
    some = {"gate:b": jnp.full((4, 2), 0.5)}
    y, _ = run(Unit(), {**held, "gates": some}, x)
    full, _ = run(Unit(plain=True), held, x)
    np.testing.assert_array_equal(y[..., :3], full[..., :3])
    np.testing.assert_allclose(y[..., 3:], 0.5 * full[..., 3:], rtol=1e-6)


def test_a_tap_sees_what_it_saw_behind_the_relu():
    held, x = variables()
    seen = []

    def tap(path, parts, y):
        seen.append((path, dict(parts), y))
        return 2 * y

    with gates.tapping(tap):
        y, _ = Unit().apply({**held, "gates": ones(0.5)}, x, mutable=["batch_stats"])
    full, _ = run(Unit(plain=True), held, x)
    (path, parts, watched) = seen[0]
    assert (path, parts, len(seen)) == ((), PARTS, 1)
    np.testing.assert_allclose(watched, full, rtol=1e-5)
    np.testing.assert_allclose(y, full, rtol=1e-5)  # twice, and halved by the gates


def test_per_example_signals_need_no_memory_of_their_own():
    widths = FrozenDict({f"conv{i}": 16 for i in range(4)})
    module = networks.VGG(depths=(2, 2), widths=widths, num_classes=10)
    shared = bench.prepare(module, batch=16, image_size=16, learning_rate=0.1, dispatch=1)
    half = budget.from_fraction(shared.channels.full, 0.5)
    thin = maps.with_widths(module, half.compact)
    wide = bench.initial(shared, module)

    def temporaries(signal):
        pieces = variants.pieces(shared, half, thin, signal)
        inside = jax.eval_shape(partial(step.enter, pieces), step.start_dce(pieces, wide))
        program = timing.compiled(partial(step.observe, pieces), inside, shared.data)
        return program.memory.temporaries

    loop = bench.initial(shared, thin)
    plain = partial(
        training.plain, shared.tx, forward.classification_loss(thin), training.whole_batch
    )
    narrow = timing.compiled(plain, loop, shared.data).memory.temporaries
    assert temporaries("norm_taylor") <= 1.05 * narrow
    assert temporaries("gate_taylor") <= 1.15 * narrow
    assert temporaries("fisher") <= 1.15 * narrow
