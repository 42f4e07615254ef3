"""What commands print and write: nothing that was computed is lost, and errors stand on lines."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console, Group

from experiments import arguments, output
from experiments.display import progress

pytestmark = pytest.mark.one_set

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_file_that_cannot_be_written_is_told_with_its_name_and_a_remedy(capsys):
    path = Path("/dev/full")
    assert arguments.status(lambda: output.write_json(path, {"a": 1})) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: /dev/full could not be written (No space left on device)")
    assert "printed above: make room there, or give --json another place" in error


def test_what_was_written_comes_back(tmp_path):
    output.write_json(tmp_path / "a.json", {"a": [1, 2]})
    assert (tmp_path / "a.json").read_text() == '{\n "a": [\n  1,\n  2\n ]\n}\n'


def test_a_reader_that_has_seen_enough_is_no_mistake():
    program = (
        "import sys\n"
        "from experiments.arguments import status\n"
        "sys.exit(status(lambda: print('line\\n' * 100_000)))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "line\n"
        process.stdout.close()
        assert (process.stderr.read(), process.wait(timeout=60)) == ("", 0)


def test_an_error_stands_on_a_line_of_its_own_in_a_log():
    log = io.StringIO()
    with (
        pytest.raises(ValueError, match="astray"),
        progress("train", 3, console=Console(file=log, width=80)),
    ):
        raise ValueError("went astray")
    assert log.getvalue().endswith("\n")


def states(log):
    """Lines of a log that show a bar."""
    return [line.strip() for line in log.getvalue().splitlines() if "left" in line]


def test_a_log_gets_a_state_a_minute_and_the_last_one():
    log, now = io.StringIO(), 0.0
    with progress(
        "train", 400, console=Console(file=log, width=80, get_time=lambda: now)
    ) as display:
        for step in (100, 200, 300, 400):
            now += 40.0
            display.tell(step, f"loss {step}")
    first, second, last = states(log)
    assert "200/400" in first and "left 0:01:20" in first  # at the pace of 100 steps in 40 seconds
    assert "400/400" in second and "400/400" in last
    assert "loss 200" in log.getvalue() and "loss 100" not in log.getvalue()


def test_a_terminal_gets_no_lines_of_a_log():
    screen, now = io.StringIO(), 0.0
    console = Console(file=screen, force_terminal=True, get_time=lambda: now)
    with progress("train", 400, console=console) as display:
        now += 100.0
        display.log(Group("a state"))
    assert "a state" not in screen.getvalue()


def test_the_time_left_is_known_where_updates_are_rare():
    now = 0.0
    console = Console(file=io.StringIO(), get_time=lambda: now)
    with progress("sweep", 4, console=console) as display:
        for runs in (1, 2):
            now += 3600.0
            display.tell(runs, "")
        assert display.bar.tasks[0].time_remaining == 7200
