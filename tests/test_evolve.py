"""Layer latents and their search: the formula, the published constants, exact continuation."""

import functools
import json

import numpy as np
import pytest
from families import TINY, example

from dce_jax import channels, forward, pruning
from dce_jax.pruning import Latents, costs, evolve, latents
from dce_jax.pruning.evolve import Rules, Search

SPREADS = {"a": 2.0, "b": 0.5, "c": 1.0}
SMALL = Rules(population=6, tournament=3, evaluations=30, mutated=0.5, seed=3)
TARGET = Latents({"a": 2.0, "b": 0.5, "c": 1.0}, {"a": 1.0, "b": -1.0, "c": 0.0})


def distance(found):
    """A toy loss: how far latents are from known ones."""
    scales = sum(abs(np.log(found.scale[g] / TARGET.scale[g])) for g in SPREADS)
    return float(scales + sum(abs(found.shift[g] - TARGET.shift[g]) for g in SPREADS))


def searched(rules, count, search=None, fitness=distance):
    search = search or Search()
    while len(search.losses) < count:
        search = evolve.advance(rules, SPREADS, fitness, search)
    return search


# --- latents


@functools.cache
def family():
    module, shape = TINY["padding"], example("padding")
    table = costs.macs(module, channels.build(module, forward.shapes(module, shape)), shape)
    draw = np.random.default_rng(0)
    return table, {g: draw.normal(size=c) ** 2 for g, c in module.widths.items()}


def kept(saliencies, share=0.5):
    table, full = family()[0], {g: len(v) for g, v in saliencies.items()}
    target = share * costs.total(table, full)
    found = pruning.greedy(saliencies, table, target=target, least=dict.fromkeys(full, 1))
    return {group: each.tolist() for group, each in found.items()}


def test_latents_that_change_nothing_give_the_uncompensated_choice():
    _, worths = family()
    assert kept(pruning.compensated(worths, latents.identity(worths))) == kept(worths)


def test_a_shift_moves_channels_from_one_layer_to_another_and_keeps_each_layers_order():
    _, worths = family()
    first, *_ = worths
    none, before = latents.identity(worths), kept(worths)
    raised = none._replace(shift={**none.shift, first: 100.0})
    assert kept(pruning.compensated(worths, raised))[first] == list(range(len(worths[first])))
    assert len(before[first]) < len(worths[first])
    lowered = none._replace(scale={**none.scale, first: 1e-6})
    last = kept(pruning.compensated(worths, lowered))[first]
    assert last == [int(np.argmax(worths[first]))]
    shifted = kept(pruning.compensated(worths, raised))
    assert sum(map(len, shifted.values())) - len(shifted[first]) < sum(
        len(c) for g, c in before.items() if g != first
    )


def test_compensation_is_scale_times_saliency_plus_shift():
    found = pruning.compensated(
        {"a": np.array([1.0, 3.0], np.float32), "b": [2.0]},
        Latents({"a": 0.5, "b": 3.0}, {"a": 0.25, "b": -7.0}),
    )
    assert {g: v.tolist() for g, v in found.items()} == {"a": [0.75, 1.75], "b": [-1.0]}
    assert all(v.dtype == np.float64 for v in found.values())
    assert latents.spreads({"a": [1.0, 3.0], "b": [2.0]}) == {"a": 1.0, "b": 0.0}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (({"a": 1.0, "b": 1.0, "x": 1.0}, {}), "unknown channel group 'x'"),
        (({"a": 1.0}, {"a": 0.0, "b": 0.0}), r"latents have no scale of groups \['b'\]"),
        (({"a": 1.0, "b": 1.0}, {"a": 0.0}), r"latents have no shift of groups \['b'\]"),
        (({"a": 1.0, "b": np.inf}, {"a": 0.0, "b": 0.0}), "scale of group 'b' is inf: it must be"),
        (({"a": 0.0, "b": 1.0}, {"a": 0.0, "b": 0.0}), "scale of group 'a' is 0.0: .* positive"),
        (({"a": 1.0, "b": 1.0}, {"a": np.nan, "b": 0.0}), "shift of group 'a' is nan: it must be"),
    ],
    ids=str,
)
def test_latents_that_cannot_rank_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        pruning.compensated({"a": [1.0, 2.0], "b": [3.0]}, Latents(*given))


# --- the search


def test_the_published_constants_are_the_defaults():
    rules = Rules()
    assert (rules.population, rules.tournament, rules.evaluations, rules.mutated) == (
        *(64, 16, 400),
        0.1,
    )


def test_the_first_candidates_are_random_and_the_last_of_them_is_the_identity():
    many = Rules(population=400, tournament=1, evaluations=400)
    search = searched(many, 400, fitness=lambda _: 0.0)
    assert search.tried[-1] == latents.identity(SPREADS)
    assert latents.identity(SPREADS) not in search.tried[:-1]
    for group, spread in SPREADS.items():
        logs = np.log([found.scale[group] for found in search.tried[:-1]])
        shifts = np.array([found.shift[group] for found in search.tried[:-1]])
        # Means within four standard errors, standard deviations within a fifth.
        for values, expected in ((logs, 1.0), (shifts, spread)):
            assert abs(values.mean()) < 4 * expected / np.sqrt(len(values))
            assert values.std() == pytest.approx(expected, rel=0.2)


def parents(search, rules, index):
    """Places in the population of the candidates that one may descend from, and what changed."""
    found = []
    for place in range(len(search.tried[:index])):
        before, after = search.tried[place], search.tried[index]
        changed = [g for g in SPREADS if before.shift[g] != after.shift[g]]
        if len(changed) == max(1, int(rules.mutated * len(SPREADS))):
            found.append((place, changed))
    return found


def test_a_winner_of_the_tournament_is_mutated_in_a_share_of_its_layers():
    search = searched(SMALL, 30)
    for index in range(6, 30):
        alive = range(index - 6, index)
        # Of 6 contestants, 3 compete: whoever wins is at worst the fourth best that is alive.
        able = sorted(alive, key=lambda place: search.losses[place])[:4]
        assert any(place in able for place, _ in parents(search, SMALL, index)), index


def test_every_candidate_replaces_the_oldest_however_good():
    # The best candidate of all is the first one, which is soon too old to have children.
    def fitness(found):
        return -1.0 if found == first else distance(found)

    first = evolve.candidate(SMALL, SPREADS, Search())
    everyone = SMALL._replace(tournament=6)
    search = searched(everyone, 30, fitness=fitness)
    assert 0 in dict(parents(search, everyone, 6))
    assert evolve.best(search) == first
    for index in range(6, 30):
        best = min(range(index - 6, index), key=lambda place: search.losses[place])
        assert best in dict(parents(search, everyone, index)), index


def test_steps_of_the_scale_decay_and_those_of_the_shift_do_not():
    rules = Rules(population=1, tournament=1, evaluations=100, mutated=1.0)
    logs, shifts = [], []
    for seed in range(300):
        seeded = rules._replace(seed=seed)
        ancestor = Search((latents.identity(SPREADS),) * 99, (0.0,) * 99)
        for index in (1, 50, 99):
            found = evolve.candidate(
                seeded, SPREADS, Search(ancestor.tried[:index], ancestor.losses[:index])
            )
            logs.append((index, np.log(found.scale["a"])))
            shifts.append((index, found.shift["a"]))
    for index in (1, 50, 99):
        step = 1 - index / (1.25 * 100)
        assert np.std([v for i, v in logs if i == index]) == pytest.approx(step, rel=0.15)
        assert np.std([v for i, v in shifts if i == index]) == pytest.approx(2.0, rel=0.15)


def test_evolution_finds_better_latents_than_chance():
    evolved, chance = [], []
    for seed in range(5):
        rules = SMALL._replace(evaluations=200, seed=seed)
        search = searched(rules, 200)
        assert distance(evolve.best(search)) == min(search.losses)
        evolved.append(min(search.losses))
        chance.append(min(searched(rules._replace(population=200), 200).losses))
    assert np.mean(evolved) < 0.75 * np.mean(chance)


def test_a_search_continues_from_every_point_as_if_it_never_stopped():
    whole = searched(SMALL, 30)
    for point in range(30):
        stored = json.loads(json.dumps(whole.losses[:point]))
        again = evolve.resumed(SMALL, SPREADS, tuple(stored))
        assert again == Search(whole.tried[:point], whole.losses[:point])
    assert searched(SMALL, 30, search=evolve.resumed(SMALL, SPREADS, whole.losses[:17])) == whole
    assert searched(SMALL._replace(seed=4), 30) != whole


def test_without_scales_only_shifts_are_searched():
    search = searched(SMALL._replace(affine=False), 30)
    assert all(set(found.scale.values()) == {1.0} for found in search.tried)
    assert len({found.shift["a"] for found in search.tried}) > 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tournament": 7}, "tournament 7, population 6 and evaluations 30: each must be"),
        ({"tournament": 0}, "tournament 0, population 6"),
        ({"evaluations": 5}, "population 6 and evaluations 5"),
        ({"mutated": 0.0}, "mutated is 0.0: it is a share of the groups"),
        ({"mutated": 1.5}, "mutated is 1.5: it is a share of the groups"),
    ],
    ids=str,
)
def test_rules_that_no_search_can_follow_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        evolve.candidate(SMALL._replace(**changes), SPREADS, Search())


def test_a_loss_that_is_no_number_is_refused_and_an_infinite_one_is_the_worst():
    with pytest.raises(ValueError, match="candidate 0 of the search has loss nan"):
        evolve.advance(SMALL, SPREADS, lambda _: float("nan"), Search())
    two = evolve.told(evolve.told(Search(), TARGET, np.inf), latents.identity("abc"), 2.0)
    assert evolve.best(two) == latents.identity("abc")
    with pytest.raises(ValueError, match="nothing was tried"):
        evolve.best(Search())
