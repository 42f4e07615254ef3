"""Killed, interrupted and started again: the end is bit-identical to a run that was left alone.

The command line runs in real processes, forked from one that has the imports behind it. Those that
are disturbed share compiled programs through a cache; the run beside them compiles its own. However
fast the machine, a run that is to be disturbed cannot reach its end before that: it dawdles.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import runs

SERVER = """
import json, os, sys, time
import jax, runs
from absl import app
from dce_jax import networks
from experiments import journal, result, train
networks.NETWORKS["tiny"] = runs.tiny

def dawdle_after(step):
    record, write = train.record, journal.write
    def slow_record(run, state, workdir, line):
        time.sleep(0.5 if line["step"] > step else 0)
        record(run, state, workdir, line)
    def slow_write(path, content):
        time.sleep(60 if path.name == result.RESULT else 0)
        write(path, content)
    train.record, journal.write = slow_record, slow_write

for line in sys.stdin:
    words, log, options, dawdle = json.loads(line)
    child = os.fork()
    if child == 0:
        for stream in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        for name, value in options.items():
            jax.config.update(name, value)
        if dawdle is not None:
            dawdle_after(dawdle)
        sys.argv = ["train", *words]
        app.run(train.main, flags_parser=train.parse)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
HERE = Path(__file__).parent
BLOCK, COMMIT, STEPS, KILLS = 5, 50, 130, 10
CHANGES = {"steps": STEPS, "commit": 0.4, "select_every": BLOCK, "block": BLOCK}
PLANNED = {"allocation": "global", "plans": 3, "steps": 20, "commit": 0.9}
PLANNED |= {"select_every": 2, "block": 2}  # plans after 6, 12 and 18 steps
PLAIN = {"jax_disable_most_optimizations": True}


class Place(NamedTuple):
    """Where the processes of this file come from and what they share."""

    server: subprocess.Popen
    root: Path
    images: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("lives")
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
    )
    with server:
        yield Place(server, root, runs.write_images(root / "images.npz"))
        server.stdin.close()


def start(place, workdir, *, dawdle=None, asked=CHANGES, **options):
    """Starts the main job in a process of its own, slow after a step if asked; returns its id."""
    changes = {**asked, "name": "tiny", "network": "tiny", "dataset": str(place.images)}
    changes |= {"batch_size": 8, "checkpoint_blocks": 1, "recalibration_examples": 16}
    words = [f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in changes.items())]
    request = [words, str(workdir) + ".log", {**PLAIN, **options}, dawdle]
    place.server.stdin.write(json.dumps(request) + "\n")
    place.server.stdin.flush()
    return int(place.server.stdout.readline())


def exit_code(place):
    """Waits for the process that was started last."""
    return int(place.server.stdout.readline())


def cache(place):
    return {
        "jax_compilation_cache_dir": str(place.root / "cache"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }


def log_of(workdir):
    return Path(f"{workdir}.log").read_text()


def saved(workdir):
    """Steps of the last checkpoint that was written to the end."""
    records = (workdir / "checkpoints").glob("*.json")
    return max((int(record.stem) for record in records), default=0)


def wait_for(workdir, step):
    deadline = time.monotonic() + 120
    while saved(workdir) < step:
        assert time.monotonic() < deadline, f"waited in vain for step {step}: {log_of(workdir)}"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def undisturbed(place):
    workdir = place.root / "undisturbed"
    start(place, workdir)
    assert exit_code(place) == 0, log_of(workdir)
    return workdir


def life_until_kill(place, workdir, blocks, seconds):
    """Starts the job, lets it save some more checkpoints, and kills it a moment later."""
    target = min(saved(workdir) + blocks * BLOCK, STEPS)
    pid = start(place, workdir, dawdle=target + 2 * BLOCK, **cache(place))
    wait_for(workdir, target)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    assert exit_code(place) == -signal.SIGKILL, log_of(workdir)


def test_ten_kills_at_random_moments_change_nothing(place, undisturbed):
    workdir, draw = place.root / "killed", random.Random(0)
    moments = [(draw.randrange(1, 4), draw.uniform(0, 0.25)) for _ in range(KILLS - 3)]
    moments += [(0, draw.uniform(0, 1.5)) for _ in range(2)]  # while it starts
    draw.shuffle(moments)
    moments.append((STEPS, draw.uniform(0, 0.2)))  # after the last step
    for blocks, seconds in moments:
        life_until_kill(place, workdir, blocks, seconds)
    assert not (workdir / "result.json").exists()
    start(place, workdir, **cache(place))
    assert exit_code(place) == 0, log_of(workdir)
    runs.same_end(undisturbed, workdir)
    boundaries = [line["step"] for line in runs.lines(workdir / "metrics.jsonl")]
    assert boundaries == list(range(BLOCK, STEPS + 1, BLOCK))
    assert log_of(workdir).count("going on after step") >= KILLS - 2


def test_a_kill_between_learned_budgets_changes_nothing(place):
    alone, workdir, until = (
        place.root / "planned",
        place.root / "planned_killed",
        {"stop_after": 12},
    )
    start(place, alone, asked=PLANNED | until, **cache(place))
    assert exit_code(place) == 130, log_of(alone)
    pid = start(place, workdir, dawdle=8, asked=PLANNED, **cache(place))
    wait_for(workdir, 8)
    os.kill(pid, signal.SIGKILL)
    assert exit_code(place) == -signal.SIGKILL, log_of(workdir)
    start(place, workdir, asked=PLANNED | until, **cache(place))
    assert exit_code(place) == 130, log_of(workdir)
    assert "going on after step" in log_of(workdir)
    assert runs.checkpointed(workdir) == runs.checkpointed(alone)
    one, other = (json.loads((w / "checkpoints" / "12.json").read_text()) for w in (workdir, alone))
    assert one["plans"] == other["plans"] and [plan["step"] for plan in one["plans"]] == [0, 6, 12]
    assert one["plans"][0]["widths"] != one["plans"][1]["widths"]


def test_interrupts_save_the_block_and_change_nothing(place, undisturbed):
    workdir = place.root / "interrupted"
    for number in (2, 1):
        target = saved(workdir) + number * BLOCK
        pid = start(place, workdir, dawdle=target, **cache(place))
        wait_for(workdir, target)
        os.kill(pid, signal.SIGINT)
        assert exit_code(place) == 130, log_of(workdir)
        stopped = saved(workdir)
        assert f"stopped after step {stopped}; the same command goes on" in log_of(workdir)
        assert runs.lines(workdir / "metrics.jsonl")[-1]["step"] == stopped
    assert "Traceback" not in log_of(workdir)
    start(place, workdir, **cache(place))
    assert exit_code(place) == 0, log_of(workdir)
    runs.same_end(undisturbed, workdir)
    assert f"going on after step {stopped} of {STEPS}" in log_of(workdir)


def test_finished_run_prints_its_result_and_exits_0(place, undisturbed):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}
    start(place, undisturbed)
    assert exit_code(place) == 0
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")} == before
    assert log_of(undisturbed).count("dce: tiny on") == 2
