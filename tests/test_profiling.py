"""A profile on request: a trace is there, its steps have names, the result is the same."""

import gzip
import json
from types import SimpleNamespace

import pytest
import runs

from experiments import profiling, train
from experiments.profiling import Window


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with runs.lab(tmp_path_factory.mktemp("runs")) as opened:
        yield opened


def traced_steps(workdir):
    """Numbers of the steps that a trace names, in order."""
    (path,) = (workdir / "profile").rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    steps = [e["args"] for e in events if e.get("name") == "train" and "args" in e]
    return sorted({int(args["step_num"]) for args in steps if "step_num" in args})


@pytest.mark.parametrize(
    ("window", "expected", "lines"),
    [
        (Window(2, 3), [1, 2, 3, 4, 5], [True, False, False]),
        (Window(7, 11), [6, 7, 8, 9, 10, 11, 12], [False, True, True]),
    ],
)
def test_whole_blocks_are_traced_and_the_result_is_the_same(
    lab, tmp_path, capsys, window, expected, lines
):
    _, plain = lab.run(method="dce")
    train.train(runs.settings(lab.images, method="dce"), tmp_path / "w", window)
    runs.same_end(plain, tmp_path / "w")
    assert traced_steps(tmp_path / "w") == expected
    assert [x["profiled"] for x in runs.lines(tmp_path / "w/metrics.jsonl")] == lines
    assert not any(x["profiled"] for x in runs.lines(plain / "metrics.jsonl"))
    assert not (plain / "profile").exists()
    said = " ".join(capsys.readouterr().err.split())
    assert f"profile: {tmp_path / 'w/profile'}; open its newest *.trace.json.gz at" in said


@pytest.mark.parametrize("text", ["", "5", "5:", ":5", "a:b", "0:3", "4:3", "-1:3", "1:2:3"])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(ValueError, match=r"--profile is .*as in 101:120"):
        profiling.parse(text)


def test_a_range_is_parsed():
    assert profiling.parse("3:12") == Window(3, 12)


def test_ranges_outside_the_run_are_refused(lab, tmp_path):
    settings = runs.settings(lab.images, method="dce", stop_after=5)
    with pytest.raises(ValueError, match="steps 9 to 13, but those still to be taken are 1 to 12"):
        train.train(settings, tmp_path, Window(9, 13))
    assert train.train(settings, tmp_path) is None
    settings.stop_after = None
    with pytest.raises(ValueError, match=r"steps 5 to 7, but those still .* are 6 to 12: choose"):
        train.train(settings, tmp_path, Window(5, 7))
    train.train(settings, tmp_path, Window(6, 6))
    assert traced_steps(tmp_path) == [6, 7, 8, 9, 10]
    with pytest.raises(ValueError, match="all 12 steps of this run are taken: choose another"):
        train.train(settings, tmp_path, Window(6, 6))


def test_an_interrupt_ends_the_trace(lab, tmp_path):
    settings = runs.settings(lab.images, method="dce", stop_after=5)
    assert train.train(settings, tmp_path, Window(1, 12)) is None
    assert traced_steps(tmp_path) == [1, 2, 3, 4, 5]


def test_the_flag_reaches_the_run(lab, tmp_path, monkeypatch, capsys):
    runs.flags(monkeypatch, runs.settings(lab.images), tmp_path)
    monkeypatch.setattr(train, "_PROFILE", SimpleNamespace(value="3:x"))
    assert train.main(["train"]) == 1
    assert capsys.readouterr().err.startswith("error: --profile is '3:x': give the first")
