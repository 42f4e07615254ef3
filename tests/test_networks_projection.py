"""ResNets with projection shortcuts, basic and bottleneck: proof, identities, rewards."""

import pytest
from families import TINY, check_full_budget, check_random_budgets, check_rewards, example
from nets import channel_map

from dce_jax import channels


@pytest.mark.parametrize("family", ["projection", "large", "bottleneck"])
def test_the_full_budget_is_the_dense_optax_step(family):
    check_full_budget(family)


@pytest.mark.parametrize("family", ["projection", "large", "bottleneck"])
def test_the_compact_model_is_the_slab_and_unselected_bits_stay(family):
    check_random_budgets(family)


@pytest.mark.parametrize("family", ["projection", "large", "bottleneck"])
def test_norms_carry_the_rewards_of_every_group(family):
    check_rewards(family)


def test_a_projection_writes_the_new_stream_and_its_norm_counts():
    norms = TINY["projection"].reward_norms()
    assert norms["stage0"] == (("norm",), ("stage0_block0", "norm1"), ("stage0_block1", "norm1"))
    assert norms["stage1"] == (("stage1_block0", "norm1"), ("stage1_block0", "norm_shortcut"))


def test_the_first_convolution_of_a_bottleneck_is_a_group_of_its_own():
    found = channel_map(TINY["bottleneck"], example("bottleneck"))
    assert found.full["stem"] == 5
    readers = [p["path"] for p in channels.places(found, "stem") if p["axis"] == 2]
    assert readers == [f"params/stage0_block0/{conv}/kernel" for conv in ("conv0", "conv_shortcut")]
