"""Pre-activation ResNets: proof, identities, rewards."""

from families import TINY, check_full_budget, check_random_budgets, check_rewards, example
from nets import channel_map


def test_the_full_budget_is_the_dense_optax_step():
    check_full_budget("preact")


def test_the_compact_model_is_the_slab_and_unselected_bits_stay():
    check_random_budgets("preact", examples=2)


def test_norms_carry_the_rewards_of_every_group():
    check_rewards("preact")


def test_a_stream_is_read_through_norms_alone_and_all_of_them_count():
    norms = TINY["preact"].reward_norms()
    assert norms["stem"] == (("stage0_block0", "norm0"),)
    assert norms["stage0"] == (("stage0_block1", "norm0"), ("stage1_block0", "norm0"))
    assert norms["stage1"] == (("norm",),)
    assert norms["stage1_block0_conv1"] == (("stage1_block0", "norm2"),)
    found = channel_map(TINY["preact"], example("preact"))
    vectors = {
        leaf.path[:-1]
        for leaf in found.leaves
        if leaf.collection == "params" and leaf.names.axes == (("stage0",),)
    }
    assert vectors == set(norms["stage0"])
