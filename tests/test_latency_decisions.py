"""Decisions whose latency is measured, and what they cost in chunks."""

import json

import jax
import jax.numpy as jnp
import latency_nets
import numpy as np
import pytest

from dce_jax.runtime import choice as choices_of
from dce_jax.runtime import costs, execute
from dce_jax.runtime.choice import Choice
from experiments import latency_decisions, latency_frequencies


@pytest.fixture(scope="module")
def system():
    return latency_nets.subject(parts=4, images=1).system


@pytest.mark.parametrize("target", [0.3, 0.5, 0.8])
@pytest.mark.parametrize(("rounds", "batch"), [(30, 1), (3, 16)])
def test_drawn_decisions_cost_what_was_asked_for(system, target, rounds, batch):
    pool = latency_decisions.drawn(system, target)
    draws = latency_decisions.draws(system, pool, rounds=rounds, batch=batch)
    deciding = system.deciding / system.costs.full
    assert draws.levels_RSB.shape == (rounds, 2, batch) and draws.levels_RSB.dtype == np.int32
    assert draws.share - deciding == pytest.approx(target, rel=0.02)
    images = draws.levels_RSB.transpose(0, 2, 1).reshape(-1, 2)
    assert latency_decisions.shares(system, images).mean() == pytest.approx(draws.share)
    # As spread as all of them, in no order.
    spread = latency_decisions.shares(system, images)
    every = latency_decisions.shares(system, pool.levels_NS)
    assert spread.std() == pytest.approx(every.std(), rel=0.1)
    assert abs(np.corrcoef(spread, np.arange(len(spread)))[0, 1]) < 0.5
    assert pool.facts["target"] == target


def test_the_ends_are_the_smallest_and_the_full_widths(system):
    full = latency_decisions.drawn(system, 1.0)
    assert (full.levels_NS == 3).all()
    shares = latency_decisions.shares(system, np.zeros((1, 2), np.int32))
    least = float(shares[0]) - system.deciding / system.costs.full
    assert (latency_decisions.drawn(system, least + 1e-6).levels_NS == 0).mean() > 0.999
    for target in (0.9 * least, 1.01, float("nan")):
        with pytest.raises(ValueError, match="decisions span"):
            latency_decisions.drawn(system, target)


@pytest.mark.parametrize(
    ("extra", "parts"), [({}, 4), ({"parts": 5}, 5), ({"system": "lc"}, 3), ({"system": "l"}, 3)]
)
def test_the_largest_level_tells_the_widths_where_the_file_does_not(tmp_path, extra, parts):
    path = tmp_path / "decisions.json"
    path.write_text(json.dumps({"levels": [[0, 3]], **extra}))
    assert latency_decisions.read(path).parts == parts


def test_the_mean_of_a_pool_survives_however_many_are_timed(system):
    levels = np.random.default_rng(1).integers(4, size=(50, 2)).astype(np.int32)
    pool = latency_decisions.Pool(levels, {})
    every = latency_decisions.shares(system, levels).mean()
    for rounds in (7, 50, 120):  # fewer than there are, all, and more
        draws = latency_decisions.draws(system, pool, rounds=rounds, batch=1)
        assert draws.share == pytest.approx(every, rel=0.03)
    with pytest.raises(ValueError, match="about 3 sites for a network of 2"):
        latency_decisions.draws(
            system, latency_decisions.Pool(np.zeros((1, 3), np.int32), {}), rounds=1, batch=1
        )
    with pytest.raises(ValueError, match="level 4 is decided where a site has 4 widths"):
        latency_decisions.draws(
            system, latency_decisions.Pool(np.full((1, 2), 4, np.int32), {}), rounds=1, batch=1
        )


@pytest.mark.parametrize("size", [1, 4, 6])
def test_chunks_cost_what_really_runs_in_them(system, monkeypatch, size):
    levels = np.array([[0, 3, 1, 3, 2, 0], [3, 0, 0, 1, 1, 0]], np.int32)
    choices = [Choice(jnp.asarray(level)) for level in levels]
    chain, total = system.chain, 6 * system.costs.always

    def switch(site, before, level, variables, x, choice):
        nonlocal total
        table = system.costs.sites[chain.sites.index(site.link)]
        total += len(x) * table[int(before), int(level)]
        return x

    def one_by_one(run, carry, stacked, unroll):  # so that `_switch` is given numbers
        rows = [choices_of.row(stacked, i) for i in range(6 // size)]
        return carry, jnp.stack([run(carry, row)[1] for row in rows])

    monkeypatch.setattr(execute, "_switch", switch)
    monkeypatch.setattr(jax.lax, "scan", one_by_one)
    for place, (link, widths) in enumerate(zip(chain.sites, system.levels, strict=True)):
        before = (system.levels[0], choices[0]) if place else None
        site = execute.Site(chain, link, widths, choices[place], before)
        execute.chunked(size).run(site, {}, jnp.zeros((6, 1, 1, 1)))
    found = costs.chunked_share(system.costs, levels, size)
    assert found == pytest.approx(total / (6 * system.costs.full))
    alone = latency_decisions.shares(system, levels.T).mean()
    with_deciding = costs.chunked_share(system.costs, levels, size, system.deciding)
    extra = with_deciding - alone
    assert extra == pytest.approx(0.0, abs=1e-6) if size == 1 else extra > 0.01


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "holds no decisions"),
        ('{"levels": []}', "holds no decisions"),
        ('{"levels": [1, 2]}', "holds no decisions"),
        ('{"levels": [[0, 1], [0]]}', r"rows of \[1, 2\] levels"),
        ('{"levels": [[]]}', "rows of"),
        ('{"levels": [[0, -1]]}', "levels are indices"),
        ('{"levels": [[0, 1.5]]}', "levels are indices"),
        ('{"levels": [[0, 2]], "parts": 2}', "level 2 does not exist with parts = 2"),
        ('{"levels": [[0, 2]], "parts": "4"}', "parts = '4'"),
        ('{"levels": [[0, 2]], "parts": 2, "system": "c"}', "level 2 does not exist"),
    ],
)
def test_bad_files_of_decisions_are_refused(tmp_path, text, message):
    path = tmp_path / "decisions.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        latency_decisions.read(path)


RESULT = {
    "system": "rnp",
    "command": "python -m experiments.runtime",
    "levels": [[2, 4, 6, 8], [2, 4, 6, 8]],
    "points": [
        {"knob": 0.3, "macs_share": 0.8, "levels": {"all": [[0, 0, 0, 1.0], [0, 0, 0.5, 0.5]]}},
        {"knob": 0.1, "macs_share": 0.2, "levels": {"all": [[1.0, 0, 0, 0], [0.75, 0.25, 0, 0]]}},
        {"knob": 0.2, "macs_share": 0.4, "levels": {"all": [[0, 1.0, 0, 0], [0, 1.0, 0, 0]]}},
    ],
}


def result(folder, **other):
    path = folder / "result.json"
    path.write_text(json.dumps(RESULT | other))
    return path


def test_levels_are_drawn_as_often_as_the_two_nearest_points_chose_them(tmp_path):
    file = latency_frequencies.of_result(result(tmp_path), 0.25)
    assert (file.system, file.parts) == ("rnp", 4)
    levels = file.pool.levels_NS
    assert levels.dtype == np.int32 and levels.shape == (latency_decisions.POOL, 2)
    # A quarter of the images are of the dearer point, and all their sites are.
    dearer = levels[:, 0] == 1
    assert dearer.mean() == pytest.approx(0.25, abs=0.02)
    assert (levels[dearer, 1] == 1).all() and (levels[~dearer, 0] == 0).all()
    assert (levels[~dearer, 1] == 1).mean() == pytest.approx(0.25, abs=0.02)
    assert file.pool.facts["knobs"] == [0.1, 0.2]
    assert file.pool.facts["share_of_second"] == pytest.approx(0.25)
    again = latency_frequencies.of_result(result(tmp_path), 0.25)
    np.testing.assert_array_equal(levels, again.pool.levels_NS)


@pytest.mark.parametrize(("target", "first"), [(0.2, 0), (0.4, 1), (0.8, 3)])
def test_a_point_met_exactly_stands_alone(tmp_path, target, first):
    levels = latency_frequencies.of_result(result(tmp_path), target).pool.levels_NS
    assert (levels[:, 0] == first).all()


def test_frequencies_that_cannot_be_are_refused(tmp_path):
    for target in (0.1, 0.9, float("nan")):
        with pytest.raises(ValueError, match=r"span 0.2 to 0.8 of the network's MACs"):
            latency_frequencies.of_result(result(tmp_path), target)
    other = tmp_path / "other.json"
    other.write_text("{}")
    with pytest.raises(ValueError, match="is no result of experiments"):
        latency_frequencies.of_result(other, 0.3)
    with pytest.raises(FileNotFoundError):
        latency_frequencies.of_result(tmp_path / "missing.json", 0.3)
