"""MobileNetV2: proof, identities, rewards of linear streams and of depthwise groups."""

import numpy as np
from families import (
    TINY,
    check_full_budget,
    check_random_budgets,
    check_rewards,
    data,
    example,
    rewards,
)
from nets import evidence, variables

from dce_jax import saliency

STREAMS = ("stage0", "stage1")


def test_the_full_budget_is_the_dense_optax_step():
    check_full_budget("mobile")


def test_the_compact_model_is_the_slab_and_unselected_bits_stay():
    check_random_budgets("mobile", examples=2)


def test_norms_carry_the_rewards_of_every_group_where_relu6_does_not_clip():
    check_rewards("mobile", scale=0.5)


def test_streams_are_linear_and_their_rewards_exact_even_where_relu6_clips():
    check_rewards("mobile", STREAMS, scale=6.0)
    free, gated = rewards("mobile", scale=6.0)
    for group in set(free) - set(STREAMS):
        assert np.max(np.abs(free[group] - gated[group])) > 0.01 * np.max(gated[group]), group


def test_of_a_hidden_group_the_norm_before_the_depthwise_convolution_says_nothing():
    module = TINY["mobile"]
    seen = evidence(module, variables(module, example("mobile")), data("mobile"))
    declared = module.reward_norms()["stage1_block0_hidden"]
    assert declared == (("stage1_block0", "norm1"),)
    early, late = (
        saliency.norm_taylor({"a": (("stage1_block0", norm),)}).value(seen)["a"]
        for norm in ("norm0", "norm1")
    )
    assert np.max(early) < 1e-3 * np.max(late)
