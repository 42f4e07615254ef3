"""Learned budgets of every family of networks: targets, floors, and one budget on any devices."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from costs import quick, traced
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ranking import following, heads, rungs

from dce_jax import allocate, networks

pytestmark = pytest.mark.one_set

COSTS = ("macs", "parameters")
ROUNDINGS = [(1, 1), (1, 2), (1, 5), (1, 100), (2, 1), (2, 2), (3, 2), (4, 6)]
DEVICES = 8
every_family = pytest.mark.parametrize("family", families.TINY)


def widths_of(family):
    return dict(families.TINY[family].widths)


def roundings(family):
    """Those of (multiple_of, min_channels) that leave every group a width."""
    sizes = widths_of(family).values()
    return [options for options in ROUNDINGS if all(rungs(size, *options) for size in sizes)]


def saliencies_of(family):
    """Float32 numbers per group: all zero, of few values, or from the least to the largest."""

    def group(size):
        ties = st.sampled_from([0.0, 0.25, 1.0])
        wide = st.floats(0, float(np.finfo(np.float32).max), width=32)
        return st.one_of(
            st.just([0.0] * size),
            st.lists(ties, min_size=size, max_size=size),
            st.lists(wide, min_size=size, max_size=size),
        ).map(lambda values: np.array(values, np.float32))

    return st.fixed_dictionaries({g: group(size) for g, size in widths_of(family).items()})


def draw_fraction(data, costs):
    """A share of the last cost that the first one meets: any, or nearly what some head costs."""
    least = min(math.nextafter(costs[0] / costs[-1], 2.0), 1.0)
    exact = st.sampled_from(costs).map(lambda cost: max(cost / costs[-1], least))
    return data.draw(st.one_of(st.floats(least, 1.0), exact))


@every_family
@pytest.mark.parametrize("cost", COSTS)
def test_a_budget_meets_its_target_and_one_rung_more_would_not(family, cost):
    widths, cost_of = (
        widths_of(family),
        quick(families.TINY[family], families.example(family))[cost],
    )

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(st.data(), saliencies_of(family), st.sampled_from(roundings(family)))
    def check(data, saliencies, rounding):
        multiple_of, least = rounding
        options = {"multiple_of": multiple_of, "min_channels": least}
        ranked = heads(widths, saliencies, **options)
        fraction = draw_fraction(data, [cost_of(head) for head in ranked])
        found = allocate.budget(widths, saliencies, fraction, cost_of, **options).compact
        target = fraction * cost_of(widths) * (1 + 1e-12)
        assert cost_of(found) <= target
        longest = max(i for i, head in enumerate(ranked) if head == found)
        assert longest + 1 == len(ranked) or cost_of(ranked[longest + 1]) > target
        for group, width in widths.items():
            assert min(least, width) <= found[group] <= width
            assert found[group] % multiple_of == 0 or found[group] == width

    check()


@every_family
@pytest.mark.parametrize("cost", COSTS)
def test_the_counted_costs_lead_to_the_same_budget(family, cost):
    # The test above costs its budgets without tracing them; this one holds it to the real counts.
    widths, example = widths_of(family), families.example(family)
    expected, counted = (
        quick(families.TINY[family], example)[cost],
        traced(families.TINY[family], example)[cost],
    )
    seen = []

    def cost_of(sizes):
        seen.append((counted(sizes), expected(sizes)))
        return seen[-1][0]

    saliencies = drawn(family, seed=0)
    found = allocate.budget(widths, saliencies, 0.5, cost_of)
    assert all(one == other for one, other in seen) and len(set(seen)) > 3
    assert found == allocate.budget(widths, saliencies, 0.5, expected)


# Side of an image, and classes, where they are not CIFAR's.
IMAGES = dict.fromkeys(["resnet18", "resnet50", "mobilenetv2"], (224, 1000))
IMAGES |= {"vgg-digits": (8, 10), "lenet5": (28, 10), "lenet-small": (28, 10)}


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_every_published_network_meets_its_target_and_keeps_every_layer(name):
    side, classes = IMAGES.get(name, (32, 10))
    module = networks.build(name, num_classes=classes)
    widths = dict(module.widths)
    depth = 1 if side in (8, 28) else 3
    image = jax.ShapeDtypeStruct((2, side, side, depth), jnp.float32)
    rng = np.random.default_rng(len(name))
    # Groups whole decades apart: without a floor the least would go down to one channel.
    saliencies = {g: rng.random(c) * 10.0 ** rng.integers(-3, 3) for g, c in widths.items()}
    for cost, cost_of in quick(module, image).items():
        for fraction, multiple_of in ((0.5, 1), (0.25, 4), (0.25, 1)):
            found = allocate.budget(
                widths, saliencies, fraction, cost_of, multiple_of=multiple_of, floor=0.1
            ).compact
            more = following(widths, saliencies, found, multiple_of, 0.1)
            assert cost_of(found) <= fraction * cost_of(widths) < cost_of(more), (cost, fraction)
            assert all(found[g] >= math.ceil(0.1 * width) for g, width in widths.items())
        assert traced(module, image)[cost](found) == cost_of(found)
        alone = allocate.budget(widths, saliencies, 0.1, cost_of).compact
        assert min(alone[group] / width for group, width in widths.items()) < 0.1


def drawn(family, seed):
    """Float32 saliencies with an all-zero group and ties across groups.

    At even seeds they span sixty decades; at odd ones they are neighbours among float32 numbers,
    whose order nothing but exact arithmetic keeps.
    """
    rng, found = np.random.default_rng(seed), {}
    for i, (group, size) in enumerate(widths_of(family).items()):
        wide = np.where(rng.random(size) < 0.3, 1.0, 10.0 ** rng.uniform(-30, 30, size))
        near = 1.0 + rng.integers(0, 40, size) * 2.0**-23
        values = np.zeros(size) if i == seed else near if seed % 2 else wide
        found[group] = values.astype(np.float32)
    return found


def budgets(place):
    """Widths of learned budgets of every family, at saliencies that ``place`` puts somewhere."""
    return [
        allocate.budget(
            widths_of(family),
            {group: place(values) for group, values in drawn(family, seed).items()},
            0.6,
            quick(families.TINY[family], families.example(family))[cost],
        ).compact
        for family in families.TINY
        for cost in COSTS
        for seed in range(4)
    ]


def over_devices(values, *, cut):
    """An array cut over as many devices as divide it, or a copy of it on each device."""
    count = max(n for n in range(1, DEVICES + 1) if len(values) % n == 0) if cut else DEVICES
    mesh = Mesh(np.array(jax.devices()[:count]), ("d",))
    placed = jax.device_put(values, NamedSharding(mesh, PartitionSpec("d" if cut else None)))
    assert len(placed.addressable_shards) == count
    assert placed.addressable_shards[0].data.shape == (len(values) // (count if cut else 1),)
    return placed


CHILD = f"""
import functools, json, jax
jax.config.update("jax_num_cpu_devices", {DEVICES})
import test_allocate_families as tests
places = [functools.partial(tests.over_devices, cut=cut) for cut in (True, False)]
print(json.dumps([tests.budgets(place) for place in places]))
"""


def test_a_budget_is_the_same_wherever_its_saliencies_lie():
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent)])
    child = subprocess.run(
        [sys.executable, "-c", CHILD],
        env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    cut, copied = json.loads(child.stdout)
    expected = budgets(lambda values: values.astype(np.float64))
    assert cut == expected and copied == expected
    assert len({str(budget) for budget in expected}) > len(families.TINY)


@pytest.mark.parametrize("scale", [allocate.by_max, allocate.by_l2, allocate.by_mean])
def test_a_scale_is_the_same_wherever_its_saliencies_lie(scale):
    given = {"a": np.float32([0.1, 0.2, 0.7]), "b": np.float32([0.3, 0.9])}
    expected = scale({group: values.astype(np.float64) for group, values in given.items()})
    found = scale({group: jnp.asarray(values) for group, values in given.items()})
    for group, values in expected.items():
        np.testing.assert_array_equal(found[group], values)
