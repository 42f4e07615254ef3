"""Learned layer latents on the disk: what a search found, for other targets and other runs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dce_jax.channels import ChannelMap
from dce_jax.pruning import Latents, latents

LATENTS = "latents.json"
_KEYS = ("network", "widths", "criterion", "scale", "shift")


def given(config: ConfigDict, criterion: str, channels: ChannelMap) -> Latents | None:
    """The latents that a config names, checked against its network; None where it names none.

    Args:
      config: of the run.
      criterion: signal that they are to compensate.
      channels: map of the network at full width.

    Raises:
      ValueError: no such file, another kind of file, or latents of another network or criterion.
    """
    if not config.latents:
        return None
    path = Path(config.latents)
    stored = _stored(path)
    if stored["network"] != config.network or stored["widths"] != channels.full:
        raise ValueError(
            f"latents {path} were learned on {stored['network']} with channels "
            f"{stored['widths']}, this run is of {config.network} with {channels.full}: learn "
            "latents on this network, or choose that one and its width"
        )
    if stored["criterion"] != criterion:
        raise ValueError(
            f"latents {path} compensate {stored['criterion']!r}, but this run ranks by "
            f"{criterion!r}: their shifts are in that signal's unit, so rank by it (criterion of "
            "method compensated, signal of dce)"
        )
    return read(path, channels.full)


def read(path: Path, groups: Mapping[str, int]) -> Latents:
    """Latents of a file.

    Args:
      path: of the file.
      groups: every group that they must be of.

    Raises:
      ValueError: no such file, another kind of file, or other groups.
    """
    stored = _stored(path)
    try:
        found = Latents(
            *({g: float(v) for g, v in stored[name].items()} for name in Latents._fields)
        )
        latents.check(found, groups)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"latents {path} do not fit: {error}") from error
    return found


def _stored(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"latents {path} cannot be read ({error}): give the {LATENTS} that a run of method "
            "compensated wrote into its workdir"
        ) from error
    missing = [key for key in _KEYS if not isinstance(stored, dict) or key not in stored]
    if missing:
        raise ValueError(
            f"latents {path} have no {', '.join(missing)}: give the {LATENTS} that a run of "
            "method compensated wrote into its workdir"
        )
    return dict(stored)
