"""What a system that decides is compared with: decisions of other images, and one for all."""

import itertools
from types import SimpleNamespace

import chains
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dce_jax.runtime import Choice, costs
from experiments import runtime_result, runtime_seen, runtime_steps
from experiments.dataset import Split

NUMBER = 40
STATE = SimpleNamespace(variables=None, deciding=None)
LEVELS = chains.LEVELS["vgg"]


def split(first):
    """Images that only their labels tell apart."""
    images = np.zeros((NUMBER, 8, 8, 3), np.uint8)
    return Split(images, np.arange(first, first + NUMBER, dtype=np.int32))


@pytest.fixture(scope="module")
def watched():
    table = costs.table(chains.build("vgg"), LEVELS, chains.variables("vgg"), chains.EXAMPLE)
    data = SimpleNamespace(train=split(1000), test=split(0))
    system = SimpleNamespace(costs=table, deciding=0.0, levels=LEVELS)
    return SimpleNamespace(job=SimpleNamespace(system=system, subject=SimpleNamespace(data=data)))


def seen(watched, first, second):
    levels = [np.asarray(level, np.int32) for level in (first, second)]
    choices = tuple(map(Choice, levels))
    share = costs.share(watched.job.system.costs, [Choice(jnp.asarray(x)) for x in levels])
    return runtime_seen.Seen(np.ones(NUMBER, bool), np.ones(NUMBER), np.asarray(share), choices)


def told(monkeypatch, score, decided=None):
    """Records what is followed; a shared decision is right as often as `score` says."""
    calls = []

    def followed(watcher, variables, images, choices):
        levels = [np.asarray(choice.level) for choice in choices]
        calls.append((int(images.labels[0]), levels))
        if len(levels[0]) > 1:
            return np.ones(NUMBER, bool)
        return np.arange(NUMBER) < score(images, *(int(level[0]) for level in levels))

    monkeypatch.setattr(runtime_seen, "followed", followed)
    monkeypatch.setattr(runtime_seen, "decided", lambda *_: decided)
    return calls


def point(watched, own):
    hardness = np.arange(NUMBER, dtype=float)
    return runtime_result._point(watched, STATE, own, 0.5, hardness)


def test_shuffled_images_run_whole_decisions_of_others(watched, monkeypatch):
    draw = np.random.default_rng(0)
    own = seen(watched, draw.integers(0, 2, NUMBER), draw.integers(0, 3, NUMBER))
    calls = told(monkeypatch, lambda *_: 0, own)
    point(watched, own)
    ((_, shuffled),) = [call for call in calls if len(call[1][0]) > 1]
    mine = np.stack([choice.level for choice in own.choices], axis=1)
    others = np.stack(shuffled, axis=1)
    np.testing.assert_array_equal(sorted(map(tuple, mine)), sorted(map(tuple, others)))
    assert (mine != others).any(axis=1).sum() > NUMBER / 3


def test_one_decision_is_the_best_on_training_images(watched, monkeypatch):
    """Of two near the mean work; not one that costs more, nor the best on test images."""
    table = watched.job.system.costs
    every = {}
    for levels in itertools.product(range(2), range(3)):
        one = [Choice(jnp.asarray([level])) for level in levels]
        every[levels] = float(costs.share(table, one)[0])
    dearest = max(every, key=every.__getitem__)
    cheap, middle = (0, 1), (1, 0)
    # Twelve candidates: those nearest to the mean are of these two kinds.
    own = seen(watched, [0, 1] * 19 + [dearest[0]] * 2, [1, 0] * 19 + [dearest[1]] * 2)
    scores = {cheap: 10, middle: 20, dearest: 40}

    def score(images, *levels):
        known = scores.get(levels, 0)
        return known if images.labels[0] >= 1000 else 30 - known

    calls = told(monkeypatch, score, own)
    found = point(watched, own)
    assert found["constant_accuracy"] == 10 / NUMBER  # `middle`, on test images
    assert found["constant_macs_share"] == pytest.approx(every[middle])
    shared = [levels for _, levels in calls if len(levels[0]) == 1]
    assert dearest not in {tuple(int(level[0]) for level in levels) for levels in shared}


def test_images_of_a_batch_share_a_few_knobs():
    places = runtime_steps._few_places(jax.random.key(0), {"label": jnp.zeros(20, jnp.int32)})
    assert places.shape == (20,) and len(set(places.tolist())) == 8
    np.testing.assert_array_equal(places[:8], places[8:16])
    few = runtime_steps._few_places(jax.random.key(0), {"label": jnp.zeros(3, jnp.int32)})
    assert len(set(few.tolist())) == 3


@pytest.mark.parametrize(("step", "share"), [(0, 1.0), (40, 1.0), (70, 0.6), (100, 0.2)])
def test_random_decisions_become_fewer_once_deciding_begins(step, share):
    job = SimpleNamespace(config=SimpleNamespace(random=0.4, epsilon=0.2), steps=100)
    assert float(runtime_steps.exploration(job, jnp.int32(step))) == pytest.approx(share)
