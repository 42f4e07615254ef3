"""The benchmark's peers: what is refused, their rows and tables, and with PyTorch the steps."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict

from dce_jax import budget, forward, networks, step
from dce_jax import channels as maps
from dce_jax.networks.stages import group_widths
from experiments import bench, benchmark, cost_rows, peer_tables, peers, records, tables, variants

RATE = 0.01


def vgg():
    return networks.VGG(depths=(1, 2), widths=FrozenDict(conv0=4, conv1=8, conv2=8), num_classes=10)


def resnet(*, bottleneck=False, large=False):
    widths = group_widths((1, 2), (4, 8), bottleneck=bottleneck, stem=8 if bottleneck else None)
    return networks.ResNet(
        depths=(1, 2), widths=widths, num_classes=10, bottleneck=bottleneck, large=large
    )


NETWORKS = {"vgg": vgg, "resnet": resnet, "large": partial(resnet, bottleneck=True, large=True)}


# Without PyTorch


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("densenet40", "--peers --network densenet40: only the VGGs and ResNets"),
        ("resnet56", "take --network resnet56-projection"),
    ],
)
def test_networks_without_a_counterpart_are_refused(network, message, monkeypatch, capsys):
    monkeypatch.setattr(peers, "find_spec", lambda _: object())
    monkeypatch.setattr(variants, "build", lambda *_: pytest.fail("compiled"))
    assert benchmark.main(["--peers", "--network", network]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_package_and_a_gpu_are_refused(monkeypatch):
    there = {"torch"}
    monkeypatch.setattr(peers, "find_spec", lambda name: name if name in there else None)
    needs = r"--peers needs torch-pruning: pip install -e '\.\[training,peers\]'"
    with pytest.raises(ValueError, match=needs):
        peers.check(vgg(), "vgg")
    there.add("torch_pruning")
    peers.check(vgg(), "vgg")
    peers.check(resnet(), "resnet")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(ValueError, match=r"--peers on gpu.*JAX_PLATFORMS=cpu"):
        peers.check(vgg(), "vgg")


def variant(name, keep, every=None):
    return variants.Variant(name, keep, every, 1.0, None, None, None)


def peer(name, keep, prune_s=None):
    return peers.Peer(name, keep, 1000, "contiguous", {"contiguous": 1.0}, prune_s, None)


OURS = [variant("dense", 1.0), variant("narrow", 0.5), variant("slab", 0.5, 1)]
OURS += [variant("slab", 0.5, 10), variant("committed", 0.5), variant("masked", 0.5)]
THEIRS = [
    peer("dense", 1.0),
    peer("narrow", 0.5),
    peer("masked", 0.5, 1.0),
    peer("pruned", 0.5, 36.0),
]
TIMES = [9000.0, 2000.0, 2500.0, 3000.0, 1000.0, 9500.0, 4000.0, 1500.0, 5000.0, 1200.0]


@pytest.fixture
def figures(monkeypatch):
    monkeypatch.setattr(peers.machine, "versions", lambda names: dict.fromkeys(names, "1.0"))
    times_RV = np.array([TIMES, TIMES])
    names = {"network": "net", "batch": 4}
    return {
        "device": "cpu (2 cores)",
        "versions": {"jax": "0.10.2"},
        "rows": cost_rows.rows(OURS, times_RV[:, : len(OURS)], **names),
        "peers": peers.rows(THEIRS, OURS, times_RV, **names),
    }


def test_peers_compare_with_our_narrow_and_their_own_dense_step(figures):
    rows = figures["peers"]
    assert all(set(records.PEER_KEYS) <= row.keys() for row in rows)
    assert [row["ms_median"] for row in rows] == TIMES[len(OURS) :]
    assert [row["vs_narrow"] for row in rows] == [2.0, 0.75, 2.5, 0.6]
    assert [row["vs_torch_dense"] for row in rows] == [1.0, 0.375, 1.25, 0.3]
    assert [row["prune_s"] for row in rows] == [None, None, 1.0, 36.0]
    assert peers.table(rows).row_count == 4


def test_several_keeps_leave_their_dense_step_without_a_partner():
    ours = [variant("dense", 1.0), variant("narrow", 0.25), variant("narrow", 0.5)]
    theirs = [peer("dense", 1.0), peer("narrow", 0.25), peer("narrow", 0.5)]
    times_RV = np.array([[9.0, 1.0, 2.0, 4.0, 3.0, 8.0]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers.machine, "versions", lambda names: dict.fromkeys(names, "1.0"))
        rows = peers.rows(theirs, ours, times_RV, network="net", batch=4)
    assert [row["vs_narrow"] for row in rows] == [None, 3.0, 4.0]


def test_workflows_add_up_the_steps_they_name(figures):
    found = {(one.framework, one.name): one.seconds for one in peer_tables.workflows(figures, 0.5)}
    assert [round(seconds) for seconds in found.values()] == [
        10_600,  # 3 % of 3 s, the rest of 1 s
        round(10_000 * (9 + 1 / 3)),
        95_000,
        20_000,
        round(10_000 * (4 + 1.2 / 3)) + 36,
        50_000,
        15_000,
    ]
    assert next(iter(found)) == ("JAX", "dce, a selection every 10 steps")


def test_a_document_shows_peers(figures, tmp_path):
    (tmp_path / "costs.json").write_text(json.dumps(figures))
    page = tmp_path / "page.md"
    page.write_text("<!-- peers:costs costs.json -->\n<!-- /peers:costs -->\n")
    assert tables.main(["--readme", str(page)]) == 0
    text = page.read_text()
    assert "net, batch 4, on cpu (2 cores)," in text and "(torch 1.0, torch-pruning 1.0)" in text
    assert (
        "| pruned | 0.5 | contiguous | 1,000 | 1200.0 [1200.0, 1200.0] | 0.60 [0.60, 0.60]" in text
    )
    assert "| train dense, cut, tune | PyTorch | 0.5 | 12.23 | 4.15x |" in text
    assert tables.main(["--readme", str(page), "--check"]) == 0


def test_a_benchmark_without_peers_and_a_broken_one_are_refused(figures, tmp_path):
    path = tmp_path / "costs.json"
    theirs = figures.pop("peers")
    path.write_text(json.dumps(figures))
    with pytest.raises(ValueError, match=r"no peers in .*costs.json: run .* with --peers"):
        peer_tables.tables([path])
    path.write_text(json.dumps({**figures, "peers": [{**theirs[0], "layout": 0}, {}]}))
    with pytest.raises(ValueError, match=r"costs\.json, peer 1 has no network"):
        peer_tables.tables([path])


# With PyTorch


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
    ours = jax.jit(partial(step.plain, shared.tx, loss, step.whole_batch))
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


def test_peers_run_in_the_layout_that_they_name(torch_steps):
    shared, _ = prepare("vgg")
    found = list(torch_steps.build(shared, [0.5], learning_rate=RATE))
    assert len(found) == torch_steps.count([0.5])
    for one in found:
        network, _, task = one.contender.run.args
        for tensor in (task.images, network.conv1.weight):
            for name, layout in torch_steps.LAYOUTS.items():
                assert tensor.is_contiguous(memory_format=layout) == (name == one.layout)


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
