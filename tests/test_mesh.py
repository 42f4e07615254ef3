"""Several devices: every one decides the same, and together they are one device up to rounding."""

import functools

import families
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict
from meshes import check_copies, cut, fused, mesh_of
from nets import batch, same_bits, x64
from steps import halves, host, setup

from dce_jax import channels, forward, networks, scores, step
from dce_jax.networks.stages import group_widths

NETS = {
    "vgg": networks.VGG((1, 1), FrozenDict({"conv0": 8, "conv1": 16}), 3),
    "resnet": networks.ResNet((1, 1), group_widths((1, 1), (4, 8)), 3),
}
EXAMPLES, DEVICES = 16, 8
TX = optax.sgd(0.05, momentum=0.9)
UCB = functools.partial(scores.ucb, alpha=0.1)
CASES = [("vgg", False), ("vgg", True), ("resnet", True)]  # each is a compilation or two
some_cases = pytest.mark.parametrize(("name", "sharded"), CASES)


def pieces_and_state(name, dtype=jnp.float32, **options):
    """Half of every group's channels, chosen by confidence bounds."""
    module = NETS[name]
    options = {"score": UCB, **options}
    pieces, state = setup(module, halves(module), TX, example=families.EXAMPLE, **options)
    thin = channels.with_widths(module, pieces.budget.compact).clone(dtype=dtype)
    loss = forward.classification_loss(thin)
    return pieces._replace(loss=loss), state._replace(loop=wide(state.loop, dtype))


def wide(loop, dtype):
    """A loop whose parameters, moments and statistics have another floating-point type."""

    def one(leaf):
        return jnp.asarray(leaf, dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return loop._replace(
        **{
            name: jax.tree.map(one, getattr(loop, name))
            for name in ("params", "model_state", "opt_state")
        }
    )


def images(dtype=jnp.float32):
    """Four batches that a run takes in turn."""
    made = [batch(i, size=EXAMPLES) for i in range(4)]
    return [{**data, "image": data["image"].astype(dtype)} for data in made]


def walk(run, state, data, steps):
    """The state after some steps, and which channels each of them seated."""
    seated = []
    for i in range(steps):
        # XLA's CPU devices wait for one another in threads of one pool: one step at a time.
        state, _ = jax.block_until_ready(run(state, data[i % len(data)]))
        seated.append(state.bandit.seated)
    return state, seated


@functools.cache
def on_one(name, steps, dtype=jnp.float32, **options):
    pieces, state = pieces_and_state(name, dtype, **options)
    return walk(
        families.quick_jit(functools.partial(step.fused, pieces)), state, images(dtype), steps
    )


def on_many(name, steps, dtype=jnp.float32, *, sharded, **options):
    mesh = mesh_of(DEVICES)
    pieces, state = pieces_and_state(name, dtype, **options)
    data = [cut(mesh, each) for each in images(dtype)]
    run, state = fused(mesh, pieces, state, data[0], sharded=sharded)
    return walk(run, state, data, steps)


def check_same_run(one, many, atol):
    """The same selections at every step, alike on every device, and close arrays at the end."""
    (state, seated), (other, seated_many) = one, many
    for alone, together in zip(seated, seated_many, strict=True):
        assert check_copies(together, DEVICES) == len(alone)
        same_bits(host(alone), host(together))
    check_copies(other, DEVICES)
    ours, theirs = host(state.loop._replace(key=())), host(other.loop._replace(key=()))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)
    assert len({str(host(each)) for each in seated}) > min(3, len(seated) - 1)


@some_cases
def test_in_float64_eight_devices_take_the_steps_of_one(name, sharded):
    # Flax's batch norm asks what float64 and float32 make together.
    with x64(), jax.numpy_dtype_promotion("standard"):
        one = on_one(name, 200, jnp.float64)
        many = on_many(name, 200, jnp.float64, sharded=sharded)
        assert jax.tree.leaves(many[0].loop.params)[0].dtype == jnp.float64
        check_same_run(one, many, 1e-9)


@pytest.mark.parametrize("name", NETS)
def test_in_float32_eight_devices_begin_as_one_does(name):
    check_same_run(on_one(name, 10), on_many(name, 10, sharded=False), 1e-5)
