"""Checkpoints through Orbax, with a checksum: a damaged one is passed over for the one before.

`begin` copies a state to the host and leaves the rest to a thread, so that the loop may go on and
donate the buffers; `save` stays until everything is written.
"""

import copy
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from orbax.checkpoint import v1 as ocp

from dce_jax.types import PyTree
from experiments import background, journal, processes
from experiments import placement as placing
from experiments.background import Background

KEPT = 3
"""Checkpoints that stay; more than one, because the last may be damaged."""


def save(directory: Path, step: int, state: PyTree, meta: dict[str, Any]) -> None:
    """Writes checkpoint ``step``; it counts only once its JSON file, written last, is there.

    Whole arrays are written, by the first process, so that a run may go on with other devices and
    processes. Every process must call.

    Args:
      directory: of all checkpoints; made if missing.
      step: steps taken.
      state: any pytree of arrays; PRNG keys are stored as their data.
      meta: plain data stored beside it.

    Raises:
      OSError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    _save(directory, step, _leaves(state), meta)


def begin(
    writer: Background, directory: Path, step: int, state: PyTree, meta: dict[str, Any]
) -> None:
    """As `save`, but the writing is left to a thread: only copying to the host is waited for.

    Args:
      writer: the thread; what it wrote before is waited for, so that the host holds one copy.
      directory: see `save`.
      step: see `save`.
      state: see `save`; its buffers may be donated as soon as this returns.
      meta: see `save`; may change as soon as this returns.

    Raises:
      OSError: see `save`; also of the checkpoint before. This one's comes from `background.look`
        or `background.settle`.
    """
    background.settle(writer)
    work = partial(_save, directory, step, _leaves(state), copy.deepcopy(meta))
    if jax.process_count() > 1:
        # Orbax's processes agree through their devices, which the steps need in the same order.
        work()
    else:
        background.begin(writer, work)


def _save(
    directory: Path, step: int, leaves: dict[str, npt.NDArray[Any]], meta: dict[str, Any]
) -> None:
    target = directory / str(step)
    if processes.first():
        directory.mkdir(parents=True, exist_ok=True)
        _record(directory, step).unlink(missing_ok=True)
        shutil.rmtree(target, ignore_errors=True)
    _write(target, leaves)  # Orbax makes the others wait for the first
    if not processes.first():
        return
    record = {"step": step, "checksum": _checksum(leaves), **meta}
    journal.write(_record(directory, step), record)
    for old in steps(directory)[:-KEPT]:
        _record(directory, old).unlink()
        shutil.rmtree(directory / str(old), ignore_errors=True)


def restore(
    directory: Path, template: Callable[[dict[str, Any]], PyTree], say: Callable[[str], None]
) -> tuple[PyTree, dict[str, Any]] | None:
    """The newest checkpoint that is whole.

    Args:
      directory: of all checkpoints.
      template: meta -> pytree of `jax.ShapeDtypeStruct` like the state that was saved.
      say: told about every damaged checkpoint that is passed over.

    Returns:
      State and meta, or None where there is no checkpoint at all.

    Raises:
      ValueError: there are checkpoints, but none is whole.
    """
    found = steps(directory)
    for step in reversed(found):
        try:
            meta = json.loads(_record(directory, step).read_text())
            return _load(directory / str(step), template(meta), meta["checksum"]), meta
        except Exception as error:
            # Whatever a damaged file makes Orbax raise, the one before may still be whole.
            reason = str(error).strip().split("\n")[0][:200]
            say(f"checkpoint {step} is damaged ({reason}): falling back to the one before")
    if found:
        raise ValueError(
            f"no checkpoint in {directory} is whole (tried steps {found}): remove the workdir, or "
            "choose another, to start again"
        )
    return None


def steps(directory: Path) -> list[int]:
    """Steps of all checkpoints that were written to the end, in order."""
    return sorted(int(p.stem) for p in directory.glob("*.json") if p.stem.isdigit())


def fingerprint(state: PyTree) -> int:
    """A checksum of a state's names and bits; every process must ask, where several hold it."""
    return _checksum(_leaves(state))


def _write(target: Path, leaves: dict[str, npt.NDArray[Any]]) -> None:
    try:
        ocp.save(target.absolute(), leaves)
    except ValueError as error:
        # TensorStore hides what the operating system refused in a ValueError's text.
        refused = re.search(r"os_error_code='(\d+)'", str(error))
        if refused is None:
            raise
        code = int(refused[1])
        raise OSError(code, os.strerror(code), str(target)) from error


def _record(directory: Path, step: int) -> Path:
    return directory / f"{step}.json"


def _leaves(state: PyTree) -> dict[str, npt.NDArray[Any]]:
    # A flat dict of host arrays: what Orbax stores does not depend on anybody's classes.
    pairs = [(p, _data(leaf)) for p, leaf in jax.tree_util.tree_leaves_with_path(state)]
    for _, leaf in pairs:
        if isinstance(leaf, jax.Array) and leaf.is_fully_addressable:
            leaf.copy_to_host_async()  # all are on their way before the first is waited for
    return {jax.tree_util.keystr(path): _copied(leaf) for path, leaf in pairs}


def _copied(leaf: Any) -> npt.NDArray[Any]:
    """An array on the host that no step writes into: a CPU's arrays are shown, not copied."""
    found = placing.host(leaf)
    return np.array(found) if jax.default_backend() == "cpu" else found


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _data(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _load(path: Path, template: PyTree, checksum: int) -> PyTree:
    pairs, structure = jax.tree_util.tree_flatten_with_path(template)
    stored = ocp.load(path.absolute())
    leaves = {jax.tree_util.keystr(where): None for where, _ in pairs}
    if stored.keys() != leaves.keys():
        raise ValueError("it holds other leaves than this run's state")
    stored = {name: np.asarray(stored[name]) for name in leaves}
    if _checksum(stored) != checksum:
        raise ValueError("its checksum does not match")
    return jax.tree.unflatten(
        structure,
        [_like(stored[jax.tree_util.keystr(where)], leaf) for where, leaf in pairs],
    )


def _like(value: npt.NDArray[Any], leaf: Any) -> Any:
    if _is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(value))
    if value.shape != leaf.shape or value.dtype != leaf.dtype:
        raise ValueError(f"a leaf has {value.dtype}{value.shape}, not {leaf.dtype}{leaf.shape}")
    return jnp.asarray(value)


def _checksum(leaves: dict[str, npt.NDArray[Any]]) -> int:
    total = 0
    for name in sorted(leaves):
        total = zlib.crc32(name.encode(), total)
        flat = np.ascontiguousarray(leaves[name]).reshape(-1).view(np.uint8)
        total = zlib.crc32(flat.data, total)
    return total
