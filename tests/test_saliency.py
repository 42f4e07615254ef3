"""Signals against gates, per-example gradients, finite differences and closed forms."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from nets import (
    IMAGES,
    ConvNet,
    DepthwiseNet,
    batch,
    channel_map,
    cross_entropy,
    evidence,
    split,
    variables,
    x64,
)

from dce_jax import channels, forward, networks, saliency
from dce_jax.types import Evidence

leaky_relu = functools.partial(nn.leaky_relu, negative_slope=0.1)


@functools.cache
def found(activation, train=True):
    module = ConvNet(activation=activation)
    return evidence(module, variables(module), batch(), train=train)


@pytest.mark.parametrize("train", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("activation", [nn.relu, leaky_relu], ids=["relu", "leaky_relu"])
def test_norm_taylor_is_the_gates_gradient_behind_a_homogeneous_activation(activation, train):
    seen = found(activation, train)
    free = saliency.norm_taylor(ConvNet().reward_norms()).value(seen)
    gated = saliency.batch_gate_taylor().value(seen)
    assert set(free) == set(gated) == {"a", "b"}
    for group in free:
        assert np.max(gated[group]) > 1e-3
        np.testing.assert_allclose(free[group], gated[group], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("activation", [nn.gelu, nn.relu6], ids=["gelu", "relu6"])
def test_norm_taylor_is_not_the_gates_gradient_behind_other_activations(activation):
    # ReLU6 differs only where it clips: the norm's outputs must reach beyond 6.
    seen = found(activation) if activation is nn.gelu else clipped_evidence()
    free = saliency.norm_taylor(ConvNet().reward_norms()).value(seen)
    gated = saliency.batch_gate_taylor().value(seen)
    for group in free:
        assert np.max(np.abs(free[group] - gated[group]) / np.max(gated[group])) > 0.01


def clipped_evidence():
    module = ConvNet(activation=nn.relu6)
    wide = jax.tree.map(lambda leaf: leaf * 6.0 if leaf.ndim == 1 else leaf, variables(module))
    return evidence(module, wide, batch())


def test_norm_taylor_is_not_identically_zero_on_a_vgg():
    net = networks.VGG(depths=(1, 1), widths=FrozenDict(conv0=4, conv1=5), num_classes=3)
    example = jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.float32)
    seen = evidence(net, variables(net, example), batch(shape=(4, 4, 3)))
    values = saliency.norm_taylor(net.reward_norms()).value(seen)
    gated = saliency.batch_gate_taylor().value(seen)
    for group in net.widths:
        assert np.min(values[group]) > 1e-6
        np.testing.assert_allclose(values[group], gated[group], rtol=1e-3, atol=1e-6)


def test_a_norm_before_a_per_channel_map_and_another_norm_says_nothing():
    module = DepthwiseNet()
    seen = evidence(module, variables(module), batch())
    early = saliency.norm_taylor({"a": (("early",),)}).value(seen)["a"]
    late = saliency.norm_taylor({"a": (("late",),)}).value(seen)["a"]
    assert np.max(early) < 1e-3 * np.max(late)
    assert np.min(late) > 1e-5


def test_terms_of_several_norms_are_added_before_the_absolute_value():
    params = {n: {"scale": jnp.ones(2), "bias": jnp.zeros(2)} for n in ("p", "q")}
    grads = {
        "p": {"scale": jnp.asarray([3.0, 1.0]), "bias": jnp.ones(2)},
        "q": {"scale": jnp.asarray([-2.0, -4.0]), "bias": jnp.ones(2)},
    }
    signal = saliency.norm_taylor({"a": (("p",), ("q",))})
    np.testing.assert_array_equal(signal.value(Evidence(params, grads, {}))["a"], [1.0, 3.0])


def test_norms_with_one_vector_and_unknown_norms():
    params, grads = {"p": {"bias": jnp.asarray([2.0])}}, {"p": {"bias": jnp.asarray([3.0])}}
    seen = Evidence(params, grads, {})
    assert saliency.norm_taylor({"a": (("p",),)}).value(seen)["a"] == 6.0
    with pytest.raises(ValueError, match=r"no parameter q: 'q' is not in \['p'\]"):
        saliency.norm_taylor({"a": (("q",),)}).value(seen)


# Gates.


def gated_loss(module, tree, train):
    params, state = split(tree)

    def loss(gates, images, labels):
        named_gates = {f"gate:{group}": value for group, value in gates.items()}
        logits, _ = forward.apply(module, params, state, images, train=train, gates=named_gates)
        return cross_entropy(logits, labels)

    return loss


def unit_gates(size, dtype=jnp.float32):
    return {g: jnp.ones((size, c), dtype) for g, c in ConvNet().widths.items()}


def test_gates_in_inference_mode_are_the_single_examples_gradients():
    data, size = batch(), 6
    loss = gated_loss(ConvNet(), variables(ConvNet()), train=False)

    def one(image, label):
        return jax.grad(loss)(unit_gates(1), image[None], label[None])

    single = jax.jit(jax.vmap(one))(data["image"], data["label"])
    seen = found(nn.relu, train=False)
    per_example = {group: np.asarray(value)[:, 0] for group, value in single.items()}
    for group, each in per_example.items():
        assert np.max(np.abs(each)) > 1e-3
        np.testing.assert_allclose(seen.gates[group][0] * size, each, rtol=1e-4, atol=1e-6)
    values = {
        "gate_taylor": {g: np.mean(np.abs(each), axis=0) for g, each in per_example.items()},
        "batch_gate_taylor": {g: np.abs(np.mean(each, axis=0)) for g, each in per_example.items()},
        "fisher": {g: 0.5 * np.mean(each**2, axis=0) for g, each in per_example.items()},
    }
    for make in (saliency.gate_taylor, saliency.batch_gate_taylor, saliency.fisher):
        signal = make()
        assert signal.needs_gates
        got = signal.value(seen)
        for group, expected in values[signal.name].items():
            np.testing.assert_allclose(got[group], expected, rtol=1e-4, atol=1e-7)


def test_gates_in_training_mode_are_finite_differences_of_the_batch_loss():
    module, size = ConvNet(), 4
    data = batch(size=size)
    with x64(), jax.numpy_dtype_promotion("standard"):  # Flax's batch norm promotes silently
        wide = module.clone(dtype=jnp.float64)
        tree = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables(module))
        images = np.asarray(data["image"], np.float64)
        loss = gated_loss(wide, tree, train=True)
        gates = unit_gates(size, jnp.float64)
        run = jax.jit(lambda g: loss(g, images, data["label"]))
        gradient, step = jax.jit(jax.grad(run))(gates), 1e-6
        for group, width in module.widths.items():
            assert gradient[group].dtype == jnp.float64
            for b, c in [(0, 0), (1, width - 1), (3, 1), (2, 2)]:
                up, down = (
                    {**gates, group: gates[group].at[b, c].add(sign * step)} for sign in (1, -1)
                )
                slope = (float(run(up)) - float(run(down))) / (2 * step)
                np.testing.assert_allclose(gradient[group][b, c], slope, rtol=1e-5, atol=1e-9)


def test_training_mode_gates_hold_terms_of_other_examples():
    # The first group's gate reaches the second norm's batch statistics, and so every example.
    training, inference = found(nn.relu, True), found(nn.relu, False)
    gap = np.max(np.abs(training.gates["a"][0] - inference.gates["a"][0]))
    assert gap > 0.05 * np.max(np.abs(inference.gates["a"][0]))


def test_several_gates_of_a_group_are_one_gate():
    one = jnp.asarray([[1.0, -2.0], [3.0, 4.0]])
    seen = Evidence({}, {}, {"a": (one, -0.5 * one)})
    np.testing.assert_array_equal(saliency.gate_taylor().value(seen)["a"], [2.0, 3.0])
    np.testing.assert_array_equal(saliency.batch_gate_taylor().value(seen)["a"], [2.0, 1.0])
    np.testing.assert_array_equal(saliency.fisher().value(seen)["a"], [2.5, 5.0])


def test_without_a_gates_collection_a_gate_is_the_identity():
    module = ConvNet()
    params, state = split(variables(module))
    x = batch()["image"]

    def run(gates):
        return forward.apply(module, params, state, x, train=False, gates=gates)[0]

    ones = {f"gate:{g}": jnp.ones((6, c)) for g, c in module.widths.items()}
    # Every gate costs one product, and only where gates are handed in.
    bare, gated = (str(jax.make_jaxpr(run)(gates)).count("= mul ") for gates in ({}, ones))
    assert gated == bare + 2
    np.testing.assert_allclose(jax.jit(run)({}), jax.jit(run)(ones), rtol=1e-6)
    assert set(forward.gate_shapes(module, IMAGES)) == set(ones)


# Weights and norms against closed forms.


def test_weight_signals_and_norm_scale_are_their_closed_forms():
    seen = found(nn.relu)
    kernels = channels.producers(channel_map(ConvNet()))
    l1 = saliency.weight_l1(kernels).value(seen)
    l2 = saliency.weight_l2(kernels).value(seen)
    scale = saliency.norm_scale(ConvNet().reward_norms()).value(seen)
    for group in ("a", "b"):
        kernel = np.asarray(seen.params[f"conv_{group}"]["kernel"], np.float64)
        flat = kernel.reshape(-1, kernel.shape[-1])
        np.testing.assert_allclose(l1[group], np.abs(flat).sum(axis=0), rtol=1e-5)
        np.testing.assert_allclose(l2[group], np.linalg.norm(flat, axis=0), rtol=1e-5)
        gamma = np.asarray(seen.params[f"norm_{group}"]["scale"])
        np.testing.assert_array_equal(scale[group], np.abs(gamma))


def test_weights_of_several_kernels_add_up():
    params = {"p": {"kernel": jnp.asarray([[3.0, 1.0]])}, "q": {"kernel": jnp.asarray([[-4.0, 0]])}}
    kernels = {"a": (("p", "kernel"), ("q", "kernel"))}
    seen = Evidence(params, {}, {})
    np.testing.assert_array_equal(saliency.weight_l1(kernels).value(seen)["a"], [7.0, 1.0])
    np.testing.assert_array_equal(saliency.weight_l2(kernels).value(seen)["a"], [5.0, 1.0])


# Scaling.


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 4.0, 2.0], [0.25, 1.0, 0.5]),
        ([0.0, 0.0], [0.0, 0.0]),
        ([np.nan, 2.0, 1.0], [np.nan, 1.0, 0.5]),
        ([np.inf, 2.0, 1.0], [np.inf, 1.0, 0.5]),
        ([np.nan, np.inf], [np.nan, np.inf]),
        ([np.nan, 0.0], [np.nan, 0.0]),
        ([7.0], [1.0]),
    ],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_scaling_to_unit(values, expected, dtype):
    found = saliency.to_unit({"a": jnp.asarray(values, dtype)})["a"]
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, np.asarray(expected, np.float32))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 400.0, 2.0], [0.0, 1.0, 0.5]),
        ([3.0, 1.0, 3.0, 2.0, 3.0], [0.75, 0.0, 0.75, 0.25, 0.75]),
        ([0.0, 0.0], [0.5, 0.5]),
        ([-5.0, 7.0, -6.0], [0.5, 1.0, 0.0]),
        ([np.nan, 2.0, 1.0], [np.nan, 1.0, 0.0]),
        ([np.inf, 2.0, -np.inf, 1.0, 3.0], [np.inf, 0.5, -np.inf, 0.0, 1.0]),
        ([np.nan, 7.0], [np.nan, 1.0]),
        ([np.nan], [np.nan]),
        ([0.0], [1.0]),
    ],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_ranks(values, expected, dtype):
    found = jax.jit(saliency.to_ranks)({"a": jnp.asarray(values, dtype)})["a"]
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, np.asarray(expected, np.float32))


def test_ranks_are_shares_of_pairs_won():
    values = np.random.default_rng(0).integers(0, 20, 33).astype(np.float32)
    won = (values[:, None] > values).sum(1) + 0.5 * ((values[:, None] == values).sum(1) - 1)
    found = saliency.to_ranks({"a": jnp.asarray(values)}, signed=True)["a"]
    np.testing.assert_allclose(found, won / 32, rtol=1e-6)


def test_a_signal_that_says_nothing_of_a_group_is_refused():
    signal = saliency.norm_taylor({})
    saliency.check_cover(signal, {"a": jnp.ones(2)}, ("a",))
    message = r"'norm_taylor' has no value for groups \['b'\]: declare .* reward_norms\(\)"
    with pytest.raises(ValueError, match=message):
        saliency.check_cover(signal, {"a": jnp.ones(2)}, ("a", "b"))
