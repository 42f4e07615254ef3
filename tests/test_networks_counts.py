"""All networks: published counts, every shape at narrow widths, small images, compute types."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from families import TINY, check_counts, check_map_of_shapes, example, image

from dce_jax import budget, channels, cost, forward, networks

pytestmark = pytest.mark.one_set

# The ResNets for CIFAR count the parameter-free shortcut, ResNet-50 its stride in the 3x3.
PUBLISHED = {
    "resnet20": (32, 10, 269_722, 40.6),
    "resnet32": (32, 10, 464_154, 68.9),
    "resnet56": (32, 10, 853_018, 125.5),
    "resnet110": (32, 10, 1_727_962, 252.9),
    "resnet18": (224, 1000, 11_689_512, 1814.1),
    "resnet50": (224, 1000, 25_557_032, 4089.2),
    "resnet164": (32, 10, 1_703_258, 247.6),
    "densenet40": (32, 10, 1_019_722, 264.8),
    "densenet40-24": (32, 10, 1_059_298, 282.9),
    "densenet-bc100": (32, 10, 769_162, 287.9),
    "mobilenetv2": (224, 1000, 3_504_872, 300.8),
}

# Our own counts: 1x1 projections where stages meet; MobileNetV2 with two strides fewer.
OURS = {
    "resnet20-projection": (32, 10, 272_474, 40.8),
    "mobilenetv2-cifar": (32, 10, 2_236_682, 88.0),
}

SMALLEST = {
    "resnet20": 4,
    "resnet18": 32,
    "resnet50": 32,
    "resnet164": 4,
    "densenet40": 4,
    "mobilenetv2": 32,
    "mobilenetv2-cifar": 8,
}


@pytest.mark.parametrize("name", [*PUBLISHED, *OURS])
def test_counts_at_full_width(name):
    check_counts(name, *(PUBLISHED | OURS)[name])


@pytest.mark.parametrize("name", [*PUBLISHED, *OURS])
def test_the_map_foretells_every_shape_at_narrow_widths(name):
    check_map_of_shapes(name, (PUBLISHED | OURS)[name][0])


@pytest.mark.parametrize("name", SMALLEST)
def test_images_that_the_strides_use_up_are_refused(name):
    net, size = networks.build(name, num_classes=10, width=0.1), SMALLEST[name]
    forward.shapes(net, image(size))
    with pytest.raises(ValueError, match=f"smallest size is {size}x{size}; pad the images"):
        forward.shapes(net, image(size - 1))
    with pytest.raises(ValueError, match=r"must be float\[B, H, W, D\], got shape \(2, 8\)"):
        forward.shapes(net, jax.ShapeDtypeStruct((2, 8), jnp.float32))


@pytest.mark.parametrize(
    ("name", "some"),
    [
        ("resnet20", {"stage0": 2, "stage2": 8, "stage2_block2_conv0": 8}),
        ("resnet50", {"stem": 8, "stage3": 256, "stage3_block2_conv1": 64}),
        ("resnet164", {"stem": 2, "stage0": 8, "stage0_block17_conv1": 2}),
        ("densenet40", {"stem": 2, "block0_layer0": 1, "transition0": 14}),
        ("densenet-bc100", {"stem": 3, "block0_layer0_inner": 4, "transition0": 9}),
        ("mobilenetv2", {"stem": 4, "stage0": 2, "stage6_block0_hidden": 120, "last": 160}),
    ],
)
def test_the_width_multiplier_scales_every_group(name, some):
    widths = networks.build(name, num_classes=10, width=0.125).widths
    assert {group: widths[group] for group in some} == some
    with pytest.raises(ValueError, match=r"width multiplier -1 must be positive"):
        networks.build(name, num_classes=10, width=-1)


@pytest.mark.parametrize("family", TINY)
def test_bfloat16_computes_narrow_and_keeps_float32_parameters(family):
    net, images = TINY[family].clone(dtype=jnp.bfloat16), example(family)
    with jax.numpy_dtype_promotion("standard"):  # Flax's own batch norm promotes silently
        shapes = nn.unbox(forward.shapes(net, images))
        found = jax.make_jaxpr(net.apply)(shapes, images)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    assert [out.dtype for out in found.out_avals] == [jnp.float32]
    products = [e for e in equations(found.jaxpr) if e.primitive.name in PRODUCTS]
    assert len(products) >= 4  # VGG: three convolutions and the head
    assert {v.aval.dtype for e in products for v in e.invars} == {jnp.dtype("bfloat16")}


PRODUCTS = ("conv_general_dilated", "dot_general")


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            if hasattr(value, "jaxpr"):
                yield from equations(value.jaxpr)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: networks.build("resnet21", num_classes=2), r"'resnet21'; did you mean 'resnet"),
        (lambda: networks.resnet("x", num_classes=2), r"unknown ResNet 'x': one of \['resnet110'"),
        (lambda: networks.preact("x", num_classes=2), r"unknown pre-activation ResNet 'x'"),
        (lambda: networks.densenet("x", num_classes=2), r"unknown DenseNet 'x': one of \['dense"),
        (lambda: networks.mobilenet("x", num_classes=2), r"unknown MobileNet 'x': one of \['mob"),
        (
            lambda: forward.shapes(TINY["padding"].clone(shortcut="x"), example("padding")),
            r"unknown shortcut 'x': one of \['padding', 'projection'\]",
        ),
    ],
)
def test_unknown_names_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_depthwise_kernels_share_their_inputs_group():
    found = channels.build(TINY["mobile"], forward.shapes(TINY["mobile"], example("mobile")))
    places = channels.places(found, "stage1_block0_hidden")
    kernels = {p["path"]: p["axis"] for p in places if p["path"].endswith("kernel")}
    block = "params/stage1_block0"
    assert kernels == {
        f"{block}/conv0/kernel": 3,
        f"{block}/conv1/kernel": 3,
        f"{block}/conv2/kernel": 2,
    }
    shapes = {leaf.path: leaf.shape for leaf in found.leaves}
    assert shapes["stage1_block0", "conv1", "kernel"] == (3, 3, 1, 8)


def test_a_streams_group_is_one_per_stage_and_every_group_may_be_held_whole():
    net = networks.build("resnet20", num_classes=10)
    streams = [group for group in net.widths if "_" not in group]
    assert streams == ["stage0", "stage1", "stage2"]
    assert len(net.widths) == 3 + 9
    macs = {}
    for name, whole in (("inner", streams), ("streams", set(net.widths) - set(streams))):
        bud = budget.from_fraction(net.widths, 0.5, whole=whole)
        assert set(bud.contested) == set(net.widths) - set(whole)
        thin = channels.with_widths(net, bud.compact)
        macs[name] = cost.macs(thin.apply, forward.shapes(thin, image(32)), image(32))
    # Half of either halves every convolution but the first and the last layer.
    assert 0.49 < macs["inner"] / 40_551_040 < 0.52
    assert 0.49 < macs["streams"] / 40_551_040 < 0.52
