"""What a budget would cost, before anything is paid: nothing is trained, no weight is allocated.

python -m experiments.describe --network vgg16 --dataset cifar10 --keep 0.5
python -m experiments.describe --network vgg16 --dataset cifar10 --macs 0.3 --json budget.json
"""

import argparse
import difflib
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from dce_jax import budget as budgets
from dce_jax import channels as maps
from dce_jax import cost, forward, networks, training
from dce_jax.budget import Budget
from dce_jax.channels import ChannelMap
from dce_jax.types import Widths
from experiments import bench, footprint, measured, output
from experiments.arguments import status
from experiments.budgeting import forward_macs, macs_of, rounding, warnings
from experiments.footprint import mib
from experiments.summary import NONE, si
from experiments.timing import compiled

DATASETS: dict[str, tuple[int, int, int, int]] = {
    "digits": (8, 8, 1, 10),
    "mnist": (32, 32, 1, 10),  # 28x28, padded as the readers do it
    "fashion_mnist": (32, 32, 1, 10),
    "cifar10": (32, 32, 3, 10),
    "cifar100": (32, 32, 3, 100),
    "svhn_cropped": (32, 32, 3, 10),
    "imagenet2012": (224, 224, 3, 1000),  # as its recipe cuts the images
}
"""Data set -> (H, W, D, classes), so that no data is needed."""

_DTYPE = "float32"
_EPILOG = """\
Training memory is XLA's account of one compiled step of SGD with momentum: arguments + outputs +
temporaries - aliased; "kept" is what the backward pass finds before XLA decides what to compute
again. "compact" is the narrow network: what remains after the commit. While
channels are still being selected, the full parameters and moments are held besides.

With --measure, "ms / MAC" is relative to the full network's, and a candidate is "not measurably
faster than" the costliest other that it does not beat: the interval of their paired ratio holds 1.

Exit status: 0 done, 2 wrong input.
"""


def image_shape(dataset: str) -> tuple[int, int, int, int]:
    """(H, W, D, classes) of a data set that this module knows.

    Raises:
      ValueError: unknown name, with the nearest known one.
    """
    if dataset not in DATASETS:
        near = difflib.get_close_matches(dataset, DATASETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(
            f"unknown data set {dataset!r}{hint} One of {', '.join(DATASETS)}; for images of your "
            "own name a set whose images are as large"
        )
    return DATASETS[dataset]


def train_bytes(
    module: nn.Module, widths: Widths, image: jax.ShapeDtypeStruct, *, batch: int
) -> int | None:
    """Peak memory of an ordinary training step at given widths; compiled, not run.

    Args:
      module: the network.
      widths: group -> channels.
      image: float32[1, H, W, D].
      batch: examples per step.

    Returns:
      Bytes, or None where XLA keeps no account.
    """
    narrow = maps.with_widths(module, widths)
    tx = bench.optimizer(0.1)
    loop = jax.eval_shape(partial(bench.start, narrow, tx), jax.random.key(0), image)
    loss = forward.classification_loss(narrow)
    plain = partial(training.plain, tx, loss, training.whole_batch)
    memory = compiled(plain, loop, _batch(image, batch)).memory
    return None if memory is None else cost.peak_bytes(memory)


def _batch(image: Any, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        "image": jax.ShapeDtypeStruct((batch, *image.shape[1:]), image.dtype),
        "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
    }


def describe(
    module: nn.Module, channels: ChannelMap, budget: Budget, image: Any, *, batch: int
) -> dict[str, Any]:
    """The object that ``--json`` writes.

    Args:
      module: the network at full width.
      channels: its channel map.
      budget: K per group.
      image: float32[1, H, W, D] or its `jax.ShapeDtypeStruct`.
      batch: examples per training step.

    Raises:
      ValueError: the network's shapes at the budget are not what the map foretells.
    """
    found: dict[str, Any] = {
        "groups": {
            group: {"width": width, "budget": chosen, "leaves": maps.places(channels, group)}
            for group, width, chosen in budget.entries
        }
    }
    for name, widths in (("full", budget.full), ("compact", budget.compact)):
        narrow = maps.with_widths(module, widths)
        shapes = nn.unbox(forward.shapes(narrow, image))
        maps.check_shapes(channels, widths, shapes)
        found[f"params_{name}"] = cost.parameters(shapes["params"])
        found[f"macs_{name}"] = forward_macs(narrow, image)
        found[f"kept_bytes_{name}"] = footprint.kept(narrow, shapes, _batch(image, batch))
        found[f"train_bytes_{name}"] = train_bytes(module, widths, image, batch=batch)
    return found


def group_table(found: dict[str, Any]) -> Table:
    """Channel groups with widths, budgets, and every leaf axis that is cut with them."""
    table = Table(title="channel groups", title_justify="left")
    table.add_column("group", style="bold")
    for head in ("width", "budget"):
        table.add_column(head, justify="right")
    table.add_column("leaf")
    for head in ("axis", "offset"):
        table.add_column(head, justify="right")
    for group, facts in found["groups"].items():
        named = (group, str(facts["width"]), str(facts["budget"]))
        for place in facts["leaves"]:
            table.add_row(*named, place["path"], str(place["axis"]), str(place["offset"]))
            named = ("", "", "")
        table.add_section()
    return table


def cost_table(found: dict[str, Any], *, title: str) -> Table:
    """Parameters, MACs and training memory, full and compact."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for head in ("full", "compact", "compact / full"):
        table.add_column(head, justify="right")
    for name, key, show in (
        ("parameters", "params", si),
        ("MACs, forward, one example", "macs", si),
        ("kept for the backward pass", "kept_bytes", mib),
        ("memory of a training step", "train_bytes", mib),
    ):
        full, compact = found[f"{key}_full"], found[f"{key}_compact"]
        if full is None or compact is None:
            table.add_row(name, NONE, NONE, NONE)
        else:
            table.add_row(name, show(full), show(compact), f"{compact / full:.3f}")
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.describe",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--network", required=True, metavar="NAME", help=f"one of {', '.join(networks.NETWORKS)}")
    add("--dataset", required=True, metavar="NAME", help=f"one of {', '.join(DATASETS)}")
    either = parser.add_mutually_exclusive_group().add_argument
    either("--keep", type=float, metavar="X", help="share of each group's channels (default: 0.5)")
    either("--macs", type=float, metavar="X", help="share of the dense MACs, met from below")
    multiple = "of every budget (default: 1); 0: what this device wants"
    add("--multiple_of", type=int, default=1, metavar="N", help=multiple)
    add("--min_channels", type=int, default=1, metavar="N", help="no group gets fewer")
    add("--whole", default="", metavar="G,H", help="groups held at full width")
    add("--batch", type=int, default=64, metavar="N", help="of a training step (default: 64)")
    seconds = "time training steps at the budget and around it for about so long (default: 60)"
    add("--measure", type=float, nargs="?", const=60.0, metavar="SECONDS", help=seconds)
    add("--json", type=Path, metavar="FILE", help="write the figures here")
    return parser


def _budget(arguments: argparse.Namespace, channels: ChannelMap, macs_of: Any) -> Budget:
    allowed = rounding(arguments, channels.full, _DTYPE)
    if arguments.macs is not None:
        return budgets.from_macs(channels.full, arguments.macs, macs_of, **allowed)
    keep = 0.5 if arguments.keep is None else arguments.keep
    return budgets.from_fraction(channels.full, keep, **allowed)


def _run(arguments: argparse.Namespace, console: Console) -> None:
    if arguments.batch < 1:
        raise ValueError(f"--batch {arguments.batch}: a training step needs at least 1 example")
    if arguments.measure is not None and not arguments.measure >= 0:
        raise ValueError(f"--measure {arguments.measure}: seconds, at least 0")
    if arguments.json is not None:
        output.check_writable(arguments.json)
    height, width, depth, classes = image_shape(arguments.dataset)
    module = networks.build(arguments.network, num_classes=classes)
    image = jax.ShapeDtypeStruct((1, height, width, depth), jnp.float32)
    channels = maps.build(module, forward.shapes(module, image))
    budget = _budget(arguments, channels, macs_of(module, image))
    with console.status("compiling both training steps"):
        found = describe(module, channels, budget, image, batch=arguments.batch)
    if arguments.measure is not None:
        found["measured"] = measured.measure(
            module, budget, image, classes=classes, batch=arguments.batch, seconds=arguments.measure
        )
    console.print(group_table(found))
    title = f"{arguments.network} on {arguments.dataset} ({height}x{width}x{depth})"
    console.print(cost_table(found, title=f"{title}, batch {arguments.batch}"))
    if arguments.measure is not None:
        console.print(measured.table(found["measured"], title="measured, in turns"))
    for warning in warnings(budget, _DTYPE):
        console.print(f"warning: {warning}", highlight=False)
    if arguments.json is not None:
        output.write_json(arguments.json, found)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    # A table in a file or a pipe must not be folded at 80 columns.
    return status(lambda: _run(arguments, Console() if sys.stdout.isatty() else Console(width=120)))


if __name__ == "__main__":
    sys.exit(main())
