"""The benchmark's peers without PyTorch: what is refused, their rows and tables."""

import json

import jax
import numpy as np
import pytest

from dce_jax import networks
from experiments import (
    benchmark,
    composed,
    cost_rows,
    peer_tables,
    peers,
    records,
    tables,
    variants,
)


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
        peers.check(networks.build("vgg11", num_classes=10), "vgg11")
    there.add("torch_pruning")
    peers.check(networks.build("vgg11", num_classes=10), "vgg11")
    peers.check(networks.build("resnet18", num_classes=10), "resnet18")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(ValueError, match=r"--peers on gpu.*JAX_PLATFORMS=cpu"):
        peers.check(networks.build("vgg11", num_classes=10), "vgg11")


def variant(name, keep, every=None):
    return composed.Variant(name, keep, every, None, 1, 1.0, None, None, 0, ())


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
