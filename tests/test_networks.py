"""Networks: published counts, small images, compute types, names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from nets import bits, split, variables

from dce_jax import cost, forward, networks, probe
from dce_jax.networks.vgg import LAYOUTS


def image(size, channels=3, examples=1):
    return jax.ShapeDtypeStruct((examples, size, size, channels), jnp.float32)


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [("vgg16", 14_724_042, 313.2), ("vgg19", 20_035_018, 398.1)],
)
def test_published_counts_at_full_width(name, parameters, macs):
    net = networks.build(name, num_classes=10)
    shapes = forward.shapes(net, image(32))
    assert cost.parameters(shapes["params"]) == parameters
    assert round(cost.macs(net.apply, shapes, image(32)) / 1e6, 1) == macs


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_every_network_builds_with_a_group_per_convolution(name):
    net = networks.build(name, num_classes=7)
    shapes = forward.shapes(net, image(32))
    sizes = [size for stage in LAYOUTS[name] for size in stage]
    assert list(net.widths.values()) == sizes
    for group, size in net.widths.items():
        assert shapes["params"][group]["kernel"].names[-1] == group
        assert shapes["params"][group]["kernel"].unbox().shape[-1] == size
    assert jax.eval_shape(net.apply, shapes, image(32)).shape == (1, 7)
    assert set(net.reward_norms()) == set(net.widths)


def test_width_multiplier_scales_every_layer():
    net = networks.build("vgg-digits", num_classes=10, width=0.04)
    assert list(net.widths.values()) == [1, 1, 2, 2, 5, 5]


@pytest.mark.parametrize(("name", "size"), [("vgg-digits", 8), ("vgg16", 32)])
def test_images_that_would_vanish_are_refused(name, size):
    net = networks.build(name, num_classes=10, width=0.1)
    forward.shapes(net, image(size, 1))
    with pytest.raises(ValueError, match=f"smallest size is {size}x{size}; pad"):
        forward.shapes(net, image(size - 1, 1))


def test_wrong_rank_is_refused():
    net = networks.build("vgg-digits", num_classes=10)
    with pytest.raises(ValueError, match=r"images must be float\[B, H, W, D\], got shape \(2, 8\)"):
        forward.shapes(net, jax.ShapeDtypeStruct((2, 8), jnp.float32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: networks.build("vgg17", num_classes=10), r"'vgg17'; did you mean 'vgg1\d'\? The"),
        (lambda: networks.build("??", num_classes=10), r"unknown network '\?\?'\. The networks"),
        (lambda: networks.vgg("vgg", num_classes=10), r"unknown VGG 'vgg': one of \['vgg-digits'"),
        (
            lambda: networks.build("vgg11", num_classes=10, width=0.0),
            r"width multiplier 0\.0 must be positive",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bfloat16_computes_narrow_and_keeps_float32_parameters():
    net = networks.build("vgg-digits", num_classes=10, width=0.05, dtype=jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):  # Flax's own batch norm promotes silently
        shapes = forward.shapes(net, image(8, 1))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    with jax.numpy_dtype_promotion("standard"):
        lowered = jax.jit(net.apply).lower(shapes, image(8, 1)).as_text()
        assert jax.eval_shape(net.apply, shapes, image(8, 1)).dtype == jnp.float32
    found = {
        kind: [line for line in lowered.splitlines() if f"stablehlo.{kind}" in line]
        for kind in ("convolution", "dot_general")
    }
    # The two layers at 2x2 are products, and so is the head.
    assert {kind: len(lines) for kind, lines in found.items()} == {
        "convolution": 4,
        "dot_general": 3,
    }
    assert all(
        "xbf16>" in line and "xf32>" not in line for lines in found.values() for line in lines
    )


def test_the_channel_map_of_a_vgg_is_proved_and_the_norms_follow_the_train_flag():
    net = networks.VGG(depths=(1, 1), widths=FrozenDict(conv0=2, conv1=3), num_classes=2)
    example = image(4, 1, examples=2)
    assert probe.channel_map(net, example).widths == (("conv0", 2), ("conv1", 3))
    params, state = split(variables(net, example))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 1)), jnp.float32)
    _, kept = forward.apply(net, params, state, x, train=False)
    _, moved = forward.apply(net, params, state, x, train=True)
    assert kept is state
    old, new = (s["batch_stats"]["norm0"]["mean"] for s in (state, moved))
    assert not np.array_equal(bits(old), bits(new))
