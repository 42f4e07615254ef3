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

pytestmark = pytest.mark.one_set


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


SHARES = (
    [[0, 0, 0, 1.0], [0, 0, 0.5, 0.5]],
    [[1.0, 0, 0, 0], [0.75, 0.25, 0, 0]],
    [[0, 1.0, 0, 0]] * 2,
)
RESULT = {
    "system": "rnp",
    "command": "python -m experiments.runtime",
    "levels": [[0, 2, 4, 6, 8], [0, 2, 4, 6, 8]],
    "points": [
        {"knob": knob, "macs_share": 0.5, "levels": {"all": shares}}
        for knob, shares in zip((0.3, 0.1, 0.2), SHARES, strict=True)
    ],
}


@pytest.fixture
def frequencies(tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(RESULT))
    return latency_frequencies.read(path)


def means(frequencies, system):
    return [latency_decisions.expected(system, point.chances) for point in frequencies.points]


def test_expected_work_is_the_mean_of_what_is_drawn(system, frequencies):
    for point, share in zip(frequencies.points, means(frequencies, system), strict=True):
        levels = latency_decisions.sampled(np.random.default_rng(1), point.chances)
        assert levels.dtype == np.int32 and levels.shape == (latency_decisions.POOL, 2)
        found = latency_decisions.shares(system, levels).mean()
        assert found - system.deciding / system.costs.full == pytest.approx(share, rel=0.01)


def test_levels_are_drawn_as_often_as_the_two_nearest_points_chose_them(system, frequencies):
    assert (frequencies.system, frequencies.parts) == ("rnp", 4)  # a skipped branch has no width
    _, low, middle = means(frequencies, system)
    target = 0.75 * low + 0.25 * middle  # of the network that runs, whatever the result's own had
    pool = latency_frequencies.drawn(frequencies, system, target)
    levels = pool.levels_NS
    # A quarter of the images are of the dearer point, and all their sites are.
    dearer = levels[:, 0] == 1
    assert dearer.mean() == pytest.approx(0.25, abs=0.02)
    assert (levels[dearer, 1] == 1).all() and (levels[~dearer, 0] == 0).all()
    assert (levels[~dearer, 1] == 1).mean() == pytest.approx(0.25, abs=0.02)
    assert pool.facts["knobs"] == [0.1, 0.2] and pool.facts["target"] == target
    assert pool.facts["share_of_second"] == pytest.approx(0.25)
    found = latency_decisions.shares(system, levels).mean()
    assert found - system.deciding / system.costs.full == pytest.approx(target, rel=0.01)
    again = latency_frequencies.drawn(frequencies, system, target)
    np.testing.assert_array_equal(levels, again.levels_NS)


@pytest.mark.parametrize(("point", "level"), [(0, 3), (1, 0), (2, 1)])
def test_a_point_met_exactly_stands_alone(system, frequencies, point, level):
    target = means(frequencies, system)[point]
    alone = frequencies._replace(points=frequencies.points[point : point + 1])
    for given in (frequencies, alone):
        assert (latency_frequencies.drawn(given, system, target).levels_NS[:, 0] == level).all()


def test_frequencies_that_cannot_be_are_refused(system, frequencies, tmp_path):
    for target in (0.01, 0.999, float("nan")):
        with pytest.raises(ValueError, match=r"the network runs 0\.\d+ to 0\.\d+ of its MACs"):
            latency_frequencies.drawn(frequencies, system, target)
    point = frequencies.points[0]
    other = frequencies._replace(points=(point._replace(chances=point.chances[:1]),))
    with pytest.raises(ValueError, match="about 1 sites for a network of 2"):
        latency_frequencies.drawn(other, system, 0.5)
    path = tmp_path / "other.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="is no result of experiments"):
        latency_frequencies.read(path)
    with pytest.raises(FileNotFoundError):
        latency_frequencies.read(tmp_path / "missing.json")
