"""The benchmark of deciding: what it times, what it writes, what it refuses."""

import json

import jax
import numpy as np
import pytest
from flax.core import FrozenDict

from dce_jax import budget as budgets
from dce_jax import networks
from experiments import machine, overhead


def tiny(**_) -> networks.VGG:
    return networks.VGG(depths=(1,), widths=FrozenDict(conv0=4), num_classes=10)


def test_a_decision_plays_half_of_every_group_with_rewards_in_the_unit_interval():
    one = overhead.decision(3, 10)
    state, metrics = one.run(one.start(), one.data)
    assert metrics == {} and int(state.selections) == 1
    assert state.plays.keys() == {"group0", "group1", "group2"}
    for group, plays in state.plays.items():
        assert int(plays.sum()) == 5
        assert float(state.sums[group].max()) == pytest.approx(1.0)  # of the largest reward
        assert float(state.sums[group].min()) == 0.0
    again, _ = one.run(state, one.data)  # all that were not played come first
    assert all(np.asarray(plays).tolist() == [1.0] * 10 for plays in again.plays.values())


def test_decide_traces_with_groups_of_several_widths():
    budget = budgets.from_fraction({"a": 4, "b": 7}, 0.5)
    state = jax.eval_shape(lambda: overhead.bandit.init(budget))
    values = {g: jax.ShapeDtypeStruct((k,), np.float32) for g, k in budget.compact.items()}
    after, _ = jax.eval_shape(lambda s, v: overhead.decide(budget, s, v), state, values)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )


def test_the_file_tells_the_share_of_a_step(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(networks.NETWORKS, "tiny", tiny)
    path = tmp_path / "overhead.json"
    words = ["--network", "tiny", "--batch", "2", "--image_size", "8", "--groups", "2"]
    assert overhead.main([*words, "--width", "4", "--pairs", "2", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert machine.facts().items() <= found.items()
    narrow, decision = found["overhead"]
    assert (narrow["what"], narrow["vs_narrow"]) == ("narrow step", 1.0)
    assert decision["vs_narrow_low"] <= decision["vs_narrow"] <= decision["vs_narrow_high"]
    assert found["settings"]["groups"] == 2 and "--network tiny" in found["command"]
    assert "2 groups of 4" in capsys.readouterr().out


def test_ratios_are_paired():
    first, second = overhead.rows(np.array([[100.0, 1.0], [200.0, 2.0], [50.0, 0.5]]))
    assert first["ms_median"] == 100.0 and second["vs_narrow"] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--groups", "0"], "--groups 0: it must be at least 1"),
        (["--width", "1"], "--width 1: half of at least 2"),
        (["--pairs", "-1"], "--pairs -1"),
        (["--network", "vgg61"], "unknown network"),
        (["--json", "missing/x.json", "--batch", "0"], "--batch 0"),
    ],
)
def test_bad_input_is_refused(words, message, capsys):
    assert overhead.main(words) == 2
    assert message in capsys.readouterr().err
