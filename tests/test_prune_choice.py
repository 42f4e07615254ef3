"""Which channels a round removes: against a slow, literal greedy loop, at counted costs."""

import functools
from pathlib import Path

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import TINY, example
from flax.core import FrozenDict
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import dense

from dce_jax import channels, cost, forward, networks, pruning
from dce_jax.pruning import Order, costs

pytestmark = pytest.mark.one_set

VGG = networks.VGG((1, 2), FrozenDict({"conv0": 4, "conv1": 6, "conv2": 5}), 3)
NETS = {**{f: TINY[f] for f in ("padding", "bottleneck", "dense-bc", "mobile")}, "vgg": VGG}


def counted(module, widths, shape):
    thin = channels.with_widths(module, widths)
    one = jax.ShapeDtypeStruct((1, *shape.shape[1:]), jnp.float32)
    variables = nn.unbox(forward.shapes(thin, one))
    return cost.macs(thin.apply, variables, one), cost.parameters(variables["params"])


@functools.cache
def tables(family):
    module, shape = NETS[family], example(family)
    found = channels.build(module, forward.shapes(module, shape))
    return costs.macs(module, found, shape), costs.parameters(found)


@pytest.mark.parametrize("family", NETS)
def test_a_table_foretells_what_the_counter_counts(family):
    macs, parameters = tables(family)
    draw = np.random.default_rng(0)
    full = dict(NETS[family].widths)
    for widths in (full, {g: int(draw.integers(1, c + 1)) for g, c in full.items()}):
        exact = counted(NETS[family], widths, example(family))
        assert (costs.total(macs, widths), costs.total(parameters, widths)) == exact
        fewer = {g: (i + 1) % 2 for i, g in enumerate(full)}  # where that leaves a channel
        fewer = {g: min(n, widths[g] - 1) for g, n in fewer.items()}
        for table in (macs, parameters):
            for group, saved in zip(full, costs.savings(table, widths, fewer), strict=True):
                less = widths | {group: widths[group] - fewer[group]}
                assert costs.total(table, widths) - costs.total(table, less) == saved


class Pairs(nn.Module):
    """A product of activations: its cost is the square of a width, and no kernel's."""

    widths: FrozenDict = FrozenDict({"a": 4})

    @nn.compact
    def __call__(self, x):
        y = nn.relu(dense(self.widths["a"], (None, "a"), "first")(x))
        y = y + jnp.einsum("bi,bj->bj", y, y)
        return dense(3, ("a", None), "head")(y)


class Twice(nn.Module):
    """A layer that runs once per channel of its own: its cost is not in proportion to a kernel."""

    widths: FrozenDict = FrozenDict({"a": 4})

    @nn.compact
    def __call__(self, x):
        layer = dense(self.widths["a"], (None, "a"), "first")
        y = sum(layer(x) for _ in range(self.widths["a"]))
        return dense(3, ("a", None), "head")(y)


def test_costs_that_no_table_foretells_are_refused():
    shape = jax.ShapeDtypeStruct((2, 5), jnp.float32)
    for module, message in ((Pairs(), "do not follow from one kernel"), (Twice(), "its kernels")):
        found = channels.build(module, forward.shapes(module, shape))
        with pytest.raises(ValueError, match=message):
            costs.macs(module, found, shape)


# --- the greedy choice


def literal(saliencies, cost_of, *, target, least, order, multiple_of=1):
    """One step at a time, everything computed anew; lists of those that are left."""
    left = {g: list(range(len(v))) for g, v in saliencies.items()}
    removed = []

    def widths(without=None, count=1):
        return {g: len(c) - count * (g == without) for g, c in left.items()}

    while cost_of(widths()) > target:
        candidates = []
        for place, group in enumerate(left):
            count = 1
            while (len(left[group]) - count) % multiple_of:
                count += 1
            if len(left[group]) - count < least[group]:
                continue
            worst = sorted(left[group], key=lambda c, g=group: (saliencies[g][c], c))[:count]
            saving = cost_of(widths()) - cost_of(widths(group, count))
            value = sum(saliencies[group][channel] for channel in worst)
            each = (value - order.penalty * saving) / count
            candidates.append((value / saving if order.per_saving else each, place, group, worst))
        assert candidates
        _, _, group, worst = min(candidates)
        left[group] = [channel for channel in left[group] if channel not in worst]
        removed.append((group, worst))
    while removed:
        group, worst = removed.pop()
        if cost_of(widths(group, -len(worst))) <= target:
            left[group] = sorted(left[group] + worst)
        else:
            removed = [each for each in removed if each[0] != group]
    return left


def assert_nothing_more_fits(found, full, table, target, multiple_of=1):
    widths = {g: len(kept) for g, kept in found.items()}
    assert costs.total(table, widths) <= target
    for group in full:
        wider = min(full[group], (widths[group] // multiple_of + 1) * multiple_of)
        if wider > widths[group]:
            assert costs.total(table, {**widths, group: wider}) > target


ORDERS = st.one_of(
    st.just(Order()),
    st.floats(0, 1e-3).map(lambda penalty: Order(penalty=penalty)),
    st.just(Order(per_saving=True)),
)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_greedy_removal_is_the_literal_one(data):
    family = data.draw(st.sampled_from(["vgg", "padding", "dense-bc", "mobile"]))
    table = data.draw(st.sampled_from(tables(family)))
    full = dict(NETS[family].widths)
    seed = data.draw(st.integers(0, 10**6))
    draw = np.random.default_rng(seed)
    saliencies = {g: draw.choice([0.0, 0.3, *draw.uniform(-0.1, 1, 5)], c) for g, c in full.items()}
    least = {g: int(draw.integers(1, c + 1)) for g, c in full.items()}
    low, high = costs.total(table, least), costs.total(table, full)
    target = low + data.draw(st.floats(0, 1)) * (high - low)
    order = data.draw(ORDERS)
    found = pruning.greedy(saliencies, table, target=target, least=least, order=order)
    expected = literal(
        saliencies,
        lambda widths: costs.total(table, widths),
        target=target,
        least=least,
        order=order,
    )
    assert {g: kept.tolist() for g, kept in found.items()} == expected
    assert all(kept.dtype == np.int32 for kept in found.values())
    assert_nothing_more_fits(found, full, table, target)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_greedy_removal_in_multiples_is_the_literal_one(data):
    family = data.draw(st.sampled_from(["vgg", "padding", "dense-bc", "mobile"]))
    table = data.draw(st.sampled_from(tables(family)))
    full, multiple_of = dict(NETS[family].widths), data.draw(st.sampled_from([2, 3]))
    draw = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    saliencies = {g: draw.uniform(0, 1, c) for g, c in full.items()}
    least = {g: int(draw.integers(1, c + 1)) for g, c in full.items()}
    narrowest = {g: min(c, -(-least[g] // multiple_of) * multiple_of) for g, c in full.items()}
    low, high = costs.total(table, narrowest), costs.total(table, full)
    target, order = low + data.draw(st.floats(0, 1)) * (high - low), data.draw(ORDERS)
    options = {"target": target, "least": least, "order": order, "multiple_of": multiple_of}
    found = pruning.greedy(saliencies, table, **options)
    expected = literal(saliencies, lambda widths: costs.total(table, widths), **options)
    assert {g: kept.tolist() for g, kept in found.items()} == expected
    assert_nothing_more_fits(found, full, table, target, multiple_of)


def test_a_neighbour_that_shrinks_makes_a_channel_cheaper():
    table = tables("vgg")[0]
    worths = {"conv0": [1.0] * 4, "conv1": [0.5] * 6, "conv2": [1.0] * 5}
    least = dict.fromkeys(worths, 1)
    one = costs.savings(table, VGG.widths, dict.fromkeys(worths, 1))
    per_channel = dict(zip(worths, one, strict=True))
    # At these savings conv1 goes first, and before it is gone conv0 would not be chosen; what
    # conv0 and conv2 save falls with every channel of conv1.
    found = pruning.greedy(
        worths,
        table,
        target=costs.total(table, {"conv0": 4, "conv1": 1, "conv2": 5}),
        least=least,
        order=Order(penalty=0.2 / per_channel["conv2"]),
    )
    assert {g: len(kept) for g, kept in found.items()} == {"conv0": 4, "conv1": 1, "conv2": 5}


def test_widths_become_multiples_and_a_group_goes_by_the_mean_of_what_goes_at_once():
    table = tables("vgg")[1]
    worths = {"conv0": [0.0, 9.0, 9.0, 9.0], "conv1": [2.0] * 6, "conv2": [3.0] * 5}
    full, least = dict(VGG.widths), {"conv0": 2, "conv1": 2, "conv2": 2}
    target = costs.total(table, full) - 1
    found = pruning.greedy(worths, table, target=target, least=least, multiple_of=2)
    # conv0 would lose channels worth 0 and 9 together, 4.5 on average; conv1 two of 2.
    assert {g: len(kept) for g, kept in found.items()} == {"conv0": 4, "conv1": 4, "conv2": 5}
    assert found["conv1"].tolist() == [2, 3, 4, 5]
    target = costs.total(table, {"conv0": 2, "conv1": 2, "conv2": 2})
    found = pruning.greedy(worths, table, target=target, least=least, multiple_of=2)
    assert {g: len(kept) for g, kept in found.items()} == {"conv0": 2, "conv1": 2, "conv2": 2}
    assert found["conv0"].tolist() == [2, 3]


def test_what_still_fits_comes_back():
    table = tables("vgg")[1]
    full = dict(VGG.widths)
    one = dict(zip(full, costs.savings(table, full, dict.fromkeys(full, 1)), strict=True))
    assert one["conv2"] < one["conv1"]  # so that conv2 goes first, and is then not needed
    worths = {"conv0": [9.0] * 4, "conv1": [1.0, *[9.0] * 5], "conv2": [0.0, *[9.0] * 4]}
    target = costs.total(table, full) - one["conv1"]
    found = pruning.greedy(worths, table, target=target, least=dict.fromkeys(full, 1))
    assert {g: len(kept) for g, kept in found.items()} == full | {"conv1": 5}
    assert found["conv2"].tolist() == [0, 1, 2, 3, 4]


def test_the_best_of_every_group_stay():
    worths = {"a": [1.0, 3.0, 2.0], "b": [0.0, 0.0]}
    found = pruning.best(worths, {"a": 2, "b": 1})
    assert {g: kept.tolist() for g, kept in found.items()} == {"a": [1, 2], "b": [1]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": 10.0}, "a target of 10 is below the floor: with at least .* still costs"),
        ({"least": {"conv0": 0, "conv1": 1, "conv2": 1}}, "floor of group 'conv0' is 0"),
        ({"least": {"conv9": 1}}, "unknown channel group 'conv9'; did you mean"),
        ({"saliencies": {"conv0": [1.0] * 4}}, r"no saliency of groups \['conv1', 'conv2'\]"),
        ({"saliencies": {"other": [1.0]}}, "unknown channel group 'other'"),
        (
            {"saliencies": {"conv0": [1.0, np.nan, 0.0, 0.0], "conv1": [0.0], "conv2": [0.0]}},
            "saliency of group 'conv0' must be one finite number per channel",
        ),
    ],
    ids=str,
)
def test_bad_input_is_refused(changes, message):
    given = {
        "saliencies": {"conv0": [1.0] * 4, "conv1": [1.0] * 6, "conv2": [1.0] * 5},
        "target": 1e9,
        "least": {"conv0": 1, "conv1": 1, "conv2": 1},
    } | changes
    saliencies = given.pop("saliencies")
    with pytest.raises(ValueError, match=message):
        pruning.greedy(saliencies, tables("vgg")[0], **given)
    with pytest.raises(ValueError, match="7 channels of group 'a' cannot stay of the 2"):
        pruning.best({"a": [1.0, 2.0]}, {"a": 7})


def test_the_loop_of_the_documentation_runs():
    text = (Path(__file__).parents[1] / "docs" / "pruning.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    # A smaller network, which compiles fast.
    small = 'networks.VGG((1, 1), flax.core.FrozenDict({"conv0": 4, "conv1": 6}), 10)'
    named = 'networks.build("vgg-digits", num_classes=10, width=0.125)'
    assert named in code
    found = {"flax": flax}
    exec(compile(code.replace(named, small), "pruning.md", "exec"), found)
    widths, full = found["widths"], found["mapped"].full
    assert costs.total(found["costs"], widths) <= 0.3 * costs.total(found["costs"], full)
    assert {g: len(s) for g, s in found["kept_so_far"].items()} == widths
    kernel = found["loop"].params["conv1"]["kernel"]
    assert kernel.shape == (3, 3, widths["conv0"], widths["conv1"])
