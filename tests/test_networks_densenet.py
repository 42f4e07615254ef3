"""DenseNets: proof, identities, rewards read off parts of norms over concatenations."""

import jax.numpy as jnp
import numpy as np
import pytest
from families import TINY, check_full_budget, check_random_budgets, check_rewards, data, example
from nets import channel_map, evidence, variables

from dce_jax import budget, channels, saliency
from dce_jax.parts import norm_parts
from dce_jax.types import Evidence


@pytest.mark.parametrize("family", ["dense", "dense-bc"])
def test_the_full_budget_is_the_dense_optax_step(family):
    check_full_budget(family)


@pytest.mark.parametrize(("family", "examples"), [("dense", 2), ("dense-bc", 1)])
def test_the_compact_model_is_the_slab_and_unselected_bits_stay(family, examples):
    check_random_budgets(family, examples)


@pytest.mark.parametrize("family", ["dense", "dense-bc"])
def test_norms_carry_the_rewards_of_every_group(family):
    check_rewards(family)


def test_concatenations_are_sequences_of_groups_with_offsets():
    found = channel_map(TINY["dense"], example("dense"))
    places = {p["path"]: p["offset"] for p in channels.places(found, "block0_layer1")}
    assert places == {
        "batch_stats/transition0/norm0/mean": 9,
        "batch_stats/transition0/norm0/var": 9,
        "params/block0_layer1/conv/kernel": 0,
        "params/transition0/conv/kernel": 9,
        "params/transition0/norm0/bias": 9,
        "params/transition0/norm0/scale": 9,
    }
    assert TINY["dense"].reward_norms()["block0_layer1"] == (("transition0", "norm0"),)


def test_parts_follow_the_widths_of_the_slab():
    found = channel_map(TINY["dense"], example("dense"))
    bud = budget.from_widths(
        found.full, {"stem": 2, "block0_layer0": 1, "block0_layer1": 3}, allow_missing=True
    )
    parts = norm_parts(found, bud.compact)
    assert parts["block0_layer1", "norm0"] == {"stem": ((0, 2),), "block0_layer0": ((2, 1),)}
    assert parts["transition0", "norm0"]["block0_layer1"] == ((3, 3),)
    assert ("block0_layer0", "norm0") not in parts  # it reads one group alone
    assert set(parts) == {
        ("block0_layer1", "norm0"),
        ("transition0", "norm0"),
        ("block1_layer1", "norm0"),
        ("norm",),
    }


def test_signals_read_a_groups_parts_of_a_shared_norm():
    scale, grad = jnp.asarray([1.0, 2, -3, 4]), jnp.asarray([1.0, 10, 100, 1000])
    seen = Evidence({"p": {"scale": scale}}, {"p": {"scale": grad}}, {})
    parts = {("p",): {"a": ((0, 1), (3, 1)), "b": ((1, 2),)}}
    norms = {"a": (("p",),), "b": (("p",),)}
    taylor = saliency.norm_taylor(norms, parts).value(seen)
    assert {g: v.tolist() for g, v in taylor.items()} == {"a": [4001.0], "b": [20.0, 300.0]}
    sizes = saliency.norm_scale(norms, parts).value(seen)
    assert {g: v.tolist() for g, v in sizes.items()} == {"a": [5.0], "b": [2.0, 3.0]}


def test_a_shared_norm_without_its_parts_is_refused():
    module = TINY["dense-bc"]
    tree = variables(module, example("dense-bc"))["params"]
    with pytest.raises(ValueError, match=r"'stem'.*different sizes .*norm_parts"):
        saliency.norm_taylor(module.reward_norms()).value(Evidence(tree, tree, {}))


def test_gates_of_a_concatenation_are_one_per_group():
    seen = evidence(TINY["dense"], variables(TINY["dense"], example("dense")), data("dense"))
    # The stem is read by both layers of its block and by the transition.
    assert [gate.shape for gate in seen.gates["stem"]] == [(4, 5)] * 3
    assert np.max(np.abs(seen.gates["stem"][0] - seen.gates["stem"][1])) > 1e-5
