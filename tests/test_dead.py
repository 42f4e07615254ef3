"""Dead units of hand-made networks: none missed, none made up, in any number of batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import TINY, data, example
from flax.core import FrozenDict
from nets import CLASSES, FlattenNet, batch, split, variables

from dce_jax import channels, compact, forward, networks, pruning
from dce_jax.budget import from_widths
from dce_jax.pruning import dead
from dce_jax.signals import Scene

LENET = networks.LeNet(2, FrozenDict({"conv0": 4, "conv1": 5, "dense0": 6}), CLASSES)
PICTURES = jax.ShapeDtypeStruct((2, 16, 16, 2), jnp.float32)


def mapped(module, shape=PICTURES):
    return channels.build(module, forward.shapes(module, shape))


def batches(count=2):
    return [batch(seed, size=4, shape=(16, 16, 2)) for seed in range(count)]


@functools.cache
def healthy():
    params, _ = split(variables(LENET, PICTURES))
    for layer in ("conv0", "conv1", "dense0"):  # no unit is off by chance
        bias = jnp.full_like(params[layer]["bias"], 3.0 if layer == "dense0" else 0.5)
        params[layer] = {"kernel": params[layer]["kernel"], "bias": bias}
    return params


def changed(layer, channel, *, kernel=1.0, bias=None, params=None):
    params = dict(healthy() if params is None else params)
    own = dict(params[layer])
    own["kernel"] = own["kernel"].at[..., channel].multiply(kernel)
    own["bias"] = own["bias"] if bias is None else own["bias"].at[channel].set(bias)
    return {**params, layer: own}


def found(params, given=None, **options):
    return dead.report(Scene(LENET, mapped(LENET), params, {}), given or batches(), **options)


def who(report):
    return {
        group: [sorted(np.flatnonzero(mask).tolist()) for mask in each]
        for group, each in report.items()
    }


@pytest.mark.parametrize("bias", [np.inf, np.nan])
def test_a_network_that_is_not_finite_is_refused(bias):
    with pytest.raises(ValueError, match=r"of \d+ units at .* is not finite"):
        found(changed("conv1", 2, bias=bias))


def test_a_healthy_network_has_no_dead_units():
    nothing = {"conv0": [[], [], []], "conv1": [[], [], []], "dense0": [[], [], []]}
    assert who(found(healthy())) == nothing


def test_each_kind_is_found_where_it_is_and_nowhere_else():
    params = changed("conv0", 1, bias=-1e3)  # off for every example: zero, and nothing to learn
    params = changed("conv1", 2, kernel=0.0, bias=0.7, params=params)  # constant, and learns
    params = changed("conv1", 4, kernel=0.0, bias=0.0, params=params)
    deaf = dict(params["head"])
    deaf["kernel"] = deaf["kernel"].at[3].set(0.0)  # nobody reads dense0's fourth unit
    assert who(found({**params, "head": deaf})) == {
        "conv0": [[1], [], [1]],
        "conv1": [[4], [2], [4]],
        "dense0": [[], [], [3]],
    }


def test_one_example_is_enough_to_be_alive():
    given = batches()
    last = given[1]["image"].at[0].multiply(100.0)
    params = changed("conv0", 1, bias=-20.0)
    assert who(found(params, given))["conv0"] == [[1], [], [1]]
    given[1] = {**given[1], "image": last}
    alive = who(found(params, given))["conv0"]
    assert alive == [[], [], []]


def test_batches_add_up_to_what_one_batch_tells():
    params = changed("conv1", 2, kernel=0.0, bias=0.7)
    whole = jax.tree.map(lambda *parts: jnp.concatenate(parts), *batches())
    assert who(found(params, [whole])) == who(found(params))


def test_the_tolerance_is_a_share_of_the_groups_largest_unit():
    params = changed("conv0", 3, kernel=1e-5, bias=0.0)
    assert who(found(params))["conv0"][0] == []
    assert who(found(params, tolerance=1e-3))["conv0"][0] == [3]
    constant = changed("conv0", 3, kernel=1e-5, bias=1.0)
    assert who(found(constant))["conv0"][1] == []
    assert who(found(constant, tolerance=1e-3))["conv0"][1] == [3]


def test_a_stream_is_dead_only_where_it_is_everywhere():
    module = TINY["projection"]
    params, state = split(variables(module, example("projection")))
    own = mapped(module, example("projection"))
    params["stage0_block0"] = {
        **params["stage0_block0"],
        "norm0": jax.tree.map(lambda a: a.at[2].set(0.0), params["stage0_block0"]["norm0"]),
    }
    stem = {"scale": params["norm"]["scale"].at[1].set(0.0), "bias": params["norm"]["bias"]}
    params["norm"] = {**stem, "bias": stem["bias"].at[1].set(0.4)}  # constant at the first block
    report = dead.report(Scene(module, own, params, state), [data("projection")])
    assert np.flatnonzero(report["stage0_block0_conv0"].zero).tolist() == [2]
    assert not report["stage0"].any[1]


def test_units_are_judged_over_all_places_and_batches():
    # Five units at two places, in two sets of batches; the second place holds another group first.
    there, other = ("one", "a"), ("two", "b", "a")
    places = {there: {"a": (0, 5)}, other: {"b": (0, 1), "a": (1, 5)}}

    def seen(low, high, *, second_low, second_high):
        lows = {there: jnp.asarray(low), other: jnp.asarray([5.0, *second_low])}
        highs = {there: jnp.asarray(high), other: jnp.asarray([5.0, *second_high])}
        return dead.Seen(lows, highs, {"a": jnp.ones(5), "b": jnp.ones(1)})

    one = seen(
        [0.0, 2.0, -9.0, 1.0, 0.0],
        [0.0, 2.0, -9.0, 4.0, 0.0],
        second_low=[0.0, 3.0, 0.0, 7.0, 0.0],
        second_high=[0.0, 3.0, 0.0, 7.0, 0.0],
    )
    two = seen(
        [0.0, 2.0, -9.0, 1.0, -1.0],
        [0.0, 2.0, -9.0, 1.0, 0.0],
        second_low=[0.0, 3.0, 0.0, 7.0, 0.0],
        second_high=[0.0, 3.0, 0.0, 7.0, 0.0],
    )
    for both in ((one, two), (two, one)):
        found = dead.judged(dead.merged(*both), places, {"a": 5, "b": 1}, tolerance=0.09)
        assert who({"a": found["a"], "b": found["b"]}) == {
            "a": [[0], [1, 2], []],  # a tenth of the largest, 9, is too little to call 4 nothing
            "b": [[], [0], []],
        }
        # With more tolerance the last unit, never beyond 1 of 9, is zero.
        assert who(dead.judged(dead.merged(*both), places, {"a": 5, "b": 1}, tolerance=0.12))[
            "a"
        ] == [[0, 4], [1, 2], []]


def test_the_table_counts_every_group_and_all_of_them():
    params = changed("conv0", 1, bias=-1e3)
    lines = dead.table(found(changed("conv1", 2, kernel=0.0, bias=0.7, params=params))).splitlines()
    cells = [line.split() for line in lines]
    assert cells[0] == ["group", "width", "zero", "constant", "never", "learning", "dead"]
    assert cells[1:] == [
        ["conv0", "4", "1", "0", "1", "25.0%"],
        ["conv1", "5", "0", "1", "0", "20.0%"],
        ["dense0", "6", "0", "0", "0", "0.0%"],
        ["all", "15", "1", "1", "1", "13.3%"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_without_zero_and_constant_units_the_network_computes_what_it_did():
    params = changed("conv1", 2, kernel=0.0, bias=-1.0)  # zero behind the ReLU
    params = changed("dense0", 1, kernel=0.0, bias=2.0, params=params)  # constant
    params = changed("dense0", 4, kernel=0.0, bias=-2.0, params=params)
    params["head"] = {**params["head"], "kernel": params["head"]["kernel"].at[3].set(0.0)}
    report = found(params)
    assert who(report)["dense0"] == [[4], [1], [3, 4]]  # 3 is never heard: it learns nothing
    kept = dead.survivors(report)
    assert {g: each.tolist() for g, each in kept.items()} == {
        "conv0": [0, 1, 2, 3],
        "conv1": [0, 1, 3, 4],
        "dense0": [0, 2, 3, 5],
    }
    images = [each["image"] for each in batches()]
    folded, _ = pruning.fold(Scene(LENET, mapped(LENET), params, {}), images, kept)
    narrow = {group: len(each) for group, each in kept.items()}
    small = compact.extract(
        mapped(LENET), from_widths(LENET.widths, narrow), {"params": folded}, kept
    )
    thin = channels.with_widths(LENET, narrow)
    for x in images:
        before = forward.apply(LENET, params, {}, x, train=False)[0]
        after = forward.apply(thin, small.variables["params"], {}, x, train=False)[0]
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)


def test_a_group_of_dead_units_keeps_its_first_ones():
    def judged(zero, constant):
        never = np.ones(4, bool)
        return dead.Dead(np.asarray(zero, bool), np.asarray(constant, bool), never)

    report = {"a": judged([1, 1, 0, 1], [0, 0, 1, 0]), "b": judged([0, 1, 0, 0], [0, 0, 0, 1])}
    for least, expected in ((1, {"a": [0], "b": [0, 2]}), (3, {"a": [0, 1, 2], "b": [0, 1, 2]})):
        found = dead.survivors(report, least=least)
        assert {group: each.tolist() for group, each in found.items()} == expected
        assert all(each.dtype == np.int32 for each in found.values())
    with pytest.raises(ValueError, match="least is 0: a group keeps at least 1 channel"):
        dead.survivors(report, least=0)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="at least one batch"):
        dead.report(Scene(LENET, mapped(LENET), healthy(), {}), [])
    with pytest.raises(ValueError, match="tolerance is -1"):
        found(healthy(), tolerance=-1)
    bare = FlattenNet()
    shape = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    with pytest.raises(ValueError, match=r"no units of group 'a'.*networks.gate"):
        dead.report(Scene(bare, mapped(bare, shape), variables(bare)["params"], {}), [batch()])
