"""What crosses devices is read off HLO text, and counted by the commands that show it."""

import json

import numpy as np
import pytest
import runs

from experiments import drift, traffic
from experiments.collectives import Collective, collectives, source

TEXT = """
HloModule jit_step
  %add.1 = f32[4]{0} add(%a, %b), metadata={op_name="jit(f)/all-reduce(pretended)"}
  %sum.2 = (f32[3,3]{1,0}, bf16[], /*index=2*/f32[8]{0}) all-reduce(%x, %y, %z), channel_id=1
  %g.1 = f32[3,3]{1,0} get-tuple-element(%sum.2), index=0, metadata={op_name="a/transpose(jvp(N))"}
  %g.2 = bf16[] get-tuple-element(%sum.2), index=1, metadata={op_name="jit(f)/jvp()/sum"}
  ROOT %ag = pred[16]{0} all-gather(%c), dimensions={0}, metadata={op_name="jit(f)/gather"}
  %s = (f32[2]{0}, f32[16]{0}) all-gather-start(%d), metadata={op_name="jvp()/sharding_constraint"}
  %agd = f32[16]{0} all-gather-done(%s)
  %ars = s32[5]{0} all-reduce-start(%e)
"""


def test_every_array_is_found_with_its_bytes_and_its_origin():
    grads, loss, unknown, gathered, started, summed = collectives(TEXT)
    assert grads == Collective("all-reduce", "f32", (3, 3), 36, "a/transpose(jvp(N))")
    assert (loss.bytes, loss.shape, source(loss)) == (2, (), "forward")
    assert (unknown.bytes, unknown.op, source(unknown)) == (32, "", "other")
    assert (gathered.bytes, source(gathered), source(grads)) == (16, "gather", "backward")
    assert (started.kind, started.shape, source(started)) == ("all-gather", (16,), "gather")
    assert (summed.kind, summed.bytes) == ("all-reduce", 20)


def test_an_element_type_of_unknown_size_is_refused():
    with pytest.raises(ValueError, match=r"element type 'token' has no size that is known"):
        collectives("  %a = token[] all-reduce(%b)")


@pytest.fixture
def tiny(tmp_path):
    with runs.cheap(tmp_path / "cache"):
        yield


def test_traffic_shows_what_each_program_sends(tiny, tmp_path, capsys):
    words = ["--network=tiny", "--dataset=digits", "--batch=4", "--devices=2"]
    assert traffic.main([*words, f"--json={tmp_path / 'rows.json'}"]) == 0
    found = json.loads((tmp_path / "rows.json").read_text())
    assert capsys.readouterr().out.count("\n") == 2 + len(found) == 10
    norms = {"dense step": 4 + 6, "observe": 2 + 3}
    for row in found:
        alone = 4 * norms.get(row["program"], 0)
        assert row["backward"] == (row["trainable"] + alone if alone else 0)
        assert row["forward"] == (2 * alone + 8 if alone else 0)
        gathers = row["states"] == "sharded" and row["program"] in ("dense step", "enter")
        assert (row["gather"] > 0) == gathers
    assert {row["trainable"] for row in found} == {4 * 342, 4 * 122}


@pytest.mark.parametrize(
    "word", ["--devices=9", "--devices=0", "--batch=3", "--network=vgg9", "--dataset=x"]
)
def test_traffic_refuses_what_does_not_fit(word, capsys):
    assert traffic.main(["--network=vgg-digits", "--dataset=digits", "--devices=2", word]) == 2
    assert "error: " in capsys.readouterr().err


def test_drift_tells_how_far_apart_two_runs_are_and_where_they_part(monkeypatch, capsys):
    def walk(network, *, devices, steps, batch, seed):
        seated = [{"a": np.array([True, step < 2 or devices == 1])} for step in range(steps)]
        return drift.Walk(seated, {1: np.zeros(2), steps: np.array([0.5 * devices, 1.0])})

    monkeypatch.setattr(drift, "walk", walk)
    assert drift.main(["--devices=2", "--steps=3"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "step 1: parameters differ by at most 0",
        "step 3: parameters differ by at most 0.5",
        "step 3 is the first to select other channels",
    ]
    assert drift.main(["--devices=2", "--steps=2"]) == 0
    assert "the same channels were selected in all 2 steps" in capsys.readouterr().out


def test_drift_refuses_what_does_not_fit(capsys):
    assert drift.main(["--devices=2", "--batch=3", "--network=vgg9"]) == 2
    assert "error: unknown network" in capsys.readouterr().err
    for word in ("--devices=0", "--steps=0", "--batch=-1"):
        assert drift.main([word]) == 2
        assert "at least 1 is needed" in capsys.readouterr().err
