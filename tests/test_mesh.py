"""Several devices: every one decides the same, and together they are one device up to rounding."""

import functools
import math

import families
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from costs import quick
from flax.core import FrozenDict
from hypothesis import given, settings
from hypothesis import strategies as st
from meshes import check_copies, cut, fused, lowered, mesh_of, over, place
from nets import batch, bits, channel_map, mask, same_bits, x64
from steps import halves, host, setup

from dce_jax import allocate, bandit, channels, forward, networks, saliency, scores, step, training
from dce_jax import mesh as meshes
from dce_jax.networks.densenet import densenet_widths
from dce_jax.networks.stages import group_widths
from dce_jax.parts import norm_parts
from experiments.collectives import collectives, is_gradient

NETS = {
    "vgg": networks.VGG((1, 1), FrozenDict({"conv0": 8, "conv1": 16}), 3),
    "resnet": networks.ResNet((1, 1), group_widths((1, 1), (4, 8)), 3),
    "dense": networks.DenseNet((1, 1), densenet_widths((1, 1), stem=4, growth=6), 3),
}
EXAMPLES, DEVICES = 16, 8
TX = optax.sgd(0.05, momentum=0.9)
UCB = functools.partial(scores.ucb, alpha=0.1)
CASES = [("vgg", False), ("resnet", True)]  # each is a compilation or two


def pieces_and_state(name, dtype=jnp.float32, **options):
    """Half of every group's channels, chosen by confidence bounds."""
    module, bud = NETS[name], halves(NETS[name])
    parts = norm_parts(channel_map(module, families.EXAMPLE), bud.compact)
    signal = saliency.norm_taylor(module.reward_norms(), parts)
    options = {"score": UCB, **options, "signal": options.get("signal") or signal}
    pieces, state = setup(module, bud, TX, example=families.EXAMPLE, **options)
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
def one_device(name, dtype, signal=None):
    """A step of a selection each on one device, and the state to begin with."""
    pieces, state = pieces_and_state(name, dtype, signal=signal, gates=signal is not None)
    return families.quick_jit(functools.partial(step.fused, pieces)), state


@functools.cache
def many_devices(name, dtype, sharded, signal=None, devices=DEVICES):
    """The same on several devices, with its batches."""
    mesh = mesh_of(devices)
    pieces, state = pieces_and_state(name, dtype, signal=signal, gates=signal is not None)
    data = [cut(mesh, each) for each in images(dtype)]
    run, state = fused(mesh, pieces, state, data[0], sharded=sharded)
    return run, state, data


def both(name, steps, dtype, *, sharded, signal=None, devices=DEVICES):
    """A run on one device and the same run on several."""
    run, state = one_device(name, dtype, signal)
    one = walk(run, state, images(dtype), steps)
    run, state, data = many_devices(name, dtype, sharded, signal, devices)
    return one, walk(run, state, data, steps)


def check_same_run(one, many, atol, devices=DEVICES):
    """The same selections at every step, alike on every device, and close arrays at the end."""
    (state, seated), (other, seated_many) = one, many
    for alone, together in zip(seated, seated_many, strict=True):
        assert check_copies(together, devices) == len(alone)
        same_bits(host(alone), host(together))
    check_copies(other, devices)
    ours, theirs = host(state.loop._replace(key=())), host(other.loop._replace(key=()))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)
    assert len({str(host(each)) for each in seated}) > min(3, len(seated) - 1)


@pytest.mark.parametrize(("name", "sharded"), CASES)
def test_in_float64_eight_devices_take_the_steps_of_one(name, sharded):
    # Flax's batch norm asks what float64 and float32 make together.
    with x64(), jax.numpy_dtype_promotion("standard"):
        one, many = both(name, 200, jnp.float64, sharded=sharded)
        assert jax.tree.leaves(many[0].loop.params)[0].dtype == jnp.float64
        check_same_run(one, many, 1e-9)
        check_same_budgets(name, one[0], many[0])
        run, _, data = many_devices(name, jnp.float64, sharded)
        check_idle_bits(pieces_and_state(name)[0], many[0], run(many[0], data[0])[0])


# One device decides as it does beside any number of others, whatever network they share.
@pytest.mark.parametrize(("name", "devices"), [("vgg", 2), ("dense", 4)])
def test_in_float64_a_few_devices_take_the_steps_of_one(name, devices):
    with x64(), jax.numpy_dtype_promotion("standard"):
        one, many = both(name, 60, jnp.float64, sharded=False, devices=devices)
        check_same_run(one, many, 1e-9, devices)
        check_same_budgets(name, one[0], many[0])


def check_same_budgets(name, one, many):
    """Two runs learn the same budgets on every scale, for MACs and for parameters: several."""
    found, other = (learned(name, state) for state in (one, many))
    assert found == other and len({str(each) for each in found}) > 1


def learned(name, state):
    """The budgets that a run would learn of its bandit: half of what the network costs."""
    module, example = NETS[name], families.EXAMPLE
    pieces = pieces_and_state(name)[0]
    means = {g: bandit.arms(state.bandit, g).mean_C for g in pieces.budget.contested}
    return [
        allocate.budget(pieces.full, scale(means), 0.5, cost_of).compact
        for scale in (allocate.as_they_are, allocate.by_max, allocate.by_l2, allocate.by_mean)
        for cost_of in quick(module, example).values()
    ]


def check_idle_bits(pieces, before, after):
    """Asserts that a step left alone what it had not selected, and moved something else."""
    chosen = {g: np.flatnonzero(seated) for g, seated in after.bandit.seated.items()}
    moved = 0
    for collection, names in families.names_of(pieces):
        pairs = (jax.tree.leaves(host(collection(each.loop))) for each in (before, after))
        for old, new, axes in zip(*pairs, jax.tree.leaves(names), strict=True):
            touched = mask(axes, chosen, pieces.full, old.shape)
            np.testing.assert_array_equal(bits(old[~touched]), bits(new[~touched]))
            moved += np.sum(old[touched] != new[touched])
    assert moved > 0


# With rewards of single examples, too, which gates hold.
@pytest.mark.parametrize(("name", "signal"), [("vgg", saliency.gate_taylor()), ("resnet", None)])
def test_in_float32_eight_devices_begin_as_one_does(name, signal):
    one, many = both(name, 10, jnp.float32, sharded=False, signal=signal)
    check_same_run(one, many, 1e-5)
    for group, sums in one[0].bandit.sums.items():
        assert np.max(sums) > 0.5
        np.testing.assert_allclose(many[0].bandit.sums[group], sums, atol=1e-4)


# Where things lie.


def test_sharded_states_are_cut_and_slabs_and_decisions_are_whole():
    mesh = mesh_of(DEVICES)
    pieces, state = pieces_and_state("vgg")
    ages = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.int32), state.loop.params)
    placed = place(mesh, state._replace(last=ages), sharded=True)
    kernel = placed.loop.params["conv1"]["kernel"]
    assert kernel.shape == (3, 3, 8, 16)
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(3, 3, 1, 16)}
    moments = jax.tree.leaves(placed.loop.opt_state)
    params = [each.sharding for each in jax.tree.leaves(placed.loop.params)]
    assert set(params) == {each.sharding for each in moments}
    assert params == [each.sharding for each in jax.tree.leaves(placed.last)]
    whole = {
        "statistics": placed.loop.model_state,
        "bandit": placed.bandit,
        "other": place(mesh, jnp.zeros((16,)), sharded=True),
    }
    for name, tree in whole.items():
        assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(tree)), name
    slab = jax.eval_shape(functools.partial(step.enter, pieces), state)
    slab = jax.tree.leaves(meshes.shardings(mesh, slab, sharded=True))
    assert len(slab) > 12 and all(where.is_fully_replicated for where in slab)


def test_a_mesh_takes_every_device_in_order():
    assert meshes.data_mesh().devices.tolist() == sorted(jax.devices(), key=lambda d: d.id)


@given(st.lists(st.integers(0, 12), max_size=4), st.integers(1, 8))
@settings(deadline=None, max_examples=60)
def test_a_leaf_is_cut_along_the_first_axis_that_the_devices_divide(shape, count):
    leaf = jax.ShapeDtypeStruct(tuple(shape), jnp.float32)
    found = meshes.by_axis(mesh_of(count), leaf).shard_shape(leaf.shape)
    axes = [axis for axis, size in enumerate(shape) if size and size % count == 0]
    expected = list(shape)
    if axes:
        expected[axes[0]] //= count
    assert found == tuple(expected)


# What crosses the devices.


@functools.cache
def sent(name, sharded):
    """Program -> what it sends between eight devices; and the slab that a step trains."""
    mesh = mesh_of(DEVICES)
    pieces, state = pieces_and_state(name)
    pieces, state = over(mesh, pieces), place(mesh, state, sharded=sharded)
    options, data = {"sharded": sharded}, cut(mesh, images()[0])
    inside = jax.eval_shape(functools.partial(step.enter, pieces), state)
    inside = jax.tree.map(lambda leaf: placed_shape(mesh, leaf), inside)
    found = {
        "enter": lowered(mesh, functools.partial(step.enter, pieces), state, **options),
        "observe": lowered(mesh, functools.partial(step.observe, pieces), inside, data, **options),
        "leave": lowered(mesh, functools.partial(step.leave, pieces), state, inside, **options),
    }
    texts = {name: program.compile().as_text() for name, program in found.items()}
    return {name: collectives(text) for name, text in texts.items()}, inside.loop, state.loop


def placed_shape(mesh, leaf):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=meshes.replicated(mesh))


def sizes(arrays):
    """Element counts of arrays or collectives; XLA may transpose what it sends."""
    return sorted(math.prod(each.shape) for each in arrays)


@pytest.mark.parametrize(("name", "sharded"), [("vgg", False), ("resnet", True)])
def test_a_step_sends_gradients_of_the_slabs_size_statistics_and_two_numbers(name, sharded):
    programs, slab, _ = sent(name, sharded)
    backward = [each for each in programs["observe"] if is_gradient(each)]
    forward_pass = [each for each in programs["observe"] if not is_gradient(each)]
    norms = [leaf for leaf in jax.tree.leaves(slab.model_state) if leaf.ndim == 1]
    # Backward, a norm sends the gradient of its mean beside those of its two vectors.
    trained = jax.tree.leaves(slab.params)
    assert sizes(backward) == sizes([*trained, *norms[::2]])
    assert sum(each.bytes for each in backward) == sum(
        leaf.size * leaf.dtype.itemsize for leaf in [*trained, *norms[::2]]
    )
    # Forward: mean and mean square per norm, the loss and the accuracy. Rewards cost nothing.
    assert sizes(forward_pass) == sizes([*norms, jnp.zeros(()), jnp.zeros(())])
    assert {each.kind for each in programs["observe"]} == {"all-reduce"}


def test_replicated_states_are_selected_and_scattered_without_a_word():
    programs, _, _ = sent("vgg", False)
    assert programs["enter"] == programs["leave"] == []


def test_sharded_states_send_slabs_when_gathered_and_indices_when_scattered():
    programs, slab, wide = sent("resnet", True)
    expected = []
    for collection in ("params", "opt_state"):
        narrow, full = (jax.tree.leaves(getattr(each, collection)) for each in (slab, wide))
        expected += [
            math.prod((*whole.shape[:axis], *part.shape[axis:]))
            for part, whole in zip(narrow, full, strict=True)
            for axis, name in enumerate(whole.sharding.spec)
            if name == meshes.AXIS
        ]
    assert sizes(programs["enter"]) == sorted(expected)
    channels = {leaf.size for leaf in jax.tree.leaves(wide.model_state)}
    assert {each.dtype for each in programs["leave"]} == {"s32"}
    assert {math.prod(each.shape) for each in programs["leave"]} <= channels


@pytest.mark.parametrize("name", NETS)
def test_a_dense_step_gathers_each_cut_parameter_once_and_cuts_no_layer(name):
    mesh, loop = mesh_of(DEVICES), pieces_and_state(name)[1].loop
    loss = meshes.whole_params(mesh, forward.classification_loss(NETS[name]))
    dense = functools.partial(
        training.plain, TX, loss, meshes.cut_batches(mesh, training.whole_batch)
    )
    placed = place(mesh, loop, sharded=True)
    program = lowered(mesh, dense, placed, cut(mesh, images()[0]), sharded=True)
    found = [each for each in collectives(program.compile().as_text()) if each.kind == "all-gather"]
    split = [leaf for leaf in jax.tree.leaves(placed.params) if not leaf.is_fully_replicated]
    assert sizes(found) == sizes(split)
