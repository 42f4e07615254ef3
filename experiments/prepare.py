"""Preparing a TFDS data set in a virtual environment of its own.

Preparing needs TensorFlow, reading does not. TensorFlow therefore goes into an environment apart,
where it can neither move nor meet the installed jax.
"""

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from experiments.tfds_names import check_known, is_prepared, prepare_command

_VENV = ".prepare-venv"

_SCRIPT = (
    "import sys, tensorflow_datasets as tfds; "
    "tfds.builder(sys.argv[1], data_dir=sys.argv[2], file_format='array_record')"
    ".download_and_prepare()"
)


def _packages() -> list[str]:
    """What the environment needs; the small TensorFlow without GPU where it is published."""
    small = platform.system() == "Linux" and platform.machine() == "x86_64"
    tensorflow = "tensorflow-cpu" if small else "tensorflow"
    return [tensorflow, "tensorflow-datasets", "array-record", "importlib-resources", "pillow"]


def _installer(venv_python: str) -> list[str]:
    """Start of the install command, by what this machine has."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "--python", venv_python, "install"]
    uv = shutil.which("uv")
    if uv is not None:
        return [uv, "pip", "install", "--python", venv_python]
    raise ValueError(
        f"neither pip (for {sys.executable}) nor uv was found; install pip first: "
        f"{shlex.join([sys.executable, '-m', 'ensurepip'])}"
    )


def commands(name: str, *, data_dir: str, python: str) -> list[list[str]]:
    """The commands that prepare a data set, in order.

    Args:
      name: TFDS name.
      data_dir: TFDS data directory; the environment is made in it, as ``.prepare-venv``.
      python: interpreter to make the environment from.

    Returns:
      Argument lists: make the environment, install into it, download and prepare with it.

    Raises:
      ValueError: neither pip nor uv is there to install with.
    """
    root = Path(data_dir).expanduser().resolve()
    venv = root / _VENV
    inside = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    return [
        # Without pip: Debian's and Colab's Pythons lack the wheel that venv would install it from.
        [python, "-m", "venv", "--without-pip", str(venv)],
        [*_installer(str(inside)), *_packages()],
        [str(inside), "-I", "-c", _SCRIPT, name, str(root)],
    ]


def prepare(name: str, *, data_dir: str, python: str = sys.executable, dry_run: bool) -> str:
    """Downloads and prepares a TFDS data set.

    Running it again goes on where it stopped; a set that is already prepared is left alone.

    Args:
      name: TFDS name.
      data_dir: TFDS data directory, made if it is missing.
      python: interpreter to make the environment from; TensorFlow must exist for it.
      dry_run: only say which commands would run.

    Returns:
      What was done, or with ``dry_run`` the commands, one a line.

    Raises:
      ValueError: unknown name, nothing to prepare, or neither pip nor uv on this machine.
      RuntimeError: a command failed; the message names it and says what to try.
    """
    if name == "digits" or name.endswith(".npz"):
        raise ValueError(f"{name} needs no preparing: only TFDS data sets do")
    check_known(name, data_dir)
    if is_prepared(name, data_dir):
        return f"{name} is already prepared in {data_dir}"
    lines = commands(name, data_dir=data_dir, python=python)
    if dry_run:
        return "\n".join(shlex.join(line) for line in lines)
    Path(data_dir).expanduser().mkdir(parents=True, exist_ok=True)
    for what, line in zip(("environment", "installation", "preparation"), lines, strict=True):
        print(f"{what}: {shlex.join(line)}", file=sys.stderr, flush=True)
        try:
            code = subprocess.run(line, check=False).returncode
        except OSError as error:
            raise RuntimeError(f"{what}: {line[0]} cannot be run: {error}") from error
        if code != 0:
            hint = "If TensorFlow has no release for this Python, name another with --python. "
            raise RuntimeError(
                f"{what} failed with exit code {code}; its message is above. "
                f"{hint if what == 'installation' else ''}"
                f"To go on, repeat: {prepare_command(name, data_dir)}"
            )
    return (
        f"{name} is prepared in {data_dir}. The folder {_VENV} in it is kept for the next set; "
        "delete it whenever you like."
    )
