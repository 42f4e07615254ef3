"""Configs: what is refused, names that were meant, and whose workdir it is."""

import json
import math

import pytest
import runs

from experiments import checks, config, lengths, optimizers, session
from experiments.configs import (
    cifar10_resnet20,
    cifar10_small,
    cifar10_vgg16,
    densenet40,
    digits,
    resnet50_imagenet,
    resnet56,
    resnet164,
    vgg19,
)


def settings(**changes):
    made = config.defaults()
    made.update(changes)
    return made


@pytest.mark.parametrize(
    "module",
    [
        *(digits, cifar10_small, cifar10_resnet20, cifar10_vgg16),
        *(vgg19, resnet56, resnet164, densenet40, resnet50_imagenet),
    ],
)
def test_shipped_configs_pass_and_share_their_fields(module):
    made = module.get_config()
    checks.check(made)
    assert set(made) == set(config.defaults())
    assert made.name == module.__name__.rpartition(".")[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "dcee"}, "unknown method 'dcee'; did you mean 'dce'[?] One of dce, dense"),
        ({"method": "???"}, r"unknown method '\?\?\?'\. One of"),
        ({"network": "vgg-digit"}, "unknown network 'vgg-digit'; did you mean 'vgg-digits'[?]"),
        ({"signal": "norm_tailor"}, "unknown signal 'norm_tailor'; did you mean 'norm_taylor'[?]"),
        ({"rewards": "ranks"}, "unknown rewards 'ranks'; did you mean 'rank'[?]"),
        ({"rewards": "rank", "allocation": "global"}, "rewards are ranks, .* use rewards=max, or"),
        ({"dtype": "float16"}, "unknown dtype 'float16'; did you mean 'bfloat16'[?]"),
        ({"scan": "yes"}, "unknown scan 'yes'"),
        ({"keep": 0.0}, "keep is 0.0: it must be above 0 and at most 1"),
        ({"keep": -0.5}, "keep is -0.5: it must be above 0"),
        ({"keep": 1.01}, "keep is 1.01: it must be above 0 and at most 1"),
        ({"keep": math.nan}, "keep is nan: it must be finite"),
        ({"macs": 0.0}, "macs is 0.0: it must be above 0"),
        ({"macs": 2.0}, "macs is 2.0: it must be above 0 and at most 1"),
        ({"discount": 0.0}, "discount is 0.0: it must be above 0"),
        ({"commit": -0.1}, "commit is -0.1: it is a share of the steps, 0 to 1"),
        ({"warmup": 1.5}, "warmup is 1.5: it is a share"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0: it must not be negative"),
        ({"learning_rate": math.inf}, "learning_rate is inf: it must be finite"),
        ({"alpha": -0.1}, "alpha is -0.1: it must not be negative"),
        ({"alpha_end": -1.0}, "alpha_end is -1.0: it must not be negative"),
        ({"weight_decay": math.nan}, "weight_decay is nan: it must be finite"),
        ({"width": -1.0}, "width is -1.0: it must not be negative"),
        ({"epochs": 0.0}, "epochs is 0.0: it must be positive"),
        ({"steps": 0}, "steps is 0: it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0: it must be at least 1"),
        ({"select_every": 0}, "select_every is 0: it must be at least 1"),
        ({"block": -5}, "block is -5: it must be at least 1"),
        ({"checkpoint_blocks": 0}, "checkpoint_blocks is 0"),
        ({"recalibration_examples": 0}, "recalibration_examples is 0"),
        ({"validation": -1}, "validation is -1: it must be at least 0"),
        ({"examples": 0}, "examples is 0: it must be at least 1"),
        ({"image_size": 0}, "image_size is 0: it must be at least 1"),
        ({"threads": 0}, "threads is 0: it must be at least 1"),
        ({"image_size": 224, "crop": 4}, "crop is 4, but image_size 224 cuts .*: use crop 0"),
        ({"seed": -1}, "seed is -1: it must be at least 0"),
        ({"warmup": 1.0}, "warmup is 1.0: nothing would be left to train at the full rate"),
        ({"macs": 0.25, "widths": "conv0=8"}, "macs is 0.25 and widths 'conv0=8': both say what"),
    ],
    ids=str,
)
def test_values_that_no_run_can_have_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        checks.check(settings(**changes))


def test_optimizers_and_idle_rules_are_refused_by_name():
    with pytest.raises(ValueError, match=r"unknown optimizer 'adamv'; did you mean 'adamw'[?]"):
        optimizers.build(settings(optimizer="adamv"), float)
    with pytest.raises(
        ValueError, match="unknown idle rule 'decay': 'freeze', 'forget' or 'catch_up'"
    ):
        optimizers.idle_rule(settings(idle="decay"), float, 10, {})
    with pytest.raises(ValueError, match="needs decoupled weight decay: choose optimizer 'adamw'"):
        optimizers.idle_rule(settings(idle="catch_up"), float, 10, {})
    assert optimizers.idle_rule(settings(), float, 10, {}) is None


def test_learning_rate_warms_up_and_ends_near_zero():
    rate = optimizers.schedule(settings(learning_rate=0.1, warmup=0.1), 100)
    values = [float(rate(step)) for step in range(100)]
    assert values[0] == 0.0
    assert max(values) == values[10] == pytest.approx(0.1)
    assert values[5] == pytest.approx(0.05)
    assert 0 <= values[-1] < 1e-3
    assert values[55] == pytest.approx(0.05)


def test_a_rate_over_macs_reaches_at_the_commit_what_was_spent_by_then():
    chosen, clock = settings(learning_rate=0.1, warmup=0.1), lengths.macs_clock(400, 0.25)
    over_macs = optimizers.schedule(chosen, 450, clock)  # 400 cheap steps, 50 at the final budget
    plain = optimizers.schedule(chosen, 150)
    pairs = [(0, 0), (40, 10), (60, 15), (400, 100), (401, 101), (450, 150)]
    for count, spent in pairs:
        assert float(over_macs(count)) == pytest.approx(float(plain(spent)), abs=1e-7)


def test_a_restarted_rate_warms_up_again_after_the_step():
    chosen = settings(learning_rate=0.1, warmup=0.1)
    before = optimizers.schedule(chosen, 100)
    rate, anew = optimizers.restarted(chosen, before, 100, 60), optimizers.schedule(chosen, 40)
    for count in (0, 10, 59):
        assert float(rate(count)) == float(before(count))
    for count in (60, 64, 99):
        assert float(rate(count)) == pytest.approx(float(anew(count - 60)), abs=1e-8)
    assert optimizers.restarted(chosen, before, 100, 0) is before
    assert optimizers.restarted(chosen, before, 100, 100) is before


def test_explicit_widths_are_parsed():
    assert config.parse_widths("conv0=8, conv1=12") == {"conv0": 8, "conv1": 12}


@pytest.mark.parametrize("text", ["conv0", "conv0=", "conv0=-1", "conv0=1.5", "conv0=8,,conv1=2"])
def test_explicit_widths_of_another_form_are_refused(text):
    with pytest.raises(ValueError, match="is not GROUP=INTEGER, as in conv0=8,conv1=12"):
        config.parse_widths(text)


def test_another_config_is_refused_with_the_difference(tmp_path):
    stored = json.loads(json.dumps(config.plain(settings())))
    config.check_same(stored, settings(), tmp_path)
    config.check_same(stored, settings(data_dir="/elsewhere", stop_after=3), tmp_path)
    with pytest.raises(ValueError, match="was made with another config") as caught:
        config.check_same(stored | {"gone": 1}, settings(keep=0.25, seed=2), tmp_path)
    assert "\n  keep: 0.5 there, 0.25 now\n  seed: 0 there, 2 now\n" in str(caught.value)
    assert "\n  gone: 1 there, None now\n" in str(caught.value)
    assert "choose another --workdir, or the config that made it" in str(caught.value)


def test_workdir_belongs_to_a_config_once_something_was_begun(tmp_path):
    session.open_workdir(tmp_path / "w", settings(dataset="digist"))
    session.open_workdir(tmp_path / "w", settings())  # the typo left nothing to protect
    assert json.loads((tmp_path / "w/config.json").read_text())["dataset"] == "digits"
    (tmp_path / "w" / session.METRICS).write_text("")
    session.open_workdir(tmp_path / "w", settings())
    with pytest.raises(ValueError, match="dataset: 'digits' there, 'mnist' now"):
        session.open_workdir(tmp_path / "w", settings(dataset="mnist"))


@pytest.mark.parametrize("text", ['{"a": ', "", "[1]", "\x00"])
def test_damaged_config_of_a_workdir_is_named(tmp_path, text):
    session.open_workdir(tmp_path, settings())
    (tmp_path / session.METRICS).write_text("")
    (tmp_path / session.CONFIG).write_text(text)
    with pytest.raises(ValueError, match=r"config.json is damaged \(.*\): choose another"):
        session.open_workdir(tmp_path, settings())


@pytest.mark.parametrize("below", ["", "deep/er"])
def test_workdir_that_cannot_be_made_is_refused(tmp_path, below):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be written .*: choose another --workdir"):
        session.open_workdir(tmp_path / "file" / below, settings())


def test_tiny_config_of_the_tests_has_every_field(tmp_path):
    assert set(runs.settings(tmp_path)) == set(config.defaults())


def test_the_command_names_the_config_file_and_what_differs_but_no_path_of_this_machine():
    settings = digits.get_config()
    settings.method, settings.seed, settings.data_dir = "subset", 3, "/somewhere"
    said = config.command(settings)
    assert said == (
        "python -m experiments.train --config experiments/configs/digits.py "
        "--config.data_dir DIR --config.method=subset --config.seed=3"
    )
    assert "/somewhere" not in str(config.portable(settings))
