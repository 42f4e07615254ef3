"""Couplings that are wrong on purpose are refused by the names of their groups or leaves."""

import re
import sys

import jax.numpy as jnp
import pytest
from families import EXAMPLE
from flax.core import FrozenDict

from dce_jax import networks, probe
from dce_jax.networks import layers
from dce_jax.networks.densenet import densenet_widths
from dce_jax.networks.mobilenet import mobilenet_widths
from dce_jax.networks.preact import preact_widths
from dce_jax.networks.stages import group_widths

WIDTHS = {"stage0": 4, "stage0_block0_conv0": 1, "stage1": 12, "stage1_block0_conv0": 1}
INNER = ["stage0_block0_conv0", "stage0_block0_conv1"]
CONV, DEPTHWISE = layers.conv, layers.depthwise


def renamed(before_name, over=CONV, **changed):
    """``over``, but one layer, known by what it reads, is given other groups."""

    def conv(widths, before, group, *, name, **options):
        if (before, name) == before_name:
            before, group = changed.get("before", before), changed.get("group", group)
        return over(widths, before, group, name=name, **options)

    return conv


def test_a_block_that_writes_another_stages_stream_is_refused_by_both_names(monkeypatch):
    net = networks.ResNet((1, 1), group_widths((1, 1), (8, 8)), 3, shortcut="padding")
    conv = renamed(("stage1_block0_conv0", "conv1"), group="stage0")
    monkeypatch.setattr(layers, "conv", conv)
    message = r"when channels of \['stage0', 'stage1'\] are left out .* must share a name"
    with pytest.raises(ValueError, match=message):
        probe.channel_map(net, EXAMPLE)


def test_a_projection_into_the_wrong_stream_is_refused_by_both_names(monkeypatch):
    net = networks.PreactResNet((2, 1), preact_widths((2, 1), (2, 2), stem=3), 3)
    monkeypatch.setattr(layers, "conv", renamed(("stage0", "conv_shortcut"), group="stage0"))
    with pytest.raises(ValueError, match=r"channels of \['stage0', 'stage1'\] are left out"):
        probe.channel_map(net, EXAMPLE)


def test_a_concatenation_in_the_wrong_order_is_refused_on_numbers(monkeypatch):
    net = networks.DenseNet((2,), densenet_widths((2,), stem=4, growth=4), 3)
    wrong = ("block0_layer0", "stem")
    monkeypatch.setattr(layers, "conv", renamed((wrong[::-1], "conv"), before=wrong))
    message = r"channels of \['stem', 'block0_layer0'\] are left out: .*wrong group's name"
    with pytest.raises(ValueError, match=message):
        probe.channel_map(net, EXAMPLE)


def test_a_transition_that_reads_in_the_wrong_order_is_refused_on_numbers(monkeypatch):
    net = networks.DenseNet((1, 1), densenet_widths((1, 1), stem=4, growth=4), 3)
    right = ("stem", "block0_layer0")
    monkeypatch.setattr(layers, "conv", renamed((right, "conv"), before=right[::-1]))
    message = r"channels of \['stem', 'block0_layer0'\] are left out: .*wrong group's name"
    with pytest.raises(ValueError, match=message):
        probe.channel_map(net, EXAMPLE)


def test_an_inner_convolution_of_another_layers_group_is_refused_by_both_names(monkeypatch):
    widths = densenet_widths((1, 1), stem=4, growth=1, bottleneck=True)
    net = networks.DenseNet((1, 1), widths, 3, bottleneck=True)
    one, other = "block0_layer0_inner", "block1_layer0_inner"
    monkeypatch.setattr(layers, "conv", renamed((("stem",), "conv0"), group=other))
    message = rf"channels of \['{one}', '{other}'\] are left out: .*wrong group's name"
    with pytest.raises(ValueError, match=message):
        probe.channel_map(net, EXAMPLE)


def test_two_convolutions_that_read_each_others_groups_are_refused_by_both_names(monkeypatch):
    net = networks.VGG((3,), FrozenDict(conv0=2, conv1=2, conv2=3), 3)
    one = renamed(("conv0", "conv1"), before="conv1")
    monkeypatch.setattr(layers, "conv", renamed(("conv1", "conv2"), over=one, before="conv0"))
    message = r"channels of \['conv0', 'conv1'\] are left out: .*wrong group's name"
    with pytest.raises(ValueError, match=message):
        probe.channel_map(net, EXAMPLE)


def test_a_convolution_that_reads_the_wrong_group_leaves_one_that_nobody_reads(monkeypatch):
    net = networks.VGG((3,), FrozenDict(conv0=2, conv1=2, conv2=3), 3)
    monkeypatch.setattr(layers, "conv", renamed(("conv1", "conv2"), before="conv0"))
    with pytest.raises(ValueError, match="group 'conv1' names no input axis of any kernel"):
        probe.channel_map(net, EXAMPLE)


LARGE = {
    "basic": networks.ResNet((1,), group_widths((1,), (2,)), 3, large=True),
    "bottleneck": networks.ResNet(
        (1,), group_widths((1,), (2,), bottleneck=True, stem=3), 3, bottleneck=True, large=True
    ),
}


@pytest.mark.parametrize(("kind", "tied"), [("basic", ["stage0", INNER[0]]), ("bottleneck", INNER)])
def test_a_convolution_that_writes_what_it_reads_is_refused_by_both_names(monkeypatch, kind, tied):
    monkeypatch.setattr(layers, "conv", renamed((INNER[0], "conv1"), group=INNER[0]))
    with pytest.raises(ValueError, match=re.escape(f"channels of {tied} are left out: ")):
        probe.channel_map(LARGE[kind], EXAMPLE)


def test_a_depthwise_kernel_of_another_group_is_refused_by_both_names(monkeypatch):
    widths = mobilenet_widths((1, 1), (4, 8), stem=6, last=8, expansion=2)
    net = networks.MobileNetV2((1, 1), (1, 1, 1), widths, 3)

    def depthwise(widths, group, *, name, dtype, stride):
        given = group if group != "stage1_block0_hidden" else "last"
        return DEPTHWISE(widths, given, name=name, dtype=dtype, stride=stride)

    monkeypatch.setattr(layers, "depthwise", depthwise)
    message = r"channels of \['stage1_block0_hidden', 'last'\] are left out"
    with pytest.raises(ValueError, match=message):
        probe.channel_map(net, EXAMPLE)


def test_padding_by_position_is_refused_by_the_streams_it_ties(monkeypatch):
    # What the link replaces: it runs at any widths, and means another thing at each.
    def by_position(module, x, before, after, width):
        added = width - x.shape[-1]
        sides = (added // 2, added - added // 2)
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), sides))

    monkeypatch.setattr(sys.modules[networks.ResNet.__module__], "pad_channels", by_position)
    net = networks.ResNet((1, 1), FrozenDict(WIDTHS), 3, shortcut="padding")
    message = r"channels of \['stage0', 'stage1'\] are left out: .*full network"
    with pytest.raises(ValueError, match=message):
        probe.channel_map(net, EXAMPLE)


def test_a_kernel_named_after_another_group_of_its_size_is_refused_by_its_leaf(monkeypatch):
    net = networks.ResNet((1, 1), group_widths((1, 1), (8, 8)), 3)

    def conv(widths, before, group, *, name, **options):
        wrong = (before, name) == ("stage1_block0_conv0", "conv1")
        sizes = {"stage0": widths[group]} if wrong else widths
        return CONV(sizes, before, "stage0" if wrong else group, name=name, **options)

    monkeypatch.setattr(layers, "conv", conv)
    message = (
        r"stage1_block0/conv1/kernel has shape \(3, 3, 4, 2\) .* names foretell \(3, 3, 4, 4\)"
    )
    with pytest.raises(ValueError, match=message):
        probe.channel_map(net, EXAMPLE)
