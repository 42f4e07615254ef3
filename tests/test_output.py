"""What commands print and write: nothing that was computed is lost, and errors stand on lines."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

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
