"""Channels in the order of their filters' norms: the same network, the largest first."""

import chains
import numpy as np
import pytest

from dce_jax.runtime import nesting


@pytest.mark.parametrize("name", chains.NETS)
def test_the_largest_filters_come_first_and_nothing_else_changes(name):
    chain, variables = chains.build(name), chains.variables(name)
    orders = nesting.by_norm(chain, variables)
    assert set(orders) == {link.group for link in chain.sites}
    assert any(list(order) != sorted(order) for order in orders.values())
    after = nesting.reordered(chain.channels, variables, orders)
    for link in chain.sites:
        names = dict(link.parts)
        if names:
            kernel = after["params"][names["conv"]]["kernel"]
        else:
            kernel = after["params"][link.name]["conv0"]["kernel"]
        norms = np.sqrt(np.square(kernel).sum((0, 1, 2)))
        np.testing.assert_array_equal(norms, np.sort(norms)[::-1])
    net, x = chains.NETS[name], chains.images()
    run = chains.jit(lambda variables, x: net.apply(variables, x))
    np.testing.assert_allclose(run(after, x), run(variables, x), rtol=1e-5, atol=1e-5)
