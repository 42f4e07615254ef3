"""Kernels in tiles: the network that they were cut from, without a kernel being cut."""

import functools

import chains
import jax
import jax.numpy as jnp
import latency_nets
import numpy as np
import pytest

from dce_jax.runtime import (
    SWITCHED,
    chain,
    chunked,
    execute,
    predictor,
    replay,
    run,
    systems,
    tiles,
)
from dce_jax.runtime.chain import TILES
from experiments import latency_forms

NAME = "vgg"  # widths (2, 5), then (1, 4, 6)


@pytest.fixture(autouse=True)
def every_kernel_is_large(monkeypatch):
    monkeypatch.setattr(tiles, "LARGE_BYTES", 1)


def tiled(name=NAME, example=chains.EXAMPLE):
    links, variables = chains.build(name), chains.variables(name)
    seen = execute.inputs(links, variables, example)
    return tiles.tiled(links, chains.LEVELS[name], variables, seen)


def logits(variables, choices, *, execution=SWITCHED, name=NAME):
    @jax.jit
    def whole(variables, x, choices):
        levels = chains.LEVELS[name]
        return run(chains.build(name), levels, variables, x, replay(choices), execution).logits

    one = functools.partial(whole, variables)
    if execution.shared:
        return chains.one_by_one(one, chains.images(), choices)
    return np.asarray(one(chains.images(), choices))


def without_kernels(variables):
    """NaN in every kernel that is in tiles."""
    params = variables["params"]
    spoilt = {name: jax.tree.map(_nan, params[name]) for name in variables[TILES]}
    return {**variables, "params": {**params, **spoilt}}


def _nan(leaf):
    return jnp.full_like(leaf, jnp.nan)


def test_tiles_are_the_kernel_step_by_step():
    found = tiled()
    kernel = chains.variables(NAME)["params"]["conv2"]["kernel"]
    assert set(found[TILES]) == {"conv2"}  # the first site reads images' channels, which are whole
    rows = [
        np.concatenate([np.asarray(tile).reshape(3, 3, -1, tile.shape[1]) for tile in row], axis=-1)
        for row in found[TILES]["conv2"]
    ]
    assert [[tile.shape for tile in row] for row in found[TILES]["conv2"]] == [
        [(18, 1), (18, 3), (18, 2)],
        [(27, 1), (27, 3), (27, 2)],
    ]
    np.testing.assert_array_equal(np.concatenate(rows, axis=2), kernel)
    assert {name: tree for name, tree in found.items() if name != TILES} == chains.variables(NAME)


@pytest.mark.parametrize("execution", [SWITCHED, chunked(3)], ids=["switched", "chunks"])
def test_every_decision_is_the_plain_networks_and_no_kernel_is_read(execution):
    variables = without_kernels(tiled())
    for decision in chains.DECISIONS:
        choices = chains.decided(NAME, decision)
        found = logits(variables, choices, execution=execution)
        np.testing.assert_allclose(
            found, chains.expected(NAME, choices), rtol=2e-5, atol=2e-5, err_msg=decision
        )


def test_tiles_that_are_not_chosen_are_not_read():
    found = tiled()
    ((first, *more), *rest) = found[TILES]["conv2"]
    spoilt = jax.tree.map(_nan, [more, rest])
    broken = {**found, TILES: {"conv2": ((first, *spoilt[0]), *map(tuple, spoilt[1]))}}
    smallest, largest = (chains.decided(NAME, kind) for kind in ("smallest", "largest"))
    np.testing.assert_array_equal(logits(broken, smallest), logits(found, smallest))
    assert np.isnan(logits(broken, largest)).all()


def test_channels_in_an_order_of_an_images_own_come_from_the_kernel():
    found = tiled()
    spoilt = {**found, TILES: jax.tree.map(_nan, found[TILES])}
    choices = chains.decided(NAME, "smallest", scaled=True, ordered=True)
    np.testing.assert_allclose(
        logits(spoilt, choices), chains.expected(NAME, choices), rtol=2e-5, atol=2e-5
    )


def test_only_large_kernels_of_few_positions_are_cut(monkeypatch):
    kernel = chains.variables(NAME)["params"]["conv2"]["kernel"]
    monkeypatch.setattr(tiles, "LARGE_BYTES", kernel.nbytes)
    assert set(tiled()[TILES]) == {"conv2"}
    monkeypatch.setattr(tiles, "LARGE_BYTES", kernel.nbytes + 1)
    assert tiled()[TILES] == {}
    monkeypatch.setattr(tiles, "LARGE_BYTES", 1)
    monkeypatch.setattr(tiles, "MOST_POSITIONS", 16)  # half of 8x8
    assert set(tiled()[TILES]) == {"conv2"}
    assert tiled(example=jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32))[TILES] == {}


def test_residual_networks_have_none():
    found = tiled("projection")
    assert found[TILES] == {}
    choices = chains.decided("projection", "alternating")
    expected = chains.expected("projection", choices)
    np.testing.assert_allclose(
        logits(found, choices, name="projection"), expected, rtol=2e-5, atol=2e-5
    )


@pytest.mark.parametrize("name", systems.NAMES)
def test_only_nested_systems_get_tiles(name):
    net = "projection" if name in ("l", "lc") else NAME
    links, variables = chains.build(net), chains.variables(net)
    parts = 1 if name == "l" else 2
    system = systems.build(name, links, variables, chains.EXAMPLE, parts=parts)
    assert systems.nested(system) == (name in ("rnp", "l"))
    found = systems.tiled(system, variables, chains.EXAMPLE)
    assert (TILES in found) == systems.nested(system)
    assert bool(found.get(TILES)) == (name == "rnp")


def test_a_predictor_of_single_images_runs_on_tiles(monkeypatch):
    links, variables = chains.build(NAME), chains.variables(NAME)
    system = systems.build("rnp", links, variables, chains.EXAMPLE, parts=2)
    params = systems.initial(system, jax.random.key(0))
    knob = float(systems.at(system, jnp.zeros(())))
    x = chains.images()
    expected = [predictor(system, variables, params)(x[i : i + 1], knob)[0] for i in range(3)]
    shapes = []

    def seen(system, variables, images):
        shapes.append(images.shape)
        return without_kernels(cut(system, variables, images))

    cut = systems.tiled
    monkeypatch.setattr(systems, "tiled", seen)
    predict = predictor(system, variables, params, SWITCHED)
    for _ in range(2):  # inside of a trace that is the first to ask, and of another one
        inside = jax.jit(lambda x: predict(x, knob)[0])(x[:1])
        np.testing.assert_allclose(inside, expected[0], rtol=1e-4, atol=1e-5)
    for i, logits in enumerate(expected):
        np.testing.assert_allclose(predict(x[i : i + 1], knob)[0], logits, rtol=1e-4, atol=1e-5)
    assert shapes == [(1, 8, 8, 3)]
    assert np.isfinite(predict(x, knob)[0]).all()  # a batch that decides as one: kernels
    assert shapes == [(1, 8, 8, 3)]


@pytest.fixture
def promoting():
    with jax.numpy_dtype_promotion("standard"):  # Flax's batch norm promotes silently
        yield


def test_half_precision_runs_in_half_precision(promoting):
    net = chains.NETS[NAME].clone(dtype=jnp.bfloat16)
    half = chain.chain(net, chains.build(NAME).channels)
    variables, levels = chains.variables(NAME), chains.LEVELS[NAME]
    seen = execute.inputs(half, variables, chains.EXAMPLE)
    found = tiles.tiled(half, levels, variables, seen)
    choices = jax.tree.map(lambda f: f[:1], chains.decided(NAME, "largest"))

    def run_on(variables):
        return run(half, levels, variables, chains.images(1), replay(choices), SWITCHED).logits

    assert "bf16[18,1]" in str(jax.make_jaxpr(run_on)(found))
    np.testing.assert_allclose(run_on(found), run_on(variables), rtol=0.05, atol=0.05)


def test_latency_times_one_image_with_and_without_tiles(monkeypatch):
    monkeypatch.setattr(tiles, "MOST_POSITIONS", 16 * 16)
    with latency_nets.named():
        subject = latency_nets.subject(parts=2, images=2)
        assert [name for name, _ in forms(subject)] == [
            "switched, kernels in tiles",
            "switched",
            "masked",
        ]
        other = latency_nets.subject(parts=2, images=2, name="c")
        assert [name for name, _ in forms(other)] == ["switched", "masked"]
        full, first, second, _ = latency_forms.forms(subject, batch=1, chunk=1, tell=print)
    knob = jnp.asarray(subject.knob)
    assert TILES in first.variables and TILES not in second.variables
    for levels in ([0, 0], [1, 0], [0, 1], [1, 1]):
        told = jnp.asarray(levels, jnp.int32)[:, None]
        mine, its = (
            form.program.call(form.variables, subject.images[:1], subject.params, knob, told)
            for form in (first, second)
        )
        np.testing.assert_allclose(mine, its, rtol=1e-4, atol=1e-6)
    everything = full.program.call(full.variables, subject.images[:1])
    np.testing.assert_allclose(mine, everything, rtol=1e-4, atol=1e-6)


def forms(subject):
    return [
        (latency_forms.Form(execution, None, {TILES: 1} if on_tiles else {}).name, on_tiles)
        for execution, on_tiles in latency_forms.ways(subject, 1, 1)
    ]
