"""The benchmark of checkpoints: both ways write, and only one is waited for."""

import json
import threading

import jax.numpy as jnp
import pytest
import runs

from dce_jax import networks
from experiments import background, checkpoint, held

STATE = {"x": jnp.arange(100, dtype=jnp.float32)}


def test_the_loop_goes_on_before_a_thread_has_written(tmp_path, monkeypatch):
    free, save, settle = threading.Event(), checkpoint.ocp.save, background.settle
    monkeypatch.setattr(
        checkpoint.ocp, "save", lambda *args: save(*args) if free.wait(60) else None
    )

    def settling(writer):
        if writer.pending:  # the loop was let go, and nothing is written yet
            assert checkpoint.steps(tmp_path) == []
            free.set()
        settle(writer)

    monkeypatch.setattr(background, "settle", settling)
    with background.opened() as writer:
        found = held.hold(writer, tmp_path, STATE, 7, waits=False)
    assert checkpoint.steps(tmp_path) == [7]
    assert found["held_ms"] <= found["written_ms"]


def test_what_is_waited_for_is_written_when_the_loop_goes_on(tmp_path, monkeypatch):
    seen, settle = [], background.settle

    def settling(writer):
        seen.append((len(writer.pending), checkpoint.steps(tmp_path)))
        settle(writer)

    monkeypatch.setattr(background, "settle", settling)
    with background.opened() as writer:
        held.hold(writer, tmp_path, STATE, 7, waits=True)
    assert seen == [(0, [7])]


def test_states_that_no_run_would_save_are_refused(tmp_path):
    with background.opened() as writer, pytest.raises(ValueError, match="not finite"):
        held.hold(writer, tmp_path, {"x": jnp.array([jnp.nan])}, 1, waits=True)


def test_medians_leave_the_first_round_out(tmp_path, monkeypatch):
    times = iter([900, 900, 4, 40, 8, 80, 6, 60])

    def hold(*args, waits):
        ms = float(next(times))
        return {"held_ms": ms + waits, "written_ms": 2 * ms}

    monkeypatch.setattr(held, "hold", hold)
    told = []
    found = held.measure(STATE, tmp_path, 3, lambda done, _: told.append(done))
    rows = {row.pop("way"): row for row in found}
    # The order turns round by round: (4, 40), then (80 and 8 changed about), then (6, 60).
    assert rows["waited for"] == {
        "held_ms": 7.0,
        "held_ms_min": 5.0,
        "held_ms_max": 81.0,
        "written_ms": 12.0,
    }
    assert rows["by a thread"]["held_ms"] == 40.0
    assert told == [0, 1, 2, 3]


def test_command_writes_what_it_prints(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(networks.NETWORKS, "tiny", runs.tiny)
    path = tmp_path / "h.json"
    assert held.main(["--network", "tiny", "--rounds", "1", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert [row["way"] for row in found["checkpoints"]] == list(held.WAYS)
    assert found["state_bytes"] > 0 and "cpu" in found["device"]
    shown = capsys.readouterr().out
    assert "waited for: loop held" in shown and "by a thread: loop held" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--rounds 0", "--rounds 0: at least 1"),
        ("--network vgg61", "vgg61"),
        ("--directory missing/folder", "missing/folder"),
    ],
)
def test_what_cannot_be_measured_is_refused(words, message, capsys, monkeypatch):
    monkeypatch.setattr(held, "_state", lambda name: networks.build(name, num_classes=1) and STATE)
    assert held.main(words.split()) == 2
    assert message in capsys.readouterr().err
