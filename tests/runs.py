"""Tiny runs of the main job: two layers on random images, compiled cheaply, compared exactly."""

import functools
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax.core import FrozenDict
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from dce_jax import networks
from dce_jax.networks import VGG
from experiments import config, data, setup, train, watch

TIMES = (
    *("ms_per_step", "train_s", "compile_s", "step_ms_median", "peak_bytes", "host_ms_median"),
    *("data_wait_ms_median", "between_ms_median", "profiled", *watch.KEYS),
)
"""What may differ between two runs of one config."""

FULL, HALF = {"conv0": 4, "conv1": 6}, {"conv0": 2, "conv1": 3}


def tiny(*, num_classes, dtype=np.float32, width=1.0):
    """conv 4, pool, conv 6, pool, head: for 4x4 images."""
    del width
    return VGG(depths=(1, 1), widths=FrozenDict(FULL), num_classes=num_classes, dtype=dtype)


def write_images(path: Path, side: int = 4, **changes) -> Path:
    """64 + 20 gray images, 4x4 or larger, of 3 classes that can be told apart, as an .npz file."""
    draw = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 64), ("test", 20)):
        labels = np.arange(count) % 3
        noise = draw.integers(0, 160, (count, side, side, 1))
        noise[np.arange(count), labels] += 60
        arrays |= {f"{part}_images": noise.astype(np.uint8), f"{part}_labels": labels}
    np.savez(path, **(arrays | changes))
    return path


def settings(dataset: Path | str, **changes) -> ConfigDict:
    """A config of 12 steps: one selection, then committed after step 5."""
    made = config.defaults()
    made.update(
        name="tiny",
        network="tiny",
        dataset=str(dataset),
        steps=12,
        batch_size=8,
        select_every=5,
        commit=0.5,
        block=5,
        checkpoint_blocks=1,
        recalibration_examples=16,
    )
    made.update(changes)
    return made


@contextmanager
def cheap(cache: Path) -> Iterator[None]:
    """Knows the tiny network, compiles without optimising, and no program twice."""
    values = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(cache),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {
        "jax_disable_most_optimizations": False,
        **{name: getattr(jax.config, name) for name in list(values)[1:]},
    }
    networks.NETWORKS["tiny"] = tiny
    try:
        _set(values)
        yield
    finally:
        _set(before)
        del networks.NETWORKS["tiny"]


@contextmanager
def lab(root: Path) -> Iterator[SimpleNamespace]:
    """A place for runs: `run(**changes)` trains a config once and gives (result, workdir).

    Labs beside each other share what they compile: the directory is part of a program's key.
    """
    known, count = {}, itertools.count()
    images = write_images(root / "images.npz")

    def run(**changes):
        key = tuple(sorted(changes.items()))
        if key not in known:
            workdir = root / f"{next(count)}"
            known[key] = train.train(settings(images, **changes), workdir), workdir
        return known[key]

    with pytest.MonkeyPatch.context() as patch, cheap(root.parent / "programs"):
        # A map is proved anew for every run, but these share a network.
        patch.setattr(setup.probe, "channel_map", functools.cache(setup.probe.channel_map))
        patch.setattr(train.report, "write", lambda workdir: (workdir / train.PAGE).write_text(""))
        yield SimpleNamespace(run=run, images=images)


def built(lab: SimpleNamespace, **changes) -> setup.Run:
    """A run of the lab's images that has not begun."""
    config = settings(lab.images, **changes)
    return setup.build(config, data.load(config.dataset, data_dir=None))


def flags(patch: pytest.MonkeyPatch, settings: ConfigDict, workdir: Path | None) -> None:
    """What the command line of `experiments.train` would say; one process."""
    values = {"_CONFIG": settings, "_WORKDIR": workdir and str(workdir)}
    values |= dict.fromkeys(("_COORDINATOR", "_PROCESSES", "_PROCESS", "_PROFILE"))
    for name, value in values.items():
        patch.setattr(train, name, SimpleNamespace(value=value))


def chosen(workdir: Path) -> dict[str, list[int]]:
    """Channels of the full network that a run's compact model kept."""
    return json.loads((workdir / "compact" / "structure.json").read_text())["channels"]


def _set(values: dict) -> None:
    for name, value in values.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def lines(path: Path) -> list[dict]:
    """The objects of a file of JSON lines."""
    return [json.loads(text) for text in path.read_text().splitlines()]


def timeless(value):
    """A JSON value without its times and memory."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in TIMES}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def arrays_of(workdir: Path) -> dict[str, tuple]:
    """Every array of the last checkpoint and of both compact models, with shape and type."""
    from safetensors.numpy import load_file

    found = checkpointed(workdir)
    for name in ("compact", "compact_raw"):
        for leaf, value in load_file(workdir / name / "weights.safetensors").items():
            found[f"{name}/{leaf}"] = (value.shape, value.dtype, value.tobytes())
    return found


def checkpointed(workdir: Path) -> dict[str, tuple]:
    """Every array of the last checkpoint, with shape and type."""
    from orbax.checkpoint import v1 as ocp

    found = {}
    last = max(int(p.stem) for p in (workdir / "checkpoints").glob("*.json"))
    for leaf, value in ocp.load((workdir / "checkpoints" / str(last)).absolute()).items():
        value = np.asarray(value)
        found[f"checkpoint {last} {leaf}"] = (value.shape, value.dtype, value.tobytes())
    return found


def same_end(one: Path, other: Path) -> None:
    """Asserts that two workdirs ended identically, times and memory aside."""
    first, second = arrays_of(one), arrays_of(other)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    for name in ("metrics.jsonl", "channels.jsonl"):
        if (one / name).exists() or (other / name).exists():
            assert timeless(lines(one / name)) == timeless(lines(other / name)), name
    for name in ("result.json", "layers.json", "compact/structure.json"):
        texts = [json.loads((workdir / name).read_text()) for workdir in (one, other)]
        assert timeless(texts[0]) == timeless(texts[1]), name


def macs(widths: dict[str, int]) -> int:
    """Forward MACs of one image in the tiny network."""
    a, b = widths["conv0"], widths["conv1"]
    return 16 * 9 * a + 4 * 9 * a * b + 3 * b
