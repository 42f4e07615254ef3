"""What widths cost: counted, by hand, and as narrow networks do."""

import chains
import jax.numpy as jnp
import nets
import numpy as np
import pytest

from dce_jax import channels, cost
from dce_jax.runtime import Choice, costs


@pytest.mark.parametrize("name", chains.NETS)
def test_full_width_costs_what_the_network_does(name):
    variables = chains.variables(name)
    found = costs.table(chains.build(name), chains.LEVELS[name], variables, chains.EXAMPLE)
    wanted = cost.macs(chains.NETS[name].apply, variables, chains.EXAMPLE)
    assert found.full == wanted
    assert found.always + sum(site[-1, -1] for site in found.sites) == wanted
    one = costs.share(found, chains.everything(name))
    np.testing.assert_allclose(one, np.ones(chains.BATCH), rtol=1e-6)


def test_a_vggs_table_is_the_product_of_the_widths_on_both_sides():
    found = costs.table(
        chains.build("vgg"), chains.LEVELS["vgg"], chains.variables("vgg"), chains.EXAMPLE
    )
    pixels, taps = 4 * 4, 9  # behind the first stage's pool
    np.testing.assert_array_equal(found.sites[0], pixels * taps * np.outer([4], [2, 5]))
    np.testing.assert_array_equal(found.sites[1], pixels * taps * np.outer([2, 5], [1, 4, 6]))
    assert found.always == 64 * taps * 3 * 4 + 6 * 3
    assert found.around == (0.0, 0.0)
    choices = (Choice(jnp.asarray([0, 1, 0])), Choice(jnp.asarray([2, 1, 0])))
    mixed = [found.always + 144 * (4 * a + a * b) for a, b in ((2, 6), (5, 4), (2, 1))]
    np.testing.assert_allclose(
        costs.share(found, choices, deciding=100.0),
        (np.asarray(mixed) + 100.0) / found.full,
        rtol=1e-6,
    )


@pytest.mark.parametrize(("name", "shortcut"), [("padding", 0), ("projection", 16 * 4 * 6)])
def test_a_residual_networks_table_is_two_convolutions_beside_a_shortcut(name, shortcut):
    found = costs.table(
        chains.build(name), chains.LEVELS[name], chains.variables(name), chains.EXAMPLE
    )
    first = [64 * 9 * 2 * 4 * inner for inner in (0, 1, 4)]
    second = [shortcut + 16 * 9 * (4 + 6) * inner for inner in (0, 2, 3, 6)]
    np.testing.assert_array_equal(found.sites[0], [first])
    np.testing.assert_array_equal(found.sites[1], [second])
    assert found.around == (0.0, shortcut)
    choices = (Choice(jnp.asarray([0, 2])), Choice(jnp.asarray([3, 1])))
    mixed = [found.always + first[a] + second[b] for a, b in ((0, 3), (2, 1))]
    np.testing.assert_allclose(costs.share(found, choices), np.divide(mixed, found.full), rtol=1e-6)


def narrow(name, widths):
    net = channels.with_widths(chains.NETS[name], {**chains.NETS[name].widths, **widths})
    return cost.macs(net.apply, nets.variables(net, chains.EXAMPLE), chains.EXAMPLE)


def test_a_branch_costs_what_the_narrow_network_does():
    for name, widths in (
        ("vgg", {"conv1": 2, "conv2": 4}),
        ("projection", {"stage0_block0_conv0": 1, "stage1_block0_conv0": 3}),
    ):
        chain, variables = chains.build(name), chains.variables(name)
        found = costs.table(chain, chains.LEVELS[name], variables, chains.EXAMPLE)
        rows = {"vgg": (0, 0), "projection": (0, 0)}[name]
        columns = {"vgg": (0, 1), "projection": (1, 2)}[name]
        sites = sum(t[r, c] for t, r, c in zip(found.sites, rows, columns, strict=True))
        # A VGG's head reads all channels, those that did not run among them.
        head = (6 - 4) * 3 if name == "vgg" else 0
        assert found.always + sites - head == narrow(name, widths)
