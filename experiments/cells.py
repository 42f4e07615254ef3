"""Cells of a sweep: one run each, its config, its files, and whether it is done."""

import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments import checks, config, fields, records
from experiments.budgeting import allocation

SWEPT = ("network", "method", "keep", "seed")
"""Fields that the grid sets; they cannot be set for the whole sweep."""


class Cell(NamedTuple):
    """One run of a sweep.

    Attributes:
      network: name in `dce_jax.networks`.
      method: of the main job.
      keep: fraction of every group's channels; 1.0 for dense.
      seed: of the run.
      widths: that another run ended with, as the config's ``widths``; '' where the budget decides.
      whose: method of that run.
      label: what tells the run from others of the same cell with other settings.
    """

    network: str
    method: str
    keep: float
    seed: int
    widths: str = ""
    whose: str = "dce"
    label: str = ""

    @property
    def name(self) -> str:
        """The cell's name in files: ``vgg16-dce-keep0.5-seed0``."""
        keep = "" if self.method == "dense" else f"-keep{self.keep:g}"
        by = "" if self.whose == "dce" else f"-by-{self.whose}"
        learned = f"-learned{by}" if self.widths else ""
        label = f"-{self.label}" if self.label else ""
        return f"{self.network}-{self.method}{learned}{keep}{label}-seed{self.seed}"


def grid(
    networks: Sequence[str], methods: Sequence[str], keeps: Sequence[float], seeds: Sequence[int]
) -> list[Cell]:
    """Every cell once, all methods of a seed before the next seed; dense has one keep only.

    A sweep that is cut short thus leaves whole rows of paired seeds.
    """
    found: dict[Cell, None] = {}
    for network, seed, keep, method in product(networks, seeds, keeps, methods):
        found[Cell(network, method, 1.0 if method == "dense" else keep, seed)] = None
    return list(found)


def labelled(cells: Sequence[Cell], label: str) -> list[Cell]:
    """The same cells under names of their own.

    Raises:
      ValueError: a label that is no part of a file's name, or reads like another part of it.
    """
    if not re.fullmatch(r"[a-z0-9_.]+", label) or label.startswith(("seed", "keep", "learned")):
        raise ValueError(
            f"--label {label!r} stands in file names between keep and seed: a word of a-z, 0-9, "
            "_ and ., not one of seed..., keep... or learned..., such as rescaled"
        )
    return [cell._replace(label=label) for cell in cells]


def at_learned_widths(cells: Sequence[Cell], learned: Path, whose: str = "dce") -> list[Cell]:
    """The same cells at the widths that a method ended with, with their network, keep and seed.

    Args:
      cells: of methods that do not learn widths themselves.
      learned: directory of a sweep's results.
      whose: the method.

    Raises:
      ValueError: a method that has no use for given widths, or a result that is missing.
    """
    found = []
    for cell in cells:
        if cell.method not in ("scratch", "subset"):
            raise ValueError(
                f"--widths-of is for scratch and subset, not for {cell.method}: give --methods"
            )
        path = learned / f"{cell._replace(method=whose, label='').name}.json"
        if not path.exists():
            raise ValueError(f"no result {path} to take widths from: run its sweep first")
        widths = records.read_result(path)["widths"]
        words = ",".join(f"{group}={width}" for group, width in widths.items())
        found.append(cell._replace(widths=words, whose=whose))
    return found


def check_changes(changes: Sequence[str]) -> None:
    """Refuses entries for the whole sweep that are no ``FIELD=VALUE``, or that the grid sets.

    Raises:
      ValueError: naming the entry and the remedy.
    """
    for change in changes:
        field, equals, _ = change.partition("=")
        if not field or not equals:
            raise ValueError(f"--set {change!r} is not FIELD=VALUE, as in --set epochs=5")
        if field in SWEPT:
            raise ValueError(f"--set {change!r}: the grid sets {field}, use --{field}s")


def check_distinct(asked: Mapping[Cell, ConfigDict]) -> None:
    """Refuses cells that differ in a keep which their configs do not read.

    Raises:
      ValueError: naming two cells, what decides instead, and the remedy.
    """
    known: dict[str, Cell] = {}
    for cell, own in asked.items():
        decisive = next((field for field in ("macs", "widths") if own[field]), None)
        if decisive is None or cell.method == "dense":
            continue
        rest = {field: value for field, value in config.plain(own).items() if field != "keep"}
        first = known.setdefault(repr(rest), cell)
        if first != cell:
            raise ValueError(
                f"{first.name} and {cell.name} would be the same run twice: {decisive} is "
                f"{own[decisive]!r}, which decides the budget whatever keep is; give --keeps one "
                f"value, or leave {decisive} out"
            )


def words(cell: Cell, config_file: Path, changes: Sequence[str]) -> list[str]:
    """Arguments of `experiments.train` that make a cell.

    Args:
      cell: the run.
      config_file: what it starts from.
      changes: ``FIELD=VALUE`` entries that hold for the whole sweep.
    """
    own = [f"network={cell.network}", f"method={cell.method}", f"seed={cell.seed}"]
    if cell.method != "dense":
        own.append(f"keep={cell.keep!r}")
    if cell.widths:
        own += [f"widths={cell.widths}", "allocation=uniform"]
    return [f"--config={config_file}", *(f"--config.{change}" for change in [*changes, *own])]


def settings(arguments: Sequence[str]) -> ConfigDict:
    """The config that `experiments.train` would make of its arguments.

    Raises:
      OSError: no such config file.
      ValueError: an unknown field, a value of another type, or values that no run can have.
    """
    parsed, argv = flags.FlagValues(), ["sweep", *arguments]
    holder = config_flags.DEFINE_config_file("config", flag_values=parsed, sys_argv=argv)
    try:
        parsed(argv)
        found = holder.value
    except AttributeError as error:
        raise ValueError(f"no config field {config.field_message(error)}") from error
    except flags.Error as error:
        raise ValueError(str(error)) from error
    checks.check(found)
    return found


def done(path: Path, expected: ConfigDict) -> bool:
    """Whether a cell's result is stored, and by the config that is asked for.

    Fields that the method never reads may differ.

    Raises:
      ValueError: the file holds the result of another config (the difference is shown), or is
        damaged.
    """
    if not path.exists():
        return False
    stored = records.read_result(path)["config"]
    idle = fields.idle_fields(expected.method, allocation(expected))
    config.check_same(stored, expected, path, remedy="another --out or --label", ignoring=idle)
    return True
