"""Widths that pay on a device: multiples, rounding, and warnings where a budget wastes them."""

from typing import NamedTuple

import jax.numpy as jnp
import pytest
import runs

from dce_jax import budget, hardware
from experiments import budgeting, config, describe, train

pytestmark = pytest.mark.one_set


class Device(NamedTuple):
    """What is read of a `jax.Device`."""

    platform: str
    device_kind: str


TPU, CPU = Device("tpu", "TPU v5 lite"), Device("cpu", "cpu")
NVIDIA, AMD = Device("gpu", "NVIDIA H100"), Device("gpu", "AMD Instinct MI300X")


@pytest.mark.parametrize(
    ("device", "dtype", "multiple"),
    [
        (TPU, "float32", 128),
        (TPU, jnp.bfloat16, 128),
        (NVIDIA, "bfloat16", 8),
        (NVIDIA, jnp.float16, 8),
        (NVIDIA, "float32", 4),
        (NVIDIA, "float64", 1),
        (AMD, "bfloat16", 1),
        (CPU, "float32", 16),
    ],
)
def test_multiples_are_those_of_the_device_and_the_type(device, dtype, multiple):
    assert hardware.multiple_of(device, dtype) == multiple


def test_a_budget_is_wasted_where_the_next_tile_or_the_whole_group_costs_the_same():
    found = budget.Budget(
        (("a", 64, 32), ("b", 300, 128), ("c", 300, 129), ("d", 300, 260), ("e", 64, 64))
    )
    assert hardware.wasted(found, TPU, "bfloat16") == {
        "a": (32, 64),  # one tile holds the whole group
        "c": (129, 256),
        "d": (260, 300),
    }
    assert hardware.wasted(found, NVIDIA, "float32") == {"c": (129, 132)}
    assert hardware.wasted(found, CPU, "float32") == {}


def test_warnings_name_groups_budget_and_the_width_that_costs_the_same():
    found = budget.Budget((("a", 64, 20), ("b", 64, 16), ("c", 64, 20), ("d", 32, 31)))
    assert hardware.warnings(found, NVIDIA, "bfloat16") == (
        "20 channels cannot run faster than 24 on NVIDIA H100, which computes bfloat16 in "
        "multiples of 8: groups a, c",
        "31 channels cannot run faster than 32 on NVIDIA H100, which computes bfloat16 in "
        "multiples of 8: group d",
    )
    assert hardware.warnings(found, AMD, "bfloat16") == ()


def test_what_a_device_wants_fills_its_tiles_and_leaves_narrow_groups_whole():
    widths = {"a": 64, "b": 128, "c": 512}
    assert hardware.rounding(widths, TPU, "float32") == (128, ("a",))
    assert hardware.rounding(widths, NVIDIA, "float32") == (4, ())
    with pytest.raises(ValueError, match=r"a TPU v5 lite wants multiples of 128 .* widest has 96"):
        hardware.rounding({"a": 64, "b": 96}, TPU, "float32")


def settings(**changes):
    made = config.defaults()
    made.update({"multiple_of": 0, "dtype": "bfloat16", **changes})
    return made


@pytest.mark.parametrize(
    ("device", "compact"), [(TPU, [64, 128, 128]), (NVIDIA, [16, 40, 80]), (AMD, [19, 38, 77])]
)
def test_zero_rounds_a_configs_budget_to_what_the_device_wants(monkeypatch, device, compact):
    monkeypatch.setattr(budgeting, "this_device", lambda: device)
    widths = {"a": 64, "b": 128, "c": 256}
    allowed = budgeting.rounding(settings(), widths, "bfloat16")
    found = budget.from_fraction(widths, 0.3, **allowed)
    assert list(found.compact.values()) == compact
    assert not hardware.wasted(found, device, "bfloat16")
    assert budgeting.rounding(settings(multiple_of=3), widths, "bfloat16")["multiple_of"] == 3


def test_a_run_warns_once_and_says_so_in_its_result(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(budgeting, "this_device", lambda: NVIDIA)
    with runs.lab(tmp_path) as lab:
        found, _ = lab.run()
    expected = hardware.warnings(budget.from_widths(runs.FULL, runs.HALF), NVIDIA, "float32")
    assert found["notes"] == list(expected)
    assert "2 channels cannot run faster than 4 on" in expected[0]
    printed = " ".join(capsys.readouterr().err.split())
    assert printed.count("warning: ") == len(expected) == 2
    assert all(" ".join(text.split()) in printed for text in expected)


def test_a_run_does_not_go_on_where_its_device_would_want_another_budget(
    tmp_path, monkeypatch, capsys
):
    images = runs.write_images(tmp_path / "images.npz")
    made = runs.settings(images, multiple_of=0, stop_after=5)
    with runs.cheap(tmp_path / "cache"):
        for multiple in (2, 3):
            monkeypatch.setattr(hardware, "multiple_of", lambda *_, to=multiple: to)
            if multiple == 2:
                assert train.train(made, tmp_path / "run") is None
            else:
                with pytest.raises(ValueError, match=r"no checkpoint in .* is whole"):
                    train.train(made, tmp_path / "run")
    said = " ".join(capsys.readouterr().err.split())
    assert "go on where it began, or give multiple_of a number" in said


def test_describe_rounds_and_warns_for_the_device(monkeypatch, capsys):
    monkeypatch.setattr(budgeting, "this_device", lambda: NVIDIA)
    monkeypatch.setattr(describe, "train_bytes", lambda *_, **__: None)
    words = ["--network", "vgg11", "--dataset", "cifar10", "--keep", "0.3"]
    assert describe.main(words) == 0
    assert "warning: 19 channels cannot run faster than 20 on NVIDIA" in capsys.readouterr().out
    assert describe.main([*words, "--multiple_of", "0"]) == 0
    assert "warning" not in capsys.readouterr().out
