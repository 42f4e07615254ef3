"""A re-plan by itself: it changes the budget, and nothing that training and bandit know is lost."""

import zlib

import jax
import numpy as np
import pytest
import runs
from nets import same_bits
from steps import host
from test_plans import GLOBAL, built, known
from test_step_programs import COMPILED

from dce_jax import budget, networks
from dce_jax.networks import DenseNet
from dce_jax.networks.densenet import densenet_widths
from dce_jax.step import DceState
from experiments import blocks, plans, processes, session, train
from experiments.blocks import Exploring
from experiments.programs import Programs

pytestmark = pytest.mark.one_set

CATCH_UP = {"optimizer": "adamw", "idle": "catch_up"}
COMMIT_AT_ONCE = {"plans": 1, "commit": 0.3}  # the first plan, after the same 6 steps, is the last


@pytest.fixture(autouse=True)
def _promotion():
    # Optax's Adam raises a float to the power of its int32 count.
    with jax.numpy_dtype_promotion("standard"):
        yield


def explored(run, programs, state, done, until):
    while done < until:
        end = blocks.block_end(run, done)
        state, _ = blocks.run_block(run, programs, state, done, end)
        done = end
    return state


def around_a_plan(lab, **changes):
    """Copies of a run's state before and after its first plan."""
    run, programs = built(lab, **changes), Programs()
    state = explored(run, programs, blocks.start(run), 0, 6)
    before = host(state.dce)
    later, state = blocks.replan(run, programs, state, 6)
    assert later.budget != run.budget
    return before, host(state.dce)


def nothing_is_zero(dce):
    """Whether moments, statistics and bandit would all be missed."""
    held = (dce.loop.opt_state, dce.loop.model_state, dce.bandit, dce.last)
    return all(np.any(leaf) for leaf in jax.tree.leaves(held))


@pytest.mark.parametrize("changes", [{}, CATCH_UP, {**CATCH_UP, "scoring": 1}], ids=str)
def test_a_plan_carries_every_bit_of_the_state_over(lab, changes):
    before, after = around_a_plan(lab, **changes)
    assert nothing_is_zero(before) and (before.last is not None) == ("idle" in changes)
    same_bits(after, before)


def test_a_scored_plan_at_the_commit_replaces_what_the_bandit_thinks_of_channels_alone(lab):
    before, after = around_a_plan(lab, **CATCH_UP, **COMMIT_AT_ONCE, scoring=1)
    replaced = {"plays": after.bandit.plays, "sums": after.bandit.sums}
    same_bits(after, before._replace(bandit=before.bandit._replace(**replaced)))
    assert all(not np.array_equal(before.bandit.sums[g], v) for g, v in replaced["sums"].items())


def test_a_plan_at_the_commit_carries_every_bit_over_where_nothing_scores(lab):
    before, after = around_a_plan(lab, **COMMIT_AT_ONCE)
    same_bits(after, before)


def test_in_the_main_job_a_block_begins_with_what_the_last_one_ended_with(
    lab, tmp_path, monkeypatch
):
    began, ended, budgets, one = [], [], [], blocks.run_block

    def spy(run, programs, state, done, end):
        began.append(host(state.dce))
        budgets.append(run.budget)
        state, metrics = one(run, programs, state, done, end)
        ended.append(host(state.dce))
        return state, metrics

    monkeypatch.setattr(blocks, "run_block", spy)
    assert train.train(runs.settings(lab.images, **GLOBAL, stop_after=8), tmp_path / "w") is None
    assert budgets[0] == budgets[1] != budgets[2]  # blocks of steps 1 to 4, to 6 and to 8
    same_bits(began[1:], ended[:-1])


def test_a_budget_that_comes_again_compiles_nothing(lab, monkeypatch):
    run, programs, started = built(lab, plans=3), Programs(), len(COMPILED)
    other = budget.from_widths(runs.FULL, {"conv0": 1, "conv1": 6})
    learned = iter((other, run.budget))
    monkeypatch.setattr(plans, "learned", lambda *_: next(learned))
    state = explored(run, programs, blocks.start(run), 0, 4)
    there, state = blocks.replan(run, programs, state, 4)
    state = explored(there, programs, state, 4, 8)
    counts, compiled = dict(programs.counts), len(COMPILED)
    assert len(counts) == 6 <= compiled - started  # enter, observe and leave, at two budgets
    back, state = blocks.replan(there, programs, state, 8)
    explored(back, programs, state, 8, 12)
    assert there.budget == other and back.budget == run.budget
    assert programs.counts == counts and len(COMPILED) == compiled


def dense(*, num_classes, **options):
    """Norms over concatenations, whose parts lie where the budget puts them."""
    return DenseNet((2,), densenet_widths((2,), stem=4, growth=4), num_classes=num_classes)


def test_a_stopped_densenet_goes_on_at_its_new_budget_identically(lab, monkeypatch, tmp_path):
    monkeypatch.setitem(networks.NETWORKS, "dense", dense)
    changes = {**GLOBAL, "network": "dense", "select_every": 1}
    other = {"stem": 1, "block0_layer0": 3, "block0_layer1": 2}
    run, programs = built(lab, **changes), Programs()
    learned = budget.from_widths(run.budget.full, other)
    monkeypatch.setattr(plans, "learned", lambda *_: learned)
    assert train.train(runs.settings(lab.images, **changes, stop_after=7), tmp_path / "w") is None
    again, state, done = session.resume(run, Programs(), tmp_path / "w", print)
    found = explored(again, Programs(), state, done, 10)
    state = explored(run, programs, blocks.start(run), 0, 6)
    later, state = blocks.replan(run, programs, state, 6)
    assert again.budget == later.budget == learned != run.budget and done == 8
    same_bits(host(found.dce), host(explored(later, programs, state, 6, 10).dce))


# Several processes.

ALIKE = {"conv0": np.ones(4), "conv1": np.ones(6)}
LOPSIDED = {"conv0": np.arange(4), "conv1": np.ones(6)}


def replanned(run, means):
    state = Exploring(DceState(None, known(run, means), None))
    return blocks.replan(run, Programs(), state, 6)[0].budget


def test_processes_compare_the_budgets_that_they_learned(lab, monkeypatch):
    run, asked = built(lab), []
    monkeypatch.setattr(processes, "check_same", lambda *given: asked.append(given[1]))
    twice = {group: 2 * values for group, values in ALIKE.items()}
    one, other, again = (replanned(run, means) for means in (ALIKE, LOPSIDED, twice))
    assert one == again != other
    assert asked[0] == asked[2] != asked[1]
    # A number that no process draws for itself, as `hash` does.
    assert asked == [zlib.crc32(repr(b).encode()) % 2**31 for b in (one, other, again)]


def test_a_process_that_learned_another_budget_is_refused(lab, monkeypatch):
    run = built(lab)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    gathered = "process_allgather"
    monkeypatch.setattr(processes.multihost_utils, gathered, lambda value: np.array([value, 7]))
    message = r"checksum of the budget learned after step 6 is \[\d+, 7\] .* compute differently"
    with pytest.raises(ValueError, match=message):
        replanned(run, ALIKE)
