"""What a measurement was made on, as results store it."""

import contextlib
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from experiments import huge_pages

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def facts(count: int = 1) -> dict[str, Any]:
    """What every result says of where it was made.

    Args:
      count: devices of the run.

    Returns:
      ``device`` and ``processor``, ``versions`` (package -> version), and ``tunables``, which tell
      whether the memory of a CPU was asked for in huge pages.
    """
    return {
        "device": device(count),
        "processor": processor(),
        "versions": versions(),
        "tunables": huge_pages.tunables(),
    }


def device(count: int = 1) -> str:
    """What JAX computes on: ``"cpu (2 cores)"``, ``"8 x NVIDIA H100 80GB HBM3"``.

    Args:
      count: devices of the run.
    """
    return _one_device() if count == 1 else f"{count} x {_one_device()}"


def _one_device() -> str:
    found = jax.devices()[0]
    if found.platform != "cpu":
        return found.device_kind
    return f"cpu ({cores()} cores)"


def processor() -> str:
    """The processor's name, as far as the system tells it: rounding differs between models."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """CPU cores that this process may use, not all that exist; macOS cannot tell them apart."""
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1


def show_cpu_devices(count: int) -> None:
    """Makes a CPU show so many devices or more, unless its devices are known already."""
    with contextlib.suppress(RuntimeError):
        jax.config.update(
            "jax_num_cpu_devices", max(count, jax.config.values["jax_num_cpu_devices"])
        )


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Package -> version, Python first."""
    found = {name: metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **found}
