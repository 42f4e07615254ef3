"""Widths timed in turns: which ones are not faster than wider ones."""

import json

import numpy as np
import pytest
from flax.core import FrozenDict
from jax import lax

from dce_jax import budget, networks
from dce_jax.convolve import convolve
from experiments import describe, machine, measured, timing, widths

pytestmark = pytest.mark.one_set

# Rounds by contender; the second is as slow as the first, the third faster than both.
TIMES = np.array([[4.0, 4.0, 1.0], [4.2, 4.3, 1.1], [3.9, 3.8, 1.0]])


def test_a_contender_is_overtaken_by_the_costliest_that_it_does_not_beat():
    none, equal, faster = timing.overtaken(TIMES, [30, 20, 10])
    assert none is None
    assert faster is None
    place, ratio = equal
    assert place == 0
    assert ratio.low <= 1.0 <= ratio.high
    # Costs decide, not places.
    assert [one and one[0] for one in timing.overtaken(TIMES, [10, 20, 30])] == [2, 2, None]


def test_rows_name_the_wider_convolution_and_the_best_time_per_mac():
    found = widths.rows([1, 2, 4], TIMES[:, ::-1])
    assert [row["not_faster_than"] for row in found] == [None, 4, None]
    assert [row["ms_per_mac"] for row in found] == [4.0, 4.0, 1.0]
    assert found[1]["ratio"][0] == 1.0
    alone = widths.rows([1, 2, 4], TIMES[:, ::-1], depthwise=True)
    assert [row["ms_per_mac"] for row in alone] == [1.0, 2.0, 1.0]


def test_the_command_times_convolutions_and_writes_what_it_found(tmp_path, capsys):
    path = tmp_path / "found.json"
    words = ["--widths", "3,2", "--batch", "2", "--image_size", "4", "--rounds", "2"]
    assert widths.main([*words, "--depthwise", "--plain"]) == 0
    assert "3x3 convolution of each channel, 2 images of 4x4" in capsys.readouterr().out
    assert widths.main([*words, "--kernel_size", "1"]) == 0
    assert "1x1 convolution, 2 images of 4x4" in capsys.readouterr().out
    assert widths.main([*words, "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert [row["width"] for row in found["rows"]] == [2, 3]
    assert all(row["ms_min"] > 0 for row in found["rows"])
    assert (found["rounds"], found["multiple_of"]) == (2, 16)
    assert found["command"].startswith("python -m experiments.widths --widths 3,2")
    assert found["versions"].keys() >= {"jax", "python"}
    assert "ms / MAC" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--widths", "0,4"], "--widths 0: it must be at least 1"),
        (["--rounds", "0"], "--rounds 0: it must be at least 1"),
        (["--kernel_size", "0"], "--kernel_size 0: it must be at least 1"),
        (["--json", "."], "Is a directory"),
    ],
)
def test_widths_refuses_what_cannot_be_measured(words, message, capsys):
    assert widths.main(words) == 2
    assert message in capsys.readouterr().err


def test_an_update_is_a_step_of_gradient_descent_on_the_squared_output():
    # Through a kernel of one entry that is not zero, the output is twice the input.
    kernel, images = np.zeros((3, 3, 1, 1), np.float32), np.full((1, 1, 1, 1), 3.0, np.float32)
    kernel[1, 1] = 2.0
    after, metrics = widths.update(convolve, widths.Layer(kernel, images), None)
    assert float(metrics["loss"]) == 36.0
    np.testing.assert_allclose(after.kernel[1, 1].ravel(), [2.0 - 0.01 * 2 * 6.0 * 3.0])
    np.testing.assert_allclose(after.images.ravel(), [3.0 - 0.01 * 2 * 6.0 * 2.0])


@pytest.mark.parametrize("convolution", [convolve, lax.conv_general_dilated])
def test_an_update_of_channels_alone_keeps_them_apart(convolution):
    kernel, images = np.ones((3, 3, 1, 2), np.float32), np.ones((1, 3, 3, 2), np.float32)
    images[..., 1] = 0.0
    after, metrics = widths.update(convolution, widths.Layer(kernel, images), None)
    # Of ones, outputs are as many as a position has neighbours, itself included.
    np.testing.assert_allclose(metrics["loss"], (81 + 4 * 36 + 4 * 16) / 18, rtol=1e-6)
    assert (after.images[..., 0] < 1.0).all()
    np.testing.assert_array_equal(after.images[..., 1], 0.0)
    np.testing.assert_array_equal(after.kernel[..., 1], 1.0)


# Around a budget.


def test_candidates_are_the_full_width_the_budget_and_its_neighbours_each_once():
    bud = budget.from_widths({"a": 16, "b": 32}, {"a": 8, "b": 15})
    found = dict(measured.candidates(bud))
    assert found["full"] == budget.full(bud.full)
    assert found["budget"] == bud
    assert found["1.25 x budget"].compact == {"a": 10, "b": 19}
    assert found["multiples of 8"].compact == {"a": 8, "b": 16}
    assert found["multiples of 16"].compact == {"a": 16, "b": 16}
    assert "multiples of 128" not in found  # that is the full width once more
    assert len(set(found.values())) == len(found)


def test_rows_around_a_budget_are_relative_to_the_full_network():
    found = [(name, budget.Budget((("a", 4, k),))) for name, k in (("full", 4), ("x", 2), ("y", 1))]
    rows = measured.rows(found, [40, 20, 10], TIMES)
    assert [row["not_faster_than"] for row in rows] == [None, "full", None]
    assert rows[1]["ms_per_mac_vs_full"] == pytest.approx(2.0)
    assert rows[2]["vs_full"][0] == pytest.approx(0.2564, abs=1e-3)
    assert rows[2]["widths"] == {"a": 1}


def test_describe_measures_steps_of_the_chosen_network(tmp_path, monkeypatch, capsys):
    tiny = networks.VGG((1, 1), FrozenDict({"conv0": 8, "conv1": 8}), num_classes=10)
    monkeypatch.setitem(networks.NETWORKS, "tiny", lambda **_: tiny)
    monkeypatch.setattr(describe, "train_bytes", lambda *_, **__: None)
    monkeypatch.setattr(measured, "_FACTORS", (0.5,))
    path = tmp_path / "found.json"
    words = ["--network", "tiny", "--dataset", "digits", "--batch", "2", "--keep", "0.5"]
    assert describe.main([*words, "--measure", "0", "--json", str(path)]) == 0
    found = json.loads(path.read_text())["measured"]
    assert [row["name"] for row in found["rows"]] == ["full", "budget", "0.5 x budget"]
    macs = [row["macs"] for row in found["rows"]]
    assert macs == sorted(macs, reverse=True)
    assert (found["batch"], found["rounds"]) == (2, 5)
    assert machine.facts().items() <= found.items()
    assert "ms per step" in capsys.readouterr().out
