"""What deciding costs: bandit, top-k and bookkeeping beside a training step of the narrow network.

    python -m experiments.overhead                          # ResNet-50, batch 32, 224x224 images
    python -m experiments.overhead --groups 50 --width 2048 --json overhead.json

One decision selects K of C channels in every group by the confidence bound, scales the groups'
rewards to [0, 1], adds them up and books them. It takes turns with the step of the network whose
groups it would decide on, at the same keep; their ratio is what deciding at every step adds.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from dce_jax import bandit, networks, saliency, scores
from dce_jax import budget as budgets
from dce_jax.bandit import BanditState
from dce_jax.budget import Budget
from dce_jax.types import Array, Rewards
from experiments import bench, machine, output, timing, variants
from experiments.arguments import status
from experiments.display import progress

_KEEP = 0.5


def decide(
    budget: Budget, state: BanditState, values: Rewards
) -> tuple[BanditState, dict[str, Array]]:
    """Everything that a step with R = 1 does besides training and copying.

    Args:
      budget: K per group.
      state: the bandit.
      values: group -> float32[K], unscaled rewards.

    Returns:
      The bandit after, and no metrics.
    """
    key = jax.random.fold_in(jax.random.key(0), state.selections)
    score = partial(scores.ucb, alpha=variants.ALPHA)
    selection, _ = bandit.select(key, state, budget=budget, score=score)
    held = {group: jnp.zeros(k.shape, jnp.float32) for group, k in selection.items()}
    scaled = saliency.to_unit(values)
    rewards = {group: total + scaled[group] for group, total in held.items()}
    state, _ = bandit.update(key, state, selection=selection, rewards=rewards)
    return state, {}


def decision(groups: int, width: int) -> timing.Contender:
    """`decide` for ``groups`` groups of ``width`` channels, half of them chosen, to be timed."""
    full = {f"group{i}": width for i in range(groups)}
    budget = budgets.from_fraction(full, _KEEP)
    draw = np.random.default_rng(0)
    values = {
        group: jnp.asarray(draw.random(k), jnp.float32) for group, k in budget.compact.items()
    }
    start = partial(bandit.init, budget)
    program = timing.compiled(partial(decide, budget), jax.eval_shape(start), values)
    return timing.Contender("decision", program.call, start, values, 1)


def rows(times_RC: Any) -> list[dict[str, Any]]:
    """The JSON's rows: the narrow network's step, then the decision.

    Args:
      times_RC: float64[rounds, 2], ms.
    """
    found = []
    for i, name in enumerate(("narrow step", "decision")):
        share = timing.ratio(times_RC[:, i], times_RC[:, 0])
        found.append(
            {
                "what": name,
                "ms_median": float(np.median(times_RC[:, i])),
                "ms_min": float(times_RC[:, i].min()),
                "ms_max": float(times_RC[:, i].max()),
                "vs_narrow": share.median,
                "vs_narrow_low": share.low,
                "vs_narrow_high": share.high,
            }
        )
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.overhead",
        description=__doc__,
        epilog="Leave the machine alone while it measures. Exit status: 0 done, 2 wrong input.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def add(name: str, default: Any, what: str) -> None:
        parser.add_argument(
            name, default=default, type=type(default), help=f"{what} (default: {default})"
        )

    add("--network", "resnet50", "of the narrow step")
    add("--batch", 32, "examples of its step")
    add("--image_size", 224, "images are N x N x 3")
    add("--groups", 195, "channel groups to decide on")
    add("--width", 512, "channels of each; half are chosen")
    add("--pairs", 30, "rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    for name in ("batch", "image_size", "groups", "pairs"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} {getattr(arguments, name)}: it must be at least 1")
    if arguments.width < 2:
        raise ValueError(f"--width {arguments.width}: half of at least 2 channels can be chosen")
    if arguments.json is not None:
        output.check_writable(arguments.json)


def _measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    shared = bench.prepare(
        networks.build(arguments.network, num_classes=10),
        batch=arguments.batch,
        image_size=arguments.image_size,
        learning_rate=0.05,
        dispatch=1,
    )
    with progress("overhead", arguments.pairs, facts="compiling") as display:
        (narrow,) = variants.build(shared, [variants.Key("narrow", _KEEP)])
        both = [narrow.parts[0].contender, decision(arguments.groups, arguments.width)]
        times_RC = timing.interleave(
            both,
            least=arguments.pairs,
            until=time.perf_counter(),
            report=lambda done, _: display.tell(done, "measuring"),
        )
    return rows(times_RC)


def _run(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    _check(arguments)
    found = _measure(arguments)
    device = machine.device()
    title = (
        f"{arguments.network}, batch {arguments.batch}, {arguments.image_size}x"
        f"{arguments.image_size}; {arguments.groups} groups of {arguments.width}; {device}"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for head in ("ms", "min .. max", "/ narrow step [95 %]"):
        table.add_column(head, justify="right")
    for row in found:
        share = [f"{100 * row[f'vs_narrow{end}']:.2f}" for end in ("", "_low", "_high")]
        table.add_row(
            row["what"],
            f"{row['ms_median']:.2f}",
            f"{row['ms_min']:.2f} .. {row['ms_max']:.2f}",
            f"{share[0]} % [{share[1]}, {share[2]}]",
        )
    Console().print(table)
    if arguments.json is not None:
        result = {
            **machine.facts(),
            "command": shlex.join(["python", "-m", "experiments.overhead", *words]),
            "settings": {k: v for k, v in vars(arguments).items() if k != "json"},
            "overhead": found,
        }
        output.write_json(arguments.json, result)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    return status(lambda: _run(_parser().parse_args(words), words))


if __name__ == "__main__":
    sys.exit(main())
