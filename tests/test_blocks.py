"""Blocks end at fixed steps, wherever a run started, and state templates match states."""

import jax
import jax.numpy as jnp
import pytest
import runs
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import blocks, data, lengths, session, setup
from experiments.setup import Run


def plan(*, steps, commit, select_every, block, method="dce", checkpoint_blocks=2):
    """A run of which only the plan is known."""
    changes = {"steps": steps, "commit": commit, "select_every": select_every, "block": block}
    config = runs.settings("", method=method, checkpoint_blocks=checkpoint_blocks, **changes)
    known = {"config": config, "steps": steps, "commit_step": lengths.committing(config, steps)}
    return Run(**(dict.fromkeys(Run._fields) | known))


def ends(run, done=0):
    found = []
    while done < run.steps:
        done = blocks.block_end(run, done)
        found.append(done)
    return found


PLANS = st.builds(
    plan,
    steps=st.integers(1, 200),
    commit=st.floats(0, 1),
    select_every=st.integers(1, 20),
    block=st.integers(1, 60),
    method=st.sampled_from(["dce", "random", "dense", "scratch", "subset"]),
    checkpoint_blocks=st.integers(1, 5),
)


@settings(deadline=None, max_examples=60)
@given(run=PLANS)
def test_blocks_end_at_steps_that_no_restart_moves(run):
    whole = ends(run)
    assert whole == sorted(set(whole))
    assert whole[-1] == run.steps
    if run.commit_step:
        assert run.commit_step in whole
    for done in whole[:-1]:
        assert whole[whole.index(done) + 1 :] == ends(run, done)
    for begin, end in zip([0, *whole], whole, strict=False):
        assert len({blocks.phase_at(run, step) for step in range(begin, end)}) == 1
        if end < run.commit_step:  # a selection never straddles two blocks
            assert end % run.config.select_every == 0


@settings(deadline=None, max_examples=60)
@given(run=PLANS)
def test_checkpoints_fall_on_the_commit_the_end_and_every_few_blocks(run):
    whole, count = ends(run), 0
    for end in whole:
        count += 1
        due = session.due(run, end)
        if end in (run.commit_step, run.steps):
            assert due
        else:
            assert due == (count % run.config.checkpoint_blocks == 0)
        if end == run.commit_step:
            count = 0


@pytest.mark.parametrize(
    ("changes", "commit_step", "boundaries"),
    [
        ({"commit": 0.1}, 10, [10, 60, 100]),
        ({"commit": 0.0}, 10, [10, 60, 100]),  # at least one selection
        ({"commit": 1.0}, 100, [50, 100]),
        ({"commit": 0.14}, 10, [10, 60, 100]),
        ({"commit": 0.16}, 20, [20, 70, 100]),
        ({"commit": 0.5, "block": 25}, 50, [30, 50, 80, 100]),  # 25 is no multiple of 10
        ({"commit": 0.5, "select_every": 300}, 100, [100]),
        ({"commit": 0.5, "method": "scratch"}, 0, [50, 100]),
    ],
    ids=str,
)
def test_plans_by_hand(changes, commit_step, boundaries):
    run = plan(**({"steps": 100, "select_every": 10, "block": 50} | changes))
    assert run.commit_step == commit_step
    assert ends(run) == boundaries


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("blocks")
    with runs.cheap(root / "cache"):
        yield data.load(str(runs.write_images(root / "images.npz")), data_dir=None)


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@pytest.mark.parametrize("method", ["dce", "dense", "scratch", "subset"])
def test_templates_have_the_shapes_of_states(images, method):
    run = setup.build(runs.settings("", method=method), images)
    state = blocks.start(run)
    assert isinstance(state, blocks.Exploring) == (method == "dce")
    phase = blocks.phase_at(run, 0)
    assert phase == {"dce": "explore", "subset": "commit"}.get(method, "train")
    assert shapes(blocks.template(run, phase)) == shapes(state)
    if method == "dce":
        committed = blocks.commit(run, state)
        assert shapes(blocks.template(run, "commit")) == shapes(committed)
        assert {g: k.shape[0] for g, k in committed.selection.items()} == runs.HALF


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_finite_looks_at_every_floating_leaf(bad):
    good = {"a": jnp.ones(3), "b": jnp.ones(2, jnp.bfloat16), "n": jnp.int32(3)}
    keyed = {**good, "key": jax.random.key(0)}
    assert blocks.finite(keyed)
    for name in ("a", "b"):
        assert not blocks.finite({**keyed, name: good[name].at[1].set(bad)})
