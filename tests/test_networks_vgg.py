"""VGG: proof, identities, rewards."""

from families import check_full_budget, check_random_budgets, check_rewards


def test_the_full_budget_is_the_dense_optax_step():
    check_full_budget("vgg")


def test_the_compact_model_is_the_slab_and_unselected_bits_stay():
    check_random_budgets("vgg", examples=3)


def test_norms_carry_the_rewards_of_every_group():
    check_rewards("vgg")
