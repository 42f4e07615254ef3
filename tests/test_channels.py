"""The channel map: what it finds, what it refuses, and its proof on numbers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import IMAGES, VECTORS, ConcatNet, ConvNet, FlattenNet, MixNet, channel_map, dense, named
from steps import cut_params

from dce_jax import channels, forward, probe

NARROW = {"a": 2, "b": 3}


def axes(found, collection="params"):
    return {
        channels.show(leaf.path): leaf.names.axes
        for leaf in found.leaves
        if leaf.collection == collection
    }


def test_the_map_of_a_batch_norm_network():
    found = channel_map(ConvNet())
    assert found.full == {"a": 4, "b": 6}
    assert axes(found) == {
        "conv_a/kernel": ((), (), (), ("a",)),
        "conv_b/kernel": ((), (), ("a",), ("b",)),
        "head/bias": ((),),
        "head/kernel": (("b",), ()),
        "norm_a/bias": (("a",),),
        "norm_a/scale": (("a",),),
        "norm_b/bias": (("b",),),
        "norm_b/scale": (("b",),),
    }
    assert axes(found, "batch_stats") == {
        "norm_a/mean": (("a",),),
        "norm_a/var": (("a",),),
        "norm_b/mean": (("b",),),
        "norm_b/var": (("b",),),
    }


def test_the_table_and_places_name_leaf_axis_and_offset():
    found = channel_map(ConcatNet(), VECTORS)
    assert channels.places(found, "b") == [
        {"path": "params/both/kernel", "axis": 0, "offset": 3},
        {"path": "params/second/bias", "axis": 0, "offset": 0},
        {"path": "params/second/kernel", "axis": 1, "offset": 0},
    ]
    table = found.table()
    assert "b  C=4\n    params/both/kernel  axis 0  offset 3\n" in table
    assert [line for line in table.splitlines() if line[0] != " "] == ["a  C=3", "b  C=4", "c  C=5"]
    with pytest.raises(ValueError, match="unknown channel group 'd'"):
        channels.places(found, "d")


def test_producers_are_kernels_that_a_group_has_for_itself():
    found = channels.producers(channel_map(ConcatNet(), VECTORS))
    assert found == {
        "a": (("first", "kernel"),),
        "b": (("second", "kernel"),),
        "c": (("both", "kernel"), ("stream", "kernel")),
    }


def test_a_repeated_group_has_an_offset_per_position():
    found = channel_map(FlattenNet())
    places = [p for p in channels.places(found, "a") if p["path"] == "params/head/kernel"]
    assert [p["offset"] for p in places] == [0, 3, 6, 9]


def test_batch_norm_is_accepted():
    assert channel_map(MixNet(), VECTORS).full == {"a": 4, "b": 4}


@pytest.mark.parametrize("mix", ["layer", "group", "softmax"])
def test_layers_that_mix_a_groups_channels_are_refused_by_group(mix):
    message = r"meaning changes when channels of \['a'\] are left out: .*limit 1e-05.*LayerNorm"
    with pytest.raises(ValueError, match=message):
        probe.channel_map(MixNet(mix=mix), VECTORS)


class Mean(nn.Module):
    """Its second group is read through a mean over channels, which no name can express."""

    widths: FrozenDict = FrozenDict({"a": 4, "b": 4})

    @nn.compact
    def __call__(self, x):
        x = nn.relu(dense(self.widths["a"], (None, "a"), "one")(x))
        b = nn.relu(dense(self.widths["b"], ("a", "b"), "two")(x))
        return dense(3, ("b", None), "head")(b - b.mean(axis=-1, keepdims=True))


def test_a_mean_over_channels_is_refused_by_group():
    with pytest.raises(ValueError, match=r"channels of \['b'\] are left out"):
        probe.channel_map(Mean(), VECTORS)


WRONG = {
    "swapped": (((None, "a"), ("b", "b"), ("a", None)), {}, r"leaf head/kernel has shape \(1, 3\)"),
    "unequal": (
        ((None, "a"), ("b", "b"), ("b", None)),
        {"b": 6},
        r"two/kernel has 4 entries on axis 0, but its groups \('b',\) have 6 .* two sizes share it",
    ),
    "unconsumed": (
        ((None, "a"), ("a", "b"), (None, None)),
        {},
        r"'b' names no input axis of any kernel: nobody consumes it.*hold",
    ),
    "unproduced": (
        ((None, None), ("a", "b"), ("b", None)),
        {"mix": "none"},
        r"'a' names no output axis of any parameter: nothing produces it",
    ),
    "unknown": (
        ((None, "a"), ("a", "bb"), ("b", None)),
        {},
        r"leaf two/kernel, axis 1: unknown channel group 'bb'; did you mean 'b'\?",
    ),
    "too many": (
        ((None, "a"), ("a", "b", None), ("b", None)),
        {},
        r"leaf two/kernel of shape \(4, 4\) is given 3 axis names .* one per axis",
    ),
}


class Named(nn.Module):
    """Three layers whose names are given, right or wrong."""

    axes: tuple
    widths: FrozenDict

    @nn.compact
    def __call__(self, x):
        sizes = [4, self.widths["b"], 3] if self.widths["b"] == 6 else [*self.widths.values(), 3]
        for name, size, names in zip(("one", "two", "head"), sizes, self.axes, strict=True):
            kernel = named(nn.initializers.lecun_normal(), names)
            x = nn.relu(nn.Dense(size, use_bias=False, kernel_init=kernel, name=name)(x))
        return x


@pytest.mark.parametrize("case", WRONG)
def test_wrong_names_are_refused_by_leaf_or_group(case):
    names, changed, message = WRONG[case]
    widths = FrozenDict({"a": 4, "b": changed.get("b", 4)})
    with pytest.raises(ValueError, match=message):
        probe.channel_map(Named(axes=names, widths=widths), VECTORS)


class Permuted(nn.Module):
    """Names and shapes all fit, but the dense layer reads the concatenation the other way round."""

    widths: FrozenDict = FrozenDict({"a": 6, "b": 6})

    @nn.compact
    def __call__(self, x):
        a = nn.relu(dense(self.widths["a"], (None, "a"), "first")(x))
        b = nn.relu(dense(self.widths["b"], (None, "b"), "second")(x))
        return dense(3, (("a", "b"), None), "head")(jnp.concatenate([b, a], axis=-1))


@pytest.mark.parametrize("width", [2, 3, 4])
def test_swapped_names_of_narrow_groups_are_refused_on_numbers(width):
    module = TwoSides(FrozenDict({"a": width, "b": width}))
    assert probe.channel_map(module, VECTORS).full == {"a": width, "b": width}
    with pytest.raises(
        ValueError, match=r"meaning changes when channels of \['a', 'b'\]|head_a/kernel has"
    ):
        probe.channel_map(module.clone(swapped=True), VECTORS)


class TwoSides(nn.Module):
    """Two layers of one width beside each other, whose consumers' names may be swapped."""

    widths: FrozenDict
    swapped: bool = False

    @nn.compact
    def __call__(self, x):
        out = 0.0
        for group, other in (("a", "b"), ("b", "a")):
            y = nn.relu(dense(self.widths[group], (None, group), f"one_{group}")(x))
            read = other if self.swapped else group
            out = out + dense(3, (read, None), f"head_{group}")(y)
        return out


def test_wrong_order_of_a_concatenation_is_refused_on_numbers():
    with pytest.raises(ValueError, match=r"or an axis carries the wrong group's name"):
        probe.channel_map(Permuted(), VECTORS)


class Unnamed(nn.Module):
    """Leaves a leaf, or a layer, behind when its width changes."""

    appears: bool
    widths: FrozenDict = FrozenDict({"a": 4})

    @nn.compact
    def __call__(self, x):
        width = self.widths["a"]
        x = dense(width, (None, "a"), "one")(x)
        if self.appears and width == 4:
            x = x + self.param("extra", nn.initializers.zeros_init(), (1, 1))
        elif not self.appears:
            x = x * self.param("extra", nn.initializers.ones_init(), (width,))[None]
        return dense(3, ("a", None), "head")(x)


@pytest.mark.parametrize(
    ("appears", "message"),
    [
        (
            False,
            r"leaf extra has shape \(2,\) at narrow widths, .* foretell \(4,\): name each axis",
        ),
        (True, r"leaf extra exists at only one of the full and the narrow widths"),
    ],
)
def test_leaves_that_a_narrower_network_leaves_behind_are_refused(appears, message):
    with pytest.raises(ValueError, match=message):
        probe.channel_map(Unnamed(appears), VECTORS)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Dense(3), r"Dense has no `widths`: a network takes its widths as data"),
        (ConvNet(widths=FrozenDict()), r"ConvNet has no `widths`"),
        (ConvNet(widths=FrozenDict({"a": 0})), r"width 0 of group 'a' must be an integer >= 1"),
        (ConvNet(widths=FrozenDict({"a": 2.0})), r"width 2\.0 of group 'a'"),
    ],
)
def test_networks_without_widths_are_refused(module, message):
    with pytest.raises(ValueError, match=message):
        channels.module_widths(module)


def test_a_leaf_that_the_map_does_not_know_is_refused():
    with pytest.raises(ValueError, match=r"leaf conv_z/kernel is not in the map.*unbox"):
        channel_map(ConvNet()).names("params", {"conv_z": {"kernel": jnp.ones(3)}})


class Stack(nn.Module):
    """A random network: layers that read earlier ones, by concatenation or as a stream."""

    widths: FrozenDict
    sources: tuple
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        seen = {}
        for index, (group, width) in enumerate(self.widths.items()):
            names = tuple(sorted({f"g{s % index}" for s in self.sources[index]})) if index else None
            inputs = jnp.concatenate([seen[n] for n in names], axis=-1) if names else x
            kernel = named(nn.initializers.lecun_normal(), (names, group))
            layer = nn.Dense(
                width,
                use_bias=False,
                kernel_init=kernel,
                param_dtype=self.dtype,
                dtype=self.dtype,
                name=group,
            )
            seen[group] = nn.relu(layer(inputs))
        axes = (tuple(seen), None)
        everything = jnp.concatenate(list(seen.values()), axis=-1)
        kernel = named(nn.initializers.lecun_normal(), axes)
        head = nn.Dense(
            3,
            use_bias=False,
            kernel_init=kernel,
            param_dtype=self.dtype,
            dtype=self.dtype,
            name="head",
        )
        return head(everything)


@st.composite
def stacks(draw):
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    widths = {f"g{i}": size for i, size in enumerate(sizes)}
    sources = [draw(st.lists(st.integers(0, 3), min_size=1, max_size=3)) for _ in sizes]
    dtype = draw(st.sampled_from([jnp.float32, jnp.bfloat16]))
    narrow = {group: draw(st.integers(1, size)) for group, size in widths.items()}
    return Stack(FrozenDict(widths), tuple(map(tuple, sources)), dtype), narrow


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(stacks())
def test_random_networks_have_a_map_that_foretells_every_narrow_shape(drawn):
    module, narrow = drawn
    shapes = forward.shapes(module, VECTORS)
    found = channels.build(module, shapes)
    thin = nn.unbox(forward.shapes(channels.with_widths(module, narrow), VECTORS))
    channels.check_shapes(found, narrow, thin)
    params = nn.unbox(shapes)["params"]
    names, cut = cut_params(found, params, narrow)
    gathered = jax.eval_shape(lambda p: cut(p, names), params)
    expected = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), thin["params"])
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), gathered) == expected
    # Every produced channel is found exactly once on its own kernel's last axis.
    for group in found.full:
        own = {"path": f"params/{group}/kernel", "axis": 1, "offset": 0}
        assert channels.places(found, group).count(own) == 1


@settings(max_examples=2, deadline=None, derandomize=True, database=None)
@given(stacks())
def test_random_networks_pass_the_probe(drawn):
    module, _ = drawn
    found = probe.channel_map(module.clone(dtype=jnp.float32), VECTORS)
    assert found.full == dict(module.widths)


def test_the_probe_does_not_compile_for_abstract_and_real_examples_alike():
    real = jnp.asarray(np.ones(IMAGES.shape), jnp.float32)
    assert probe.channel_map(ConvNet(), real) == channel_map(ConvNet())
