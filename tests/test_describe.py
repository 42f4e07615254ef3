"""What a budget would cost, told without training."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax.core import FrozenDict

from dce_jax import budget, cost, forward, networks, training
from dce_jax import channels as maps
from experiments import bench, describe

pytestmark = pytest.mark.one_set

KEYS = {
    *("groups", "params_full", "params_compact", "macs_full", "macs_compact"),
    *("kept_bytes_full", "kept_bytes_compact", "train_bytes_full", "train_bytes_compact"),
}
WIDTHS = {"conv0": 4, "conv1": 6}


def tiny(widths=WIDTHS, num_classes=10):
    return networks.VGG(depths=(1, 1), widths=FrozenDict(widths), num_classes=num_classes)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(networks.NETWORKS, "tiny", tiny)


@pytest.fixture
def not_compiled(monkeypatch):
    monkeypatch.setattr(describe, "train_bytes", lambda *_, **__: None)


def run(tmp_path, *words):
    path = tmp_path / "new" / "found.json"
    assert describe.main([*words, "--json", str(path)]) == 0
    return json.loads(path.read_text())


def plain_step_bytes(module, *, batch):
    image = jnp.zeros((batch, 8, 8, 1), jnp.float32)
    tx = bench.optimizer(0.1)
    loop = jax.eval_shape(partial(bench.start, module, tx), jax.random.key(0), image)
    data = {"image": image, "label": jnp.zeros(batch, jnp.int32)}
    function = partial(
        training.plain, tx, forward.classification_loss(module), training.whole_batch
    )
    compiled = jax.jit(function, donate_argnums=0).lower(loop, data).compile()
    return cost.peak_bytes(cost.memory(compiled))


def test_figures_are_those_of_the_networks(tmp_path, registered, capsys):
    found = run(tmp_path, *("--network", "tiny", "--dataset", "digits", "--batch", "8"))
    assert found.keys() == KEYS
    for name, widths in (("full", WIDTHS), ("compact", {"conv0": 2, "conv1": 3})):
        first, second = widths.values()
        kernels = 9 * first + 9 * first * second + 10 * second
        norms_and_bias = 2 * first + 2 * second + 10
        assert found[f"params_{name}"] == kernels + norms_and_bias
        macs = 64 * 9 * first + 16 * 9 * first * second + 10 * second
        assert found[f"macs_{name}"] == macs
    assert found["train_bytes_compact"] == plain_step_bytes(tiny({"conv0": 2, "conv1": 3}), batch=8)
    assert found["train_bytes_full"] > found["train_bytes_compact"]
    # Nothing that the backward pass reads is larger than all that the step holds.
    assert 0 < found["kept_bytes_compact"] < found["kept_bytes_full"]
    assert found["kept_bytes_full"] < 3 * found["train_bytes_full"]
    printed = capsys.readouterr().out
    assert "params/conv1/kernel" in printed and "compact / full" in printed


def test_groups_are_the_channel_map(tmp_path, registered, not_compiled):
    words = ("--network", "tiny", "--dataset", "digits", "--keep", "0.75")
    groups = run(tmp_path, *words)["groups"]
    image = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    channels = maps.build(tiny(), forward.shapes(tiny(), image))
    expected = budget.from_fraction(WIDTHS, 0.75)
    assert {g: (facts["width"], facts["budget"]) for g, facts in groups.items()} == {
        group: (width, chosen) for group, width, chosen in expected.entries
    }
    for group, facts in groups.items():
        assert facts.keys() == {"width", "budget", "leaves"}
        assert facts["leaves"] == maps.places(channels, group)
    assert {"path": "params/head/kernel", "axis": 0, "offset": 0} in groups["conv1"]["leaves"]


def test_a_group_can_be_held_whole(tmp_path, registered, not_compiled):
    words = ("--network", "tiny", "--dataset", "digits", "--keep", "0.5", "--whole", "conv0")
    groups = run(tmp_path, *words)["groups"]
    assert groups["conv0"]["budget"] == WIDTHS["conv0"]
    assert groups["conv1"]["budget"] == WIDTHS["conv1"] // 2


def test_missing_memory_figures_are_null_and_dashes(tmp_path, registered, not_compiled, capsys):
    found = run(tmp_path, "--network", "tiny", "--dataset", "mnist")
    assert found["train_bytes_full"] is None
    assert "memory of a training step" in capsys.readouterr().out


def test_published_counts_of_vgg16(tmp_path, not_compiled):
    words = ("--network", "vgg16", "--dataset", "cifar10", "--macs", "0.3", "--multiple_of", "8")
    found = run(tmp_path, *words)
    assert found["params_full"] == 14_724_042
    assert round(found["macs_full"] / 1e6, 1) == 313.2
    assert 0.25 < found["macs_compact"] / found["macs_full"] <= 0.3
    assert all(facts["budget"] % 8 == 0 for facts in found["groups"].values())


@pytest.mark.parametrize(("dataset", "facts"), describe.DATASETS.items())
def test_datasets_have_the_shapes_that_the_readers_give(dataset, facts):
    assert describe.image_shape(dataset) == facts
    if dataset == "digits":
        from experiments import data

        read = data.load("digits", data_dir=None)
        assert (*read.image_shape, read.num_classes) == facts


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--network", "vgg61"], "unknown network 'vgg61'; did you mean 'vgg1"),
        (["--dataset", "cifar_10"], "unknown data set 'cifar_10'; did you mean 'cifar10'?"),
        (["--dataset", "digits"], "nothing would be left"),
        (["--keep", "0"], "keep is 0.0: the fraction of channels must be above 0"),
        (["--keep", "1.01"], "keep is 1.01"),
        (["--macs", "2"], "MACs target 2.0 is outside (0, 1]"),
        (["--macs", "1e-6"], "cannot be met"),
        (["--multiple_of", "65"], "multiple_of 65 fits nowhere in group 'conv0'"),
        (["--min_channels", "0"], "min_channels is 0"),
        (["--batch", "0"], "--batch 0: a training step needs at least 1 example"),
        (["--measure", "-3"], "--measure -3.0: seconds, at least 0"),
        (["--json", "."], "Is a directory"),
        (["--json", "file/found.json"], "file"),
    ],
)
def test_bad_input_is_refused_before_anything_is_compiled(
    words, message, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(describe, "train_bytes", lambda *_, **__: pytest.fail("compiled"))
    assert describe.main(["--network", "vgg16", "--dataset", "cifar10", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error


def test_keep_and_macs_exclude_each_other(capsys):
    words = ["--network", "vgg16", "--dataset", "cifar10", "--keep", "0.5", "--macs", "0.5"]
    with pytest.raises(SystemExit):
        describe.main(words)
    assert "not allowed with" in capsys.readouterr().err
