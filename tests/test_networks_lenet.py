"""LeNet-5: published counts, whole and narrow, in a step, in a compact model, and what it lacks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs
from families import quick_jit
from flax.core import FrozenDict
from nets import batch, channel_map, split, variables
from steps import halves, host, setup

from dce_jax import channels, compact, cost, forward, networks, saliency, signals, step
from experiments import train

DIGIT = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
SMALL = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
TINY = networks.LeNet(2, FrozenDict({"conv0": 4, "conv1": 6, "dense0": 8}), 3)


# Caffe's LeNet counts 431,080 parameters; its products: 24² 25 20, 8² 25 20 50, 800 500, 500 10.
@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [("lenet5", 431_080, 2_293_000), ("lenet-small", 20_522, 337_024)],
)
def test_counts_at_full_width(name, parameters, macs):
    net = networks.build(name, num_classes=10)
    shapes = forward.shapes(net, DIGIT)
    assert cost.parameters(shapes["params"]) == parameters
    assert cost.macs(net.apply, shapes, DIGIT) == macs


def test_flattened_inputs_follow_the_last_convolution():
    mapped = channel_map(TINY, jax.ShapeDtypeStruct((2, 20, 20, 3), jnp.float32))
    leaves = {channels.show(leaf.path): leaf for leaf in mapped.leaves}
    assert leaves["dense0/kernel"].names.axes == (("conv1",) * 4, ("dense0",))
    assert leaves["conv1/bias"].names.axes == (("conv1",),)


def test_images_that_leave_nothing_are_refused():
    forward.shapes(TINY, SMALL)
    with pytest.raises(ValueError, match="smallest size is 16x16"):
        forward.shapes(TINY, jax.ShapeDtypeStruct((2, 15, 16, 3), jnp.float32))
    with pytest.raises(ValueError, match="unknown LeNet 'lenet'"):
        networks.lenet("lenet", num_classes=3)


def test_a_step_trains_a_slab_and_the_compact_model_equals_it():
    signal, data = saliency.gate_taylor(), batch(0, size=4, shape=SMALL.shape[1:])
    pieces, state = setup(
        TINY, halves(TINY), optax.sgd(0.1), example=SMALL, signal=signal, gates=True
    )
    run = quick_jit(functools.partial(step.fused, pieces))
    before = host(state.loop.params)
    state, _ = run(state, data)
    assert np.any(before["conv1"]["bias"] != state.loop.params["conv1"]["bias"])
    slab = step.commit(pieces, state)
    mapped = channel_map(TINY, SMALL)
    model = compact.extract(mapped, pieces.budget, {"params": state.loop.params}, slab.selection)
    thin = channels.with_widths(TINY, pieces.budget.compact)
    inside, _ = forward.apply(thin, slab.loop.params, {}, data["image"], train=False)
    np.testing.assert_array_equal(inside, thin.apply(model.variables, data["image"]))


def test_signals_of_the_algebra_read_it():
    params, state = split(variables(TINY, SMALL))
    scene = signals.Scene(
        TINY, channel_map(TINY, SMALL), params, state, batch(0, shape=SMALL.shape[1:])
    )
    names = ("activations.taylor.abs_sum.l2", "weights.x.l1.none", "units.g.l2.cardinality")
    found = signals.values([signals.parse(name) for name in names], scene)
    assert all(set(values) == set(TINY.widths) for values in found.values())


def test_a_run_reads_its_gates_and_has_no_norms_to_read(tmp_path):
    images = runs.write_images(tmp_path / "images.npz", side=16)
    run = {"network": "lenet-small", "width": 0.5, "batch_size": 4}
    with pytest.raises(ValueError, match=r"LeNet declares none in reward_norms.*use gate_taylor"):
        train.train(runs.settings(images, **run), tmp_path / "norms")
    settings = runs.settings(images, signal="gate_taylor", **run)
    with runs.cheap(tmp_path / "cache"):
        found = train.train(settings, tmp_path / "gates")
    assert found["widths"] == {"conv0": 2, "conv1": 4, "dense0": 16}
