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
HERE = Path(__file__).parent
SHARED = {**ONE, "devices": 0, "sharding": "sharded"}


def free_port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def start(workdir, port, index, settings):
    """One of two processes with two devices each."""
    before = config.defaults()
    words = [f"--config.{k}={v}" for k, v in settings.items() if v != before[k]]
    words += [f"--workdir={workdir}", f"--coordinator=localhost:{port}", "--processes=2"]
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    with log_of(workdir, index).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-c", CHILD, *words, f"--process={index}"],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        )


def log_of(workdir, index):
    return Path(f"{workdir}.{index}.log")


def both(workdir, settings):
    """What two processes that share a run print; both must end well."""
    port = free_port()
    children = [start(workdir, port, index, settings) for index in range(2)]
    try:
        codes = [child.wait(timeout=300) for child in children]
    finally:
        for child in children:
            child.kill()
    said = [log_of(workdir, index).read_text() for index in range(2)]
    assert codes == [0, 0], said
    return said


def test_two_processes_go_on_where_one_stood_and_end_where_one_does(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "device_memory", lambda: 1)
    workdir = tmp_path / "two"
    with runs.lab(tmp_path) as lab:
        _, alone = lab.run(**ONE)
        train.train(runs.settings(lab.images, **ONE, stop_after=4), workdir)
        first, second = both(workdir, runs.settings(lab.images, **SHARED))
    assert "going on after step 4 of 12" in first
    assert "4 x cpu" in first
    assert "going on" not in second and "4 x cpu" not in second  # only the first one speaks
    close_end(alone, workdir)
    lines = runs.lines(workdir / "metrics.jsonl")
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]


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
