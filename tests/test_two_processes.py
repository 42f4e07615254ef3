"""Two processes on this machine go on as one does, and leave one result."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import runs
from test_devices import ONE, close_end

from experiments import config, pipeline, processes, train

CHILD = """
import jax, runs, sys
from absl import app
from dce_jax import networks
from experiments import pipeline, train
networks.NETWORKS["tiny"] = runs.tiny
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_disable_most_optimizations", True)
pipeline.device_memory = lambda: 1  # too small for the images: every process reads its own
train.report.write = lambda workdir: (workdir / train.PAGE).write_text("")
app.run(train.main, flags_parser=train.parse)
"""
TALK = """
import jax, sys, time
from pathlib import Path
from experiments import processes
index, ready = int(sys.argv[2]), Path(sys.argv[3])
processes.join(sys.argv[1], 2, index)
asked = [processes.any_of(index == 1), processes.any_of(False), processes.first()]
processes.check_same("steps", 7)
try:
    processes.check_same("steps", index)
except ValueError as error:
    print(error)
if index:
    time.sleep(1)
    ready.write_text("")
processes.wait("here")
print(asked, ready.exists())
"""
HERE = Path(__file__).parent
ALONE = {**ONE, "allocation": "global", "plans": 2}  # both processes learn the budget
SHARED = {**ALONE, "devices": 0, "sharding": "sharded"}


def free_port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def start(log, code, words):
    """A process with two devices that runs a piece of code."""
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    with log.open("wb") as told:
        return subprocess.Popen(
            [sys.executable, "-c", code, *words],
            stdout=told,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        )


def both(workdir, code, words_of):
    """What two processes print; both must end well."""
    logs, port = [Path(f"{workdir}.{index}.log") for index in range(2)], free_port()
    children = [start(log, code, words_of(port, i)) for i, log in enumerate(logs)]
    try:
        codes = [child.wait(timeout=300) for child in children]
    finally:
        for child in children:
            child.kill()
    said = [log.read_text() for log in logs]
    assert codes == [0, 0], said
    return said


def flags(settings, workdir):
    """Command lines of a run that two processes share."""
    before = config.defaults()
    words = [f"--config.{k}={v}" for k, v in settings.items() if v != before[k]]
    words += [f"--workdir={workdir}", "--processes=2"]
    return lambda port, i: [*words, f"--coordinator=localhost:{port}", f"--process={i}"]


def test_two_processes_go_on_where_one_stood_and_end_where_one_does(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "device_memory", lambda: 1)
    workdir = tmp_path / "two"
    with runs.lab(tmp_path) as lab:
        _, alone = lab.run(**ALONE)
        train.train(runs.settings(lab.images, **ALONE, stop_after=4), workdir)
        first, second = both(workdir, CHILD, flags(runs.settings(lab.images, **SHARED), workdir))
    assert "going on after step 4 of 12" in first
    assert "4 x cpu" in first
    assert "going on" not in second and "4 x cpu" not in second  # only the first one speaks
    close_end(alone, workdir)
    lines = runs.lines(workdir / "metrics.jsonl")
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]


def test_processes_ask_wait_for_and_refuse_one_another(tmp_path):
    ready = tmp_path / "ready"
    said = both(tmp_path / "talk", TALK, lambda port, i: [f"localhost:{port}", str(i), str(ready)])
    for index, text in enumerate(said):
        assert "steps is [0, 1] in the processes of this run: they must share one" in text
        assert "[7, 7]" not in text
        assert f"[True, False, {index == 0}] True" in text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, 2, None), r"--processes is 2 and --process None, but there is no --coordinator"),
        (("localhost:1", 2, None), r"--process None: give the number of processes"),
        (("localhost:1", 2, 2), r"--process 2: give .* from 0 to one less; or --coordinator=auto"),
    ],
)
def test_processes_that_cannot_join_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        processes.join(*given)
