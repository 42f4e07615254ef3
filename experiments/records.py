"""Reading what runs and benchmarks leave behind, with errors that name the file and the remedy."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

RESULT_KEYS = (
    *("method", "network", "dataset", "seed", "keep", "keep_requested", "allocation"),
    *("widths", "select_every", "commit_step", "steps", "test_accuracy", "test_accuracy_raw"),
    *("test_accuracy_full", "params_full", "params_compact", "macs_full", "macs_compact"),
    *("train_macs", "train_macs_dense", "step_ms_median", "compile_s", "peak_bytes"),
    *("compilations", "device", "versions", "config"),
)
METRIC_KEYS = ("step", "steps", "phase", "loss", "accuracy", "bad_rewards")
CHANNEL_KEYS = ("step", "plays", "means", "radius")
LAYER_KEYS = (
    *("group", "width", "budget", "macs_full", "macs_compact", "params_full", "params_compact"),
    "chosen",
)
ROW_KEYS = (
    *("network", "batch", "variant", "keep", "select_every", "ms_median", "ms_min", "ms_max"),
    *("vs_narrow", "vs_dense", "temp_bytes", "compile_s"),
)
PEER_KEYS = (
    *("network", "batch", "framework", "versions", "threads", "rounds", "variant", "keep"),
    *("params", "ms_median", "ms_min", "ms_max", "vs_narrow", "vs_torch_dense", "layout"),
    *("layout_trial_ms", "prune_s"),
)


class Records(NamedTuple):
    """What a list of files and directories holds.

    Attributes:
      results: one `result.json` object per run.
      benchmarks: one object of `experiments.benchmark` per file.
    """

    results: tuple[dict[str, Any], ...]
    benchmarks: tuple[dict[str, Any], ...]


def read_json(path: Path) -> Any:
    """The content of one JSON file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not JSON.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: give the directory of a finished run, or finish this one by "
            f"starting experiments.train again with --workdir {path.parent}"
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is not JSON ({error}): it was cut short or edited; delete it and start the "
            "program that wrote it again, or restore it from version control"
        ) from error


def _require(value: Any, keys: Sequence[str], where: str) -> dict[str, Any]:
    """`value`, if it is an object with all of `keys`; `where` opens the error message."""
    if not isinstance(value, dict):
        raise ValueError(f"{where} holds {type(value).__name__}, not an object: is it this format?")
    missing = [key for key in keys if key not in value]
    if missing:
        raise ValueError(
            f"{where} has no {', '.join(missing)}: it was written by another version or by hand; "
            "write it again with this version"
        )
    return value


def _read_list(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The objects of a JSON file that holds a list of them."""
    rows = read_json(path)
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} must hold a list of at least one object: run the training again")
    return [_require(row, keys, f"{path}, entry {i}") for i, row in enumerate(rows)]


def read_lines(path: Path, keys: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines.

    Args:
      path: the file.
      keys: what every line must have.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a line that is not a JSON object with `keys`, by its number.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: {path.parent} is not the workdir of a run, or the run was "
            f"moved without it; start experiments.train with --workdir {path.parent}"
        )
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number} is not JSON ({error}): if it is the last one, the run was "
                "killed while writing, and goes on with the same --workdir, which repairs it; of "
                "a finished run delete the workdir and train again"
            ) from error
        rows.append(_require(value, keys, f"{path}, line {number}"))
    return rows


def read_result(path: Path) -> dict[str, Any]:
    """A run's `result.json`, with every key of the contract."""
    return _require(read_json(path), RESULT_KEYS, str(path))


def read_layers(path: Path) -> list[dict[str, Any]]:
    """A run's `layers.json`: one object per channel group, in network order."""
    return _read_list(path, LAYER_KEYS)


def _check_benchmark(value: dict[str, Any], path: Path) -> dict[str, Any]:
    _require(value, ("device", "versions", "rows"), str(path))
    for i, row in enumerate(value["rows"]):
        _require(row, ROW_KEYS, f"{path}, row {i}")
    for i, row in enumerate(value.get("peers", ())):
        _require(row, PEER_KEYS, f"{path}, peer {i}")
    return value


def _files(paths: Sequence[Path]) -> dict[Path, bool]:
    """Each JSON file once, in order -> whether it was named itself (not found in a directory)."""
    files: dict[Path, bool] = {}
    for path in paths:
        if path.is_dir():
            for found in sorted(path.rglob("*.json")):
                files.setdefault(found.resolve(), False)
        else:
            files[path.resolve()] = True
    return files


def gather(paths: Sequence[Path]) -> Records:
    """Every result and every benchmark in files and, recursively, in directories.

    A directory's other JSON files (`structure.json`, `layers.json`) are passed over; a file that
    is named must be a result or a benchmark.

    Args:
      paths: files or directories.

    Raises:
      FileNotFoundError: a path that does not exist.
      ValueError: a file that is not JSON, lacks a key, or is neither; or nothing found at all.
    """
    results, benchmarks = [], []
    for path, named in _files(paths).items():
        value = read_json(path)
        if isinstance(value, dict) and "rows" in value:
            benchmarks.append(_check_benchmark(value, path))
        elif named or path.name == "result.json" or _looks_like_result(value):
            results.append(_require(value, RESULT_KEYS, str(path)))
    if not results and not benchmarks:
        raise ValueError(
            f"no result and no benchmark in {', '.join(map(str, paths)) or 'an empty list'}: give "
            "result.json files, directories that hold them, or a file of experiments.benchmark"
        )
    return Records(tuple(results), tuple(benchmarks))


def _looks_like_result(value: Any) -> bool:
    return isinstance(value, dict) and {"method", "test_accuracy"} <= value.keys()
