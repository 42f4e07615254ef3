"""The benchmark's peers in PyTorch; skipped where it is not installed (`.[training,peers]`)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict

from dce_jax import budget, forward, networks, training
from dce_jax import channels as maps
from dce_jax.networks.stages import group_widths
from experiments import bench, benchmark, peers, records

RATE = 0.01


def vgg():
    return networks.VGG(depths=(1, 2), widths=FrozenDict(conv0=4, conv1=8, conv2=8), num_classes=10)


def resnet(*, bottleneck=False, large=False):
    widths = group_widths((1, 2), (4, 8), bottleneck=bottleneck, stem=8 if bottleneck else None)
    return networks.ResNet(
        depths=(1, 2), widths=widths, num_classes=10, bottleneck=bottleneck, large=large
    )


NETWORKS = {"vgg": vgg, "resnet": resnet, "large": partial(resnet, bottleneck=True, large=True)}


@pytest.fixture(scope="module")
def torch_steps():
    pytest.importorskip("torch")
    pytest.importorskip("torch_pruning")
    from experiments import peer_steps

    return peer_steps


def prepare(name):
    shared = bench.prepare(NETWORKS[name](), batch=4, image_size=32, learning_rate=RATE, dispatch=1)
    return shared, bench.initial(shared, shared.module)


@pytest.mark.parametrize("name", NETWORKS)
def test_both_frameworks_take_the_same_steps(torch_steps, name):
    shared, loop = prepare(name)
    network = torch_steps.peer_networks.build(shared.module, loop.params).train()
    task = torch_steps.batch(shared, RATE)
    tx = torch_steps.optimizer(network, RATE)
    loss = forward.classification_loss(shared.module)
    ours = jax.jit(partial(training.plain, shared.tx, loss, training.whole_batch))
    for _ in range(3):
        loop, metrics = ours(loop, shared.data)
        _, found = torch_steps.step(network, tx, task, None, None)
        np.testing.assert_allclose(found["loss"], metrics["loss"], rtol=1e-4)
    wanted = dict(torch_steps.peer_networks.build(shared.module, loop.params).named_parameters())
    for key, value in network.named_parameters():
        got, want = value.detach().numpy(), wanted[key].detach().numpy()
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4, err_msg=key)


def test_parameters_that_do_not_fit_are_refused(torch_steps):
    shared, loop = prepare("vgg")
    build = torch_steps.peer_networks.build
    with pytest.raises(RuntimeError, match=r"parameters differ: \[\], \['norm1.bias', 'norm1.w"):
        build(shared.module, {k: v for k, v in loop.params.items() if k != "norm1"})
    with pytest.raises(RuntimeError, match=r"parameters differ: .'more\.weight'"):
        build(shared.module, {**loop.params, "more": {"kernel": loop.params["head"]["kernel"]}})
    with pytest.raises(TypeError, match="DenseNet has no counterpart"):
        build(networks.build("densenet40", num_classes=10), {})


def test_the_optimizer_is_the_benchmarks(torch_steps):
    layer = torch_steps.nn.Linear(1, 1, bias=False)
    theirs, ours = torch_steps.optimizer(layer, 10.0), bench.optimizer(10.0)
    params = {"w": jnp.asarray(layer.weight.detach().numpy())}
    state = ours.init(params)
    for gradient in (0.5, -1.0, 0.25):
        layer.weight.grad = torch_steps.torch.full((1, 1), gradient)
        theirs.step()
        updates, state = ours.update({"w": jnp.full((1, 1), gradient)}, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(layer.weight.detach().numpy(), params["w"], rtol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_cutting_leaves_the_narrow_networks_parameters(torch_steps, name):
    shared, loop = prepare(name)
    quarter = budget.from_fraction(shared.channels.full, 0.25)
    thin = bench.initial(shared, maps.with_widths(shared.module, quarter.compact))
    network = torch_steps.peer_networks.build(shared.module, loop.params)
    torch_steps.cut(network, keep=0.25, image=torch_steps.batch(shared, RATE).images[:1])
    narrow = torch_steps.peer_networks.build(
        maps.with_widths(shared.module, quarter.compact), thin.params
    )
    wanted = {key: value.shape for key, value in narrow.named_parameters()}
    assert {key: value.shape for key, value in network.named_parameters()} == wanted


def test_masked_channels_stay_zero_through_a_step(torch_steps):
    shared, loop = prepare("vgg")
    network = torch_steps.peer_networks.build(shared.module, loop.params)
    torch_steps.mask(network, keep=0.25)
    before = network.conv1.weight_orig.detach().clone()
    task = torch_steps.batch(shared, RATE)
    torch_steps.step(network, torch_steps.optimizer(network, RATE), task, None, None)
    network(task.images)
    assert not before.equal(network.conv1.weight_orig)
    for layer in (network.conv0, network.conv1, network.conv2):
        zeros = (layer.weight.flatten(1) == 0).all(dim=1)
        assert int(zeros.sum()) == 0.75 * len(zeros) and layer.weight_orig.all()


def test_peers_run_in_the_layout_that_they_name(torch_steps, monkeypatch):
    shared, _ = prepare("vgg")
    layout = torch_steps.LAYOUTS["channels_last"]
    monkeypatch.setattr(torch_steps, "LAYOUTS", {"channels_last": layout})
    found = list(torch_steps.build(shared, [0.5], learning_rate=RATE))
    assert len(found) == torch_steps.count([0.5])
    for one in found:
        network, _, task = one.contender.run.args
        assert one.layout == "channels_last"
        assert task.images.is_contiguous(memory_format=layout)
        assert network.conv1.weight.is_contiguous(memory_format=layout)


def test_peers_share_the_file_with_our_own_rows(torch_steps, tmp_path, monkeypatch):
    monkeypatch.setitem(networks.NETWORKS, "tiny", lambda **_: vgg())
    path = tmp_path / "costs.json"
    words = ["--network", "tiny", "--batch", "8", "--image_size", "16", "--select_every", "2"]
    words += ["--pairs", "2", "--seconds", "0", "--peers", "--json", str(path)]
    assert benchmark.main(words) == 0
    (found,) = records.gather([path]).benchmarks
    rows = {row["variant"]: row for row in found["peers"]}
    assert list(rows) == ["dense", "narrow", "masked", "pruned"] and len(found["rows"]) == 5
    assert rows["pruned"]["params"] == rows["narrow"]["params"] < rows["masked"]["params"]
    assert rows["masked"]["params"] == rows["dense"]["params"]
    for row in rows.values():
        trials = row["layout_trial_ms"]
        assert set(trials) == {"contiguous", "channels_last"}
        assert trials[row["layout"]] == min(trials.values())
        assert (row["prune_s"] is not None) == (row["variant"] in ("masked", "pruned"))
        assert row["threads"] == peers.machine.cores() == torch_steps.torch.get_num_threads()
        assert row["ms_min"] <= row["ms_median"] <= row["ms_max"] and row["rounds"] == 2
