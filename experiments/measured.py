"""What a training step takes at a budget and at widths around it, timed in turns.

The figures behind ``python -m experiments.describe --measure``: which neighbour of a budget is
faster than it, and which is not although it has fewer channels.
"""

import time
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import numpy.typing as npt
from rich.table import Table

from dce_jax import budget as budgets
from dce_jax import channels as maps
from dce_jax import forward
from dce_jax.budget import Budget
from experiments import bench, display, machine, timing, variants
from experiments.bench import Bench
from experiments.budgeting import macs_of
from experiments.summary import NONE, si

_FACTORS = (0.75, 0.875, 1.125, 1.25)
_MULTIPLES = (8, 16, 128)
_DISPATCH = 20  # steps in one `lax.scan`, where this is not a CPU
_LEARNING_RATE = 1e-3  # it does not change what a step costs

Candidates = list[tuple[str, Budget]]


def candidates(budget: Budget) -> Candidates:
    """The network at full width, the budget, and uniform neighbours of it; each budget once.

    Args:
      budget: K per group.

    Returns:
      (name, budget); K times a factor, or K raised to multiples that computers like.
    """
    full, compact = budget.full, budget.compact
    found = [("full", budgets.full(full)), ("budget", budget)]
    for factor in _FACTORS:
        wanted = {group: min(factor * k, full[group]) for group, k in compact.items()}
        found.append((f"{factor:g} x budget", budgets.from_wishes(full, wanted)))
    for multiple in _MULTIPLES:
        raised = {g: min(-(-k // multiple) * multiple, full[g]) for g, k in compact.items()}
        found.append((f"multiples of {multiple}", budgets.from_widths(full, raised)))
    names: dict[Budget, str] = {}
    for name, one in found:
        names.setdefault(one, name)
    return [(name, one) for one, name in names.items()]


def measure(
    module: nn.Module, budget: Budget, image: Any, *, classes: int, batch: int, seconds: float
) -> dict[str, Any]:
    """Times an ordinary training step at a budget and around it.

    Args:
      module: the network at full width.
      budget: K per group.
      image: float32[1, H, W, D] or its `jax.ShapeDtypeStruct`, H = W.
      classes: of the network.
      batch: examples per step.
      seconds: after which no further round is begun; compilations count, five rounds are made.

    Returns:
      What ``measured`` is in the JSON file: device, versions, rounds and rows.
    """
    begun = time.perf_counter()
    dispatch = 1 if jax.default_backend() == "cpu" else _DISPATCH
    shared = bench.prepare(
        module,
        batch=batch,
        image_size=image.shape[1],
        depth=image.shape[3],
        classes=classes,
        learning_rate=_LEARNING_RATE,
        dispatch=dispatch,
    )
    count = macs_of(module, image)
    found = sorted(candidates(budget), key=lambda one: -count(one[1].compact))
    with display.progress("measure", len(found) + 1, facts="compiling") as shown:
        contenders = []
        for done, (name, one) in enumerate(found):
            contenders.append(_contender(shared, name, one))
            shown.tell(done + 1, f"compiled {name}")

        def report(rounds: int, expected: int) -> None:
            shown.bar.update(shown.task, total=len(found) + expected)
            shown.tell(len(found) + rounds, f"round {rounds} of {expected}")

        times_RV = timing.interleave(
            contenders, least=5, until=begun + seconds, report=report, shortest=0.1
        )
    return {
        **machine.facts(),
        "batch": batch,
        "rounds": len(times_RV),
        "seconds": time.perf_counter() - begun,
        "rows": rows(found, [count(one.compact) for _, one in found], times_RV),
    }


def rows(
    found: Candidates, macs: Sequence[int], times_RV: npt.NDArray[np.float64]
) -> list[dict[str, Any]]:
    """What the JSON file says of each candidate.

    Args:
      found: candidates, the full network first.
      macs: of each.
      times_RV: float64[rounds, candidates], ms per step.
    """
    beaten = timing.overtaken(times_RV, macs)
    made = []
    for i, (name, one) in enumerate(found):
        vs_full = timing.ratio(times_RV[:, i], times_RV[:, 0])
        no_gain = beaten[i]
        made.append(
            {
                "name": name,
                "widths": one.compact,
                "macs": macs[i],
                "ms_median": float(np.median(times_RV[:, i])),
                "ms_min": float(times_RV[:, i].min()),
                "ms_max": float(times_RV[:, i].max()),
                "vs_full": list(vs_full),
                "ms_per_mac_vs_full": vs_full.median * macs[0] / macs[i],
                "not_faster_than": None if no_gain is None else found[no_gain[0]][0],
                "ratio": None if no_gain is None else list(no_gain[1]),
            }
        )
    return made


def table(measured: dict[str, Any], *, title: str) -> Table:
    """The rows for a terminal; a mark where fewer MACs are not faster."""
    shown = Table(title=title, title_justify="left", caption=measured["device"])
    shown.add_column("widths")
    for head in ("MACs", "ms per step", "/ full [95 %]", "ms / MAC"):
        shown.add_column(head, justify="right")
    shown.add_column("not measurably faster than")
    for row in measured["rows"]:
        mark = NONE
        if row["not_faster_than"] is not None:
            mark = "{} ({:.2f} [{:.2f}, {:.2f}])".format(row["not_faster_than"], *row["ratio"])
        shown.add_row(
            row["name"],
            si(row["macs"]),
            f"{row['ms_median']:.1f}",
            "{:.2f} [{:.2f}, {:.2f}]".format(*row["vs_full"]),
            f"{row['ms_per_mac_vs_full']:.2f}",
            mark,
        )
    return shown


def _contender(shared: Bench, name: str, budget: Budget) -> timing.Contender:
    thin = maps.with_widths(shared.module, budget.compact)
    loss = forward.classification_loss(thin)
    return variants.ordinary(shared, name, thin, loss, shared.data)[1]
