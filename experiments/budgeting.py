"""Budgets that a config asks for, and what networks cost at them."""

from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from dce_jax import budget as budgets
from dce_jax import channels as maps
from dce_jax import cost, forward, hardware
from dce_jax.budget import Budget
from dce_jax.types import Widths
from experiments import pruners
from experiments.config import parse_groups, parse_widths
from experiments.fields import SELECTING


def make_budget(config: ConfigDict, module: nn.Module, example: Any) -> Budget:
    """The budget that a config asks for: explicit widths, a MACs target, or a fraction.

    Raises:
      ValueError: see `dce_jax.budget`.
    """
    widths = maps.module_widths(module)
    if config.method == "dense":
        return budgets.full(widths)
    if config.widths:
        from_text = parse_widths(config.widths)
        return budgets.from_widths(widths, from_text, allow_missing=True)
    allowed = rounding(config, widths, config.dtype)
    if config.macs is not None:
        return budgets.from_macs(widths, config.macs, macs_of(module, example), **allowed)
    return budgets.from_fraction(widths, config.keep, **allowed)


def rounding(config: Any, widths: Widths, dtype: str) -> dict[str, Any]:
    """What limits the widths of a budget: the arguments that all of `dce_jax.budget` take.

    Args:
      config: ``multiple_of``, 0 for what this device wants, ``min_channels`` and ``whole``.
      widths: group -> C.
      dtype: in which the network computes.

    Raises:
      ValueError: the device wants more channels than any group has.
    """
    multiple: int = config.multiple_of
    narrow: tuple[str, ...] = ()
    if multiple == 0:
        multiple, narrow = hardware.rounding(widths, this_device(), dtype)
    whole = (*narrow, *parse_groups(config.whole))
    return {"multiple_of": multiple, "min_channels": config.min_channels, "whole": whole}


def warnings(budget: Budget, dtype: str) -> tuple[str, ...]:
    """Widths of a budget that do not pay on this device, in words."""
    return hardware.warnings(budget, this_device(), dtype)


def this_device() -> jax.Device:
    """What networks run on here; several devices of a run are alike."""
    return jax.devices()[0]


def exploring(config: ConfigDict, target: Budget) -> Budget:
    """The budget that executes until the commit; all channels where a run prunes a dense network.

    Raises:
      ValueError: see `dce_jax.budget`; or groups of which all channels would execute, so that
        the bandit could not tell them apart, and nothing else scores them.
    """
    if pruners.prunes(config):
        return budgets.full(target.full)
    allowed = rounding(config, target.full, config.dtype)
    if config.explore_keep is not None:
        found = budgets.from_fraction(target.full, config.explore_keep, **allowed)
    else:
        found = target if config.grow == 1.0 else _seedling(config, target)
    if config.method in SELECTING and not config.scoring:
        _check_seen(config, target, found, allowed["whole"])
    return found


def _check_seen(config: ConfigDict, target: Budget, found: Budget, whole: Collection[str]) -> None:
    """Refuses groups that lose channels by the bandit's means, and are not played for."""
    losing = target.contested
    if config.allocation == "global":
        losing = tuple(g for g, width in target.full.items() if width > 1 and g not in whole)
    unseen = [group for group in losing if group not in found.contested]
    if unseen:
        field = next(f for f in ("explore_keep", "macs", "keep") if config[f] is not None)
        raise ValueError(
            f"{field} is {config[field]}: all channels of groups {unseen} execute until the "
            "commit, where the bandit has nothing to tell them apart by; lower it, give scoring, "
            "say 20 batches, or hold those groups (--config.whole)"
        )


def _seedling(config: ConfigDict, target: Budget) -> Budget:
    """A share of the channels that the target keeps of every group."""
    allowed = rounding(config, target.compact, config.dtype)
    small = budgets.from_fraction(target.compact, config.grow, **allowed)
    return budgets.from_widths(target.full, small.compact)


def ratio(cost_of: Any, budget: Budget, target: Budget) -> float:
    """What a step costs while a run explores, over what it costs later."""
    return cost_of(budget.compact) / cost_of(target.compact) if budget != target else 1.0


def allocation(config: ConfigDict) -> str:
    """How a config's budget was made: explicit, uniform, or global (learned)."""
    if config.method == "dense":
        return "uniform"
    if pruners.prunes(config):
        return pruners.of(config).allocation
    return "explicit" if config.widths else config.allocation


def macs_of(module: nn.Module, example: Any) -> Any:
    """A function from widths to the MACs of one forward pass of one example."""

    def count(widths: Mapping[str, int]) -> int:
        return forward_macs(maps.with_widths(module, widths), example)

    return count


def forward_macs(module: nn.Module, example: Any) -> int:
    """MACs of one forward pass of one example."""
    one = jax.ShapeDtypeStruct((1, *example.shape[1:]), example.dtype)
    variables = nn.unbox(forward.shapes(module, one))
    return cost.macs(lambda v, x: module.apply(v, x), variables, one)


def params_of(module: nn.Module, example: Any) -> Any:
    """A function from widths to the number of parameters."""

    def count(widths: Mapping[str, int]) -> int:
        narrow = maps.with_widths(module, widths)
        return cost.parameters(nn.unbox(forward.shapes(narrow, example))["params"])

    return count
