"""CIFAR ResNets with the parameter-free shortcut: proof, identities, rewards, the link itself."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from families import (
    TINY,
    check_budget,
    check_full_budget,
    check_random_budgets,
    check_rewards,
    example,
    rewards,
)
from flax.core import FrozenDict
from nets import channel_map

from dce_jax import budget, channels, slab
from dce_jax.networks.shortcut import pad_channels


def test_the_full_budget_is_the_dense_optax_step():
    check_full_budget("padding")


def test_the_compact_model_is_the_slab_and_unselected_bits_stay():
    check_random_budgets("padding", examples=2)


def test_one_channel_of_every_group_is_enough():
    widths = TINY["padding"].widths
    check_budget("padding", budget.from_widths(widths, dict.fromkeys(widths, 1)))


def test_groups_may_be_held_whole_beside_others_that_are_not():
    held = ("stage0", "stage1_block0_conv0")
    bud = budget.from_fraction(TINY["padding"].widths, 0.5, whole=held)
    assert set(bud.contested) == set(TINY["padding"].widths) - set(held)
    check_budget("padding", bud)


def test_norms_carry_the_rewards_of_inner_groups_and_of_the_first_stream():
    own = [group for group in TINY["padding"].widths if group != "stage1"]
    assert own == ["stage0", "stage0_block0_conv0", "stage0_block1_conv0", "stage1_block0_conv0"]
    check_rewards("padding", own)


def test_what_the_shortcut_writes_without_a_norm_is_in_the_gates_alone():
    # The slab's streams have 4 and 8 channels: the link joins channel i to channel 2 + i.
    free, gated = (values["stage1"] for values in rewards("padding"))
    assert free.shape == (8,)
    linked = np.isin(np.arange(8), np.arange(2, 6))
    np.testing.assert_allclose(free[~linked], gated[~linked], rtol=2e-3, atol=1e-4)
    assert np.min(np.abs(free - gated)[linked]) > 1e-3
    assert np.min(free) > 1e-5


def test_the_map_lists_the_link_beside_the_kernels():
    found = channel_map(TINY["padding"], example("padding"))
    link = "links/stage1_block0/shortcut"
    for group, axis in (("stage0", 0), ("stage1", 1)):
        assert {"path": link, "axis": axis, "offset": 0} in channels.places(found, group)
    assert not any(channels.show(p).startswith("link") for p in channels.producers(found)["stage1"])


class Pad(nn.Module):
    """The shortcut alone."""

    widths: FrozenDict = FrozenDict({"a": 4, "b": 8})

    @nn.compact
    def __call__(self, x):
        return pad_channels(self, x, "a", "b", self.widths["b"])


def test_the_link_pads_with_zeros_on_both_sides_and_so_does_its_gradient():
    draw = np.random.default_rng(0)
    x, weight = draw.normal(size=(2, 3, 3, 4)), draw.normal(size=(2, 3, 3, 8))
    x, weight = jnp.asarray(x, jnp.float32), jnp.asarray(weight, jnp.float32)
    variables = nn.unbox(Pad().init(jax.random.key(0), x))
    padded = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (2, 2)))
    np.testing.assert_array_equal(Pad().apply(variables, x), padded)
    gradient = jax.grad(lambda x: jnp.sum(Pad().apply(variables, x) * weight))(x)
    np.testing.assert_array_equal(gradient, weight[..., 2:6])


def test_a_narrower_net_of_its_own_pads_or_crops_in_the_middle():
    x = jnp.arange(1.0, 6.0).reshape(1, 1, 1, 5)
    for width, expected in ((8, [0, 1, 2, 3, 4, 5, 0, 0]), (3, [2, 3, 4])):
        module = Pad(FrozenDict({"a": 5, "b": width}))
        found = module.apply(nn.unbox(module.init(jax.random.key(0), x)), x)
        np.testing.assert_array_equal(found.ravel(), np.float32(expected))


def test_a_slabs_link_joins_the_selected_partners_and_no_others():
    x = jnp.asarray([[[[10.0, 30.0]]]])  # channels 1 and 3 of four, partners 3 and 5 of eight
    chosen = {"a": jnp.asarray([1, 3], jnp.int32), "b": jnp.asarray([0, 3, 4, 7], jnp.int32)}
    full = Pad()
    boxed = full.init(jax.random.key(0), jnp.zeros((1, 1, 1, 4)))
    # The map of a whole network would refuse this piece; its names are enough.
    names = channels.AxisNames(tuple((n,) for n in boxed["links"]["shortcut"].names))
    cut = slab.gather(nn.unbox(boxed)["links"], {"shortcut": names}, chosen, full.widths)
    thin = Pad(FrozenDict({"a": 2, "b": 4}))
    np.testing.assert_array_equal(thin.apply({"links": cut}, x).ravel(), np.float32([0, 10, 0, 0]))
