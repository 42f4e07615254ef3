"""Results in the repository: the command beside a figure still makes the run that made it."""

import json
import shlex
from pathlib import Path

import pytest

from experiments import cells, config, fields
from experiments.budgeting import allocation

pytestmark = [
    pytest.mark.one_set,
    # ml_collections reads config files through an importer that Python is giving up.
    pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning"),
]

ROOT = Path(__file__).parents[1] / "experiments"
PROGRAMS = [["python", "-m", f"experiments.{name}"] for name in ("train", "prune")]


def runs():
    """Path, command and config of every stored run."""
    for path in sorted((ROOT / "results").rglob("*.json")):
        found = json.loads(path.read_text())
        if isinstance(found, dict) and {"command", "config", "method"} <= set(found):
            words = shlex.split(found["command"])
            if words[:3] in PROGRAMS:
                yield path, words[3:], found["config"]


def remade(arguments):
    """The config that a command makes with today's defaults and config files."""
    files = [word for word in arguments if word.endswith(".py")] or [
        "experiments/configs/digits.py"
    ]
    overrides = [word for word in arguments if word.startswith("--config.") and "=" in word]
    return cells.settings([f"--config={ROOT.parent / files[0]}", *overrides])


def test_the_commands_of_all_stored_runs_still_make_their_configs():
    stale, count = {}, 0
    for path, arguments, stored in runs():
        own = remade(arguments)
        idle = fields.idle_fields(own.method, allocation(own))
        now = config.portable(own)
        known = stored.keys() & now.keys() - idle - {"data_dir"}
        differ = {
            field: (stored[field], now[field]) for field in known if stored[field] != now[field]
        }
        stale |= {str(path.relative_to(ROOT)): differ} if differ else {}
        count += 1
    assert count > 200
    assert not stale, "a default changed: add its old value to these commands"
