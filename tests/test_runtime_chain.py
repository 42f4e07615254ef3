"""Networks cut into links: run whole they are the network, and every width costs what it counts."""

import functools

import chains
import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest
from flax.core import FrozenDict

from dce_jax import budget, channels, compact, forward, masks, networks
from dce_jax.networks.densenet import densenet_widths
from dce_jax.networks.stages import group_widths
from dce_jax.runtime import MASKED, SWITCHED, Choice, replay, run
from dce_jax.runtime import chain as cuts
from dce_jax.runtime.execute import at_widths, inputs

BOTTLENECK = networks.ResNet(
    (1,), group_widths((1,), (2,), bottleneck=True, stem=4), 3, bottleneck=True
)
LARGE = networks.ResNet((1,), group_widths((1,), (4,)), 3, large=True)
DENSE = networks.DenseNet((1,), densenet_widths((1,), stem=4, growth=2), 3)


def outcome(name, variables, x, choices, *, train):
    levels, policy = chains.LEVELS[name], replay(choices)
    return run(chains.build(name), levels, variables, x, policy, MASKED, train=train)


@pytest.mark.parametrize("name", chains.NETS)
def test_a_chain_run_whole_is_the_network_in_both_modes(name):
    net, choices = chains.NETS[name], chains.everything(name)

    @chains.jit
    def both(variables, x):
        found = [outcome(name, variables, x, choices, train=train) for train in (False, True)]
        params, state = nets_split(variables)
        wanted = [forward.apply(net, params, state, x, train=train) for train in (False, True)]
        return [(o.logits, nets_split(o.variables)[1]) for o in found], wanted

    variables = chains.variables(name)
    found, wanted = both(variables, chains.images())
    assert jax.tree.structure(found) == jax.tree.structure([tuple(w) for w in wanted])
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-6)
    nets.same_bits(found[0][1]["batch_stats"], variables["batch_stats"])
    for old, new in zip(
        jax.tree.leaves(variables["batch_stats"]),
        jax.tree.leaves(found[1][1]["batch_stats"]),
        strict=True,
    ):
        assert np.abs(old - new).max() > 1e-3


def nets_split(variables):
    return variables["params"], {k: v for k, v in variables.items() if k != "params"}


@pytest.mark.parametrize("name", ["vgg", "projection"])
def test_masked_training_is_the_network_with_gates_and_updates_its_statistics(name):
    """Shares are one for all images here: then they are factors of the branch's last norm."""
    net, chain = chains.NETS[name], chains.build(name)
    choices = chains.decided(name, "random", scaled=True, ordered=True)
    factor = {"stage0_block0": 0.7, "stage1_block0": 1.3}
    choices = tuple(
        choice._replace(
            level=jnp.maximum(choice.level, 1),
            share=jnp.full(chains.BATCH, factor[link.name]) if link.skippable else None,
        )
        for link, choice in zip(chain.sites, choices, strict=True)
    )
    gates, _ = chains.factors(name, choices)
    placed = {f"gate:{group}": gate for group, gate in gates.items()}
    if name != "vgg":
        placed = {g.split(":")[1].rsplit("_", 1)[0]: {g: gate} for g, gate in placed.items()}

    @chains.jit
    def both(variables, x):
        mine = outcome(name, variables, x, choices, train=True)
        params = dict(variables["params"])
        for link in chain.sites:
            if link.skippable:
                norm = jax.tree.map(
                    lambda v, f=factor[link.name]: v * f, params[link.name]["norm1"]
                )
                params[link.name] = {**params[link.name], "norm1": norm}
        state = nets_split(variables)[1]
        theirs = forward.apply(net, params, state, x, train=True, gates=placed)
        return (mine.logits, nets_split(mine.variables)[1]), theirs

    found, wanted = both(chains.variables(name), chains.images())
    assert jax.tree.structure(found) == jax.tree.structure(tuple(wanted))
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


def test_a_branch_is_the_narrow_module():
    chain, variables = chains.build("vgg"), chains.variables("vgg")
    link = chain.links[2]
    seen = nets.batch(1, 2, (4, 4, 5))["image"]
    cut = channels.with_widths(chains.NETS["vgg"], {"conv0": 4, "conv1": 2, "conv2": 4})
    own = nets.variables(cut, chains.EXAMPLE)
    kernel = variables["params"]["conv2"]["kernel"][:, :, :2, :4]
    own["params"]["conv2"]["kernel"] = kernel
    for collection, leaf in (
        ("params", "scale"),
        ("params", "bias"),
        ("batch_stats", "mean"),
        ("batch_stats", "var"),
    ):
        own[collection]["norm2"][leaf] = variables[collection]["norm2"][leaf][:4]

    def plain(x):
        y = jax.lax.conv_general_dilated(
            x[..., :2], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        norm, stats = own["params"]["norm2"], own["batch_stats"]["norm2"]
        vectors = (stats["mean"], stats["var"], norm["scale"], norm["bias"])
        mean, var, scale, bias = (v.reshape(1, 1, 1, 4) for v in vectors)
        y = jnp.maximum((y - mean) / jnp.sqrt(var + 1e-5) * scale + bias, 0.0)
        return y.reshape(2, 2, 2, 2, 2, 4).max(axis=(2, 4))

    found = chains.jit(functools.partial(at_widths, chain, link, 2, 4))(variables, seen)
    np.testing.assert_allclose(found, chains.jit(plain)(seen), rtol=1e-5, atol=1e-5)


def test_what_every_link_sees():
    for name, wanted in (
        ("vgg", [(8, 3), (4, 4), (4, 5), (2, 6)]),
        ("padding", [(8, 3), (8, 4), (8, 4), (4, 6)]),
    ):
        found = inputs(chains.build(name), chains.variables(name), chains.EXAMPLE)
        assert [each.shape for each in found] == [(1, side, side, c) for side, c in wanted]


def test_links_follow_the_network_not_the_order_of_its_widths():
    net = networks.VGG((1, 2), FrozenDict({"conv2": 6, "conv0": 4, "conv1": 5}), 3)
    found = cuts.chain(net, channels.build(net, forward.shapes(net, chains.EXAMPLE)))
    assert [link.name for link in found.links] == ["conv0", "conv1", "conv2", "head"]
    assert [link.reads for link in found.links] == [None, None, "conv1", None]
    assert [found.width(link) for link in found.sites] == [5, 6]


def test_a_compact_model_of_odd_widths_is_a_network_like_any_other():
    net = chains.NETS["vgg"].clone(widths=FrozenDict({"conv0": 6, "conv1": 9, "conv2": 5}))
    whole = nets.variables(net, chains.EXAMPLE)
    names = channels.build(net, forward.shapes(net, chains.EXAMPLE))
    chosen = {"conv0": [0, 1, 2, 4, 5], "conv1": [0, 1, 3, 4, 5, 7, 8], "conv2": [0, 2, 3]}
    selection = {group: jnp.asarray(kept, jnp.int32) for group, kept in chosen.items()}
    widths = {group: len(kept) for group, kept in chosen.items()}
    model = compact.extract(names, budget.from_widths(net.widths, widths), whole, selection)
    thin = channels.with_widths(net, widths)
    chain = cuts.chain(thin, channels.build(thin, forward.shapes(thin, chains.EXAMPLE)))
    levels = cuts.levels(chain, 3)
    assert levels == ((3, 5, 7), (1, 2, 3))

    @chains.jit
    def runs(variables, x, level):
        policy = replay(tuple(Choice(each) for each in level))
        return [run(chain, levels, variables, x, policy, e).logits for e in (MASKED, SWITCHED)]

    # The full network, with the same channels: those that were cut away, and those that rest.
    seen = {"conv0": chosen["conv0"], "conv1": chosen["conv1"][:5], "conv2": chosen["conv2"][:1]}
    rows = masks.of({g: np.asarray(kept) for g, kept in seen.items()}, names.full)
    params = masks.unread(whole["params"], names.names("params", whole["params"]), rows)
    x = chains.images(1)
    wanted = chains.jit(net.apply)({**whole, "params": params}, x)
    for found in runs(model.variables, x, (jnp.asarray([1]), jnp.asarray([0]))):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["vgg", "projection"])
def test_a_network_in_bfloat16(name):
    net = chains.NETS[name].clone(dtype=jnp.bfloat16)
    chain = cuts.chain(net, chains.build(name).channels)
    variables, x = chains.variables(name), chains.images(1)
    choices = jax.tree.map(
        lambda field: field[1:2], chains.decided(name, "random", scaled=True, ordered=True)
    )

    @chains.jit
    def runs(variables, x):
        policy, levels = replay(choices), chains.LEVELS[name]
        return [run(chain, levels, variables, x, policy, e).logits for e in (MASKED, SWITCHED)]

    with jax.numpy_dtype_promotion("standard"):  # Flax's batch norm promotes silently
        masked, switched = runs(variables, x)
    assert masked.dtype == switched.dtype == jnp.float32
    wanted = chains.expected(name, choices, x)
    for found in (masked, switched):
        assert 0 < np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("net", "kind"), [(BOTTLENECK, "ResNet"), (LARGE, "ResNet"), (DENSE, "DenseNet")]
)
def test_other_networks_are_refused(net, kind):
    with pytest.raises(ValueError, match=f"{kind} cannot be cut into links"):
        cuts.chain(net, chains.build("vgg").channels)


def test_equal_shares_of_every_sites_channels():
    assert cuts.levels(chains.build("vgg"), 2) == ((3, 5), (3, 6))
    assert cuts.levels(chains.build("padding"), 4) == ((1, 2, 3, 4), (2, 3, 5, 6))
    assert cuts.levels(chains.build("padding"), 1, skip=True) == ((0, 4), (0, 6))


@pytest.mark.parametrize(
    ("name", "parts", "skip", "message"),
    [
        ("vgg", 6, False, "6 widths asked of conv1, which has 5 channels: choose 1 to 5"),
        ("padding", 0, True, "0 widths asked of stage0_block0, which has 4 channels"),
        ("vgg", 1, True, "conv1 has no shortcut, so nothing is left of it at width 0"),
    ],
)
def test_shares_that_do_not_exist_are_refused(name, parts, skip, message):
    with pytest.raises(ValueError, match=message):
        cuts.levels(chains.build(name), parts, skip=skip)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([[5]], "1 sets of widths for 2 sites: one per site"),
        ([[2, 4], [6]], r"widths \(2, 4\) of conv1 must rise .* to its full width 5"),
        ([[5], [4, 2, 6]], r"widths \(4, 2, 6\) of conv2 must rise"),
        ([[5], [2, 2, 6]], r"widths \(2, 2, 6\) of conv2 must rise"),
        ([[5], [-1, 6]], r"widths \(-1, 6\) of conv2 must rise from 0 or more"),
        ([[5], []], r"widths \(\) of conv2 must rise"),
        ([[0, 5], [6]], "conv1 has no shortcut"),
    ],
)
def test_widths_at_which_a_network_cannot_run_are_refused_wherever_they_come_from(levels, message):
    chain = chains.build("vgg")
    with pytest.raises(ValueError, match=message):
        cuts.checked(chain, levels)
    with pytest.raises(ValueError, match=message):
        run(chain, tuple(map(tuple, levels)), {}, chains.images(), replay(()))


def test_widths_may_be_lists():
    assert cuts.checked(chains.build("vgg"), [[2, 5], [6]]) == ((2, 5), (6,))
