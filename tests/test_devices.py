"""The main job on several devices: as on one, restored on any number, refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from dce_jax import mesh as meshes
from experiments import background, blocks, data, placement, session, setup, train
from experiments.collectives import collectives, is_gradient
from experiments.programs import Programs

# Two channels before a convolution and a norm always earn alike, whatever their scale: a draw that
# rounding decides. Three do not.
MANY = {
    "devices": 8,
    "sharding": "sharded",
    "select_every": 2,
    "commit": 0.5,
    "block": 2,
    "keep": 0.75,
}
ONE = {**MANY, "devices": 1, "sharding": "replicated"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with runs.lab(tmp_path_factory.mktemp("devices")) as opened:
        yield opened


def close_end(one, other):
    """Asserts that two workdirs chose alike and ended with close numbers."""
    first, second = runs.arrays_of(one), runs.arrays_of(other)
    assert first.keys() == second.keys()
    for name in first:
        shape, dtype, values = first[name]
        assert second[name][:2] == (shape, dtype)
        a, b = (np.frombuffer(each, dtype) for each in (values, second[name][2]))
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4, err_msg=name)
    assert runs.chosen(one) == runs.chosen(other)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"select_every": 1, "commit": 1.0, "sharding": "replicated"},
        {"method": "dense"},
        {"scoring": 2, "allocation": "global", "plans": 2},
    ],
    ids=["windows", "fused", "dense", "scored"],
)
def test_eight_devices_end_where_one_does(lab, changes):
    found, many = lab.run(**{**MANY, **changes})
    _, one = lab.run(**{**ONE, **changes, "sharding": "replicated"})
    close_end(one, many)
    assert found["device"].startswith("8 x cpu")
    assert set(found["compilations"].values()) == {1}
    assert not {"devices", "sharding"} & set(found["config"])


def test_a_run_goes_on_with_another_number_of_devices(lab, tmp_path):
    for devices, sharding, stop in [(1, "replicated", 4), (8, "sharded", 8), (2, "replicated", 0)]:
        changes = {**MANY, "devices": devices, "sharding": sharding, "stop_after": stop or None}
        found = train.train(runs.settings(lab.images, **changes), tmp_path / "moved")
        assert (found is None) == bool(stop)
    assert found["device"].startswith("2 x cpu")
    close_end(lab.run(**ONE)[1], tmp_path / "moved")
    lines = runs.lines(tmp_path / "moved" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices": 9}, r"devices is 9, but there are 8 \(cpu\): choose at most 8, or 0 for all"),
        ({"devices": 3}, r"batch_size is 8: 3 devices .* choose a multiple of 3, or another"),
        ({"devices": -1}, r"devices is -1: it must be at least 0"),
        ({"sharding": "shard"}, r"unknown sharding 'shard'; did you mean 'sharded'\?"),
    ],
)
def test_devices_that_do_not_fit_are_refused(lab, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train.train(runs.settings(lab.images, **changes), tmp_path / "refused")


def test_all_devices_are_taken_and_one_is_left_alone(lab):
    images = data.load(str(lab.images), data_dir=None)
    every = setup.build(runs.settings(lab.images, devices=0), images).placement
    assert every.devices == 8 and placement.waits(every)
    alone = setup.build(runs.settings(lab.images, sharding="sharded"), images).placement
    assert alone == placement.Placement() and not placement.waits(alone)
    tree = {"a": jnp.zeros(3)}
    assert placement.put(alone, tree) is placement.local(alone, tree) is tree
    assert placement.loss(alone, len) is placement.batch_fn(alone, len) is len
    assert placement.jit_options(alone, len, tree) == {}
    assert placement.rows_of(alone, 8) == slice(0, 8)


def test_the_programs_of_a_run_cut_its_batches_and_send_slabs(lab):
    images = data.load(str(lab.images), data_dir=None)
    run = setup.build(runs.settings(lab.images, **MANY), images)
    programs = Programs(placement=run.placement)
    state = placement.put(run.placement, blocks.start(run))
    blocks.run_block(run, programs, state, 0, 2)
    text = programs.compiled["observe"].as_text()
    # A norm of K channels sends one vector more than it trains.
    trained = (9 * 3 + 2 * 3) + (9 * 3 * 5 + 2 * 5) + (5 * 3 + 3)
    backward = sum(one.bytes for one in collectives(text) if is_gradient(one))
    assert run.budget.compact == {"conv0": 3, "conv1": 5}
    assert backward == 4 * (trained + 3 + 5)
    # The gradient of the first convolution is of one image on each of eight devices.
    assert "f32[1,4,4,3]" in text and "f32[8,4,4,3]" not in text


def test_a_device_that_decides_otherwise_stops_the_run(lab, tmp_path):
    images = data.load(str(lab.images), data_dir=None)
    run = setup.build(runs.settings(lab.images, **{**MANY, "devices": 2}), images)
    run, state, _ = session.resume(run, Programs(placement=run.placement), tmp_path, [].append)
    plays = state.dce.bandit.plays["conv0"]
    copies = [jax.device_put(np.full(4, i, np.float32), d) for i, d in enumerate(jax.devices()[:2])]
    broken = jax.make_array_from_single_device_arrays((4,), plays.sharding, copies)
    bandit = state.dce.bandit._replace(plays={**state.dce.bandit.plays, "conv0": broken})
    state = state._replace(dce=state.dce._replace(bandit=bandit))
    message = r"different copies of .*conv0.* after step 2"
    with background.opened() as writer, pytest.raises(train.TrainingError, match=message):
        session.save(run, Programs(), state, tmp_path, 2, writer=writer)


@pytest.mark.parametrize(
    "changes",
    [{}, {"select_every": 1, "commit": 1.0}, {"method": "dense"}],
    ids=["windows", "fused", "dense"],
)
def test_a_block_leaves_its_state_where_the_next_one_wants_it(lab, changes):
    images = data.load(str(lab.images), data_dir=None)
    run = setup.build(runs.settings(lab.images, **{**MANY, "devices": 2, **changes}), images)
    programs = Programs(placement=run.placement)
    before = placement.put(run.placement, blocks.start(run))
    after, _ = blocks.run_block(run, programs, before, 0, 2)
    wanted = meshes.shardings(run.placement.mesh, after, sharded=True)
    for state in (before, after):
        for leaf, where in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
            assert leaf.sharding.is_equivalent_to(where, leaf.ndim)
    assert not all(where.is_fully_replicated for where in jax.tree.leaves(wanted))
    if "method" in changes:
        # Whole parameters, once each: no layer works on a part of its channels.
        gathered = collectives(programs.compiled["plain"].as_text())
        cut = [p for p in jax.tree.leaves(before.loop.params) if not p.is_fully_replicated]
        assert sum(one.kind == "all-gather" for one in gathered) == len(cut)
