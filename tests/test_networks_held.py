"""Any group of any family may be the only one that is cut, or the only one that is held whole."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from families import MOMENTUM, TINY, check_budget, data, example, pieces_and_state

from dce_jax import budget, channels, forward, step

pytestmark = pytest.mark.one_set
every_family = pytest.mark.parametrize("family", TINY)


def halved(family, groups):
    widths = TINY[family].widths
    return budget.from_widths(
        widths, {g: max(1, widths[g] // 2) for g in groups}, allow_missing=True
    )


def check_entry(family, bud):
    """The slab has the narrow network's shapes, and the selection those of what is cut."""
    pieces, state = pieces_and_state(family, bud)
    inside = jax.eval_shape(partial(step.enter, pieces), state)
    thin = forward.shapes(channels.with_widths(TINY[family], bud.compact), example(family))
    expected = nn.unbox(thin)
    found = {"params": inside.loop.params, **inside.loop.model_state}
    assert found == expected, bud.contested
    assert inside.loop.opt_state == jax.eval_shape(MOMENTUM.init, expected["params"])
    sizes = {g: (bud.compact[g],) for g in bud.contested}
    assert {g: chosen.shape for g, chosen in inside.selection.items()} == sizes
    assert {g: values.shape for g, values in inside.rewards.items()} == sizes
    return pieces, state, inside


def check_exit(pieces, state, inside):
    """What a slab is scattered into has the shapes that it had."""
    found, _ = jax.eval_shape(partial(step.leave, pieces), state, inside)
    assert found == jax.eval_shape(lambda tree: tree, state)


@every_family
def test_each_group_may_be_the_only_one_that_is_cut(family):
    for group in TINY[family].widths:
        bud = halved(family, [group])
        assert bud.contested == (group,)
        pieces, state, inside = check_entry(family, bud)
        after, metrics = jax.eval_shape(partial(step.observe, pieces), inside, data(family))
        assert after == inside, group
        assert metrics["loss"] == jax.ShapeDtypeStruct((), jnp.float32)
        check_exit(pieces, state, after)


@every_family
def test_each_group_may_be_the_only_one_that_is_held_whole(family):
    widths = TINY[family].widths
    for group in widths:
        bud = halved(family, [g for g in widths if g != group])
        assert set(bud.contested) == set(widths) - {group}
        check_exit(*check_entry(family, bud))


@pytest.mark.parametrize("family", ["preact", "dense", "mobile", "bottleneck"])
def test_every_second_group_may_be_held_whole_in_a_step(family):
    bud = halved(family, [*TINY[family].widths][1::2])
    assert len(bud.contested) > 1
    check_budget(family, bud)
