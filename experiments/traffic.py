"""What a training step sends between devices, read off the compiled programs; nothing is run.

python -m experiments.traffic --network vgg16 --dataset cifar10 --keep 0.5 --devices 8
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dce_jax import budget as budgets
from dce_jax import channels as maps
from dce_jax import cost, forward, networks, saliency, step, training
from dce_jax import mesh as meshes
from dce_jax.parts import norm_parts
from dce_jax.types import PyTree
from experiments import bench, machine, output
from experiments.arguments import status
from experiments.collectives import collectives, source
from experiments.describe import image_shape
from experiments.summary import MIB, NONE, markdown

SOURCES = ("backward", "forward", "gather", "other")
_LEARNING_RATE = 0.1  # no number of a step changes what it sends


class Steps(NamedTuple):
    """What is compiled.

    Attributes:
      pieces: of the dynamic step.
      state: shapes of its state.
      dense: the ordinary step at full width, ``(loop, batch) -> (loop, metrics)``.
      batch: shapes of a batch.
    """

    pieces: step.Pieces
    state: step.DceState
    dense: Callable[..., Any]
    batch: PyTree


def build(
    network: str, shape: tuple[int, int, int, int], *, keep: float, batch: int, mesh: Mesh
) -> Steps:
    """The steps of a network, on shapes alone.

    Args:
      network: name in `dce_jax.networks`.
      shape: (H, W, D, classes).
      keep: fraction of every group's channels.
      batch: examples in a batch, over all devices.
      mesh: of `dce_jax.mesh.data_mesh`.

    Raises:
      ValueError: a name, fraction or image that does not fit, or a batch that cannot be shared.
    """
    *sides, classes = shape
    if batch % mesh.size:
        raise ValueError(f"--batch {batch}: {mesh.size} devices take equal parts of it")
    module = networks.build(network, num_classes=classes, dtype=jnp.float32, width=1.0)
    images = jax.ShapeDtypeStruct((batch, *sides), jnp.float32)
    channels = maps.build(module, forward.shapes(module, images))
    budget, tx = budgets.from_fraction(channels.full, keep), bench.optimizer(_LEARNING_RATE)
    loop = jax.eval_shape(partial(bench.start, module, tx), jax.random.key(0), images)
    thin = maps.with_widths(module, budget.compact)
    pieces = step.pieces(
        channels,
        budget,
        params=loop.params,
        model_state=loop.model_state,
        tx=tx,
        loss=meshes.whole_params(mesh, forward.classification_loss(thin)),
        signal=saliency.norm_taylor(module.reward_norms(), norm_parts(channels, budget.compact)),
    )
    dense = meshes.whole_params(mesh, forward.classification_loss(module))
    data = {"image": images, "label": jax.ShapeDtypeStruct((batch,), jnp.int32)}
    return Steps(
        pieces,
        jax.eval_shape(partial(step.start_dce, pieces), loop),
        partial(training.plain, tx, dense, training.whole_batch),
        jax.tree.map(lambda leaf: _at(leaf, meshes.by_example(mesh)), data),
    )


def rows(steps: Steps, mesh: Mesh, *, sharded: bool) -> Iterator[dict[str, Any]]:
    """Per program, what one device holds, and the bytes it receives by where they come from."""
    where = "sharded" if sharded else "replicated"
    state = _placed(mesh, steps.state, sharded)
    enter = partial(step.enter, steps.pieces)
    inside = _placed(mesh, jax.eval_shape(enter, state), sharded)
    programs: list[tuple[str, Callable[..., Any], tuple[Any, ...], PyTree]] = [
        ("dense step", steps.dense, (state.loop, steps.batch), state.loop.params),
        ("enter", enter, (state,), inside.loop.params),
        ("observe", partial(step.observe, steps.pieces), (inside, steps.batch), inside.loop.params),
        ("leave", partial(step.leave, steps.pieces), (state, inside), inside.loop.params),
    ]
    for name, function, args, params in programs:
        out = meshes.shardings(mesh, jax.eval_shape(function, *args), sharded=sharded)
        compiled = jax.jit(function, out_shardings=out).lower(*args).compile()
        memory, found = cost.memory(compiled), collectives(compiled.as_text() or "")
        yield {
            "states": where,
            "program": name,
            "peak": None if memory is None else cost.peak_bytes(memory),
            "trainable": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)),
            **{kind: sum(one.bytes for one in found if source(one) == kind) for kind in SOURCES},
        }


def _placed(mesh: Mesh, shapes: PyTree, sharded: bool) -> PyTree:
    return jax.tree.map(_at, shapes, meshes.shardings(mesh, shapes, sharded=sharded))


def _at(leaf: Any, where: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


def table(found: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    counted = ("trainable", *SOURCES)
    heads = ["states", "program", "memory MiB", "trainable bytes", *SOURCES]
    cells = [
        [
            row["states"],
            row["program"],
            NONE if row["peak"] is None else f"{row['peak'] / MIB:.1f}",
            *(f"{row[name]:,}" for name in counted),
        ]
        for row in found
    ]
    return markdown(heads, cells, left=2)


def _run(arguments: argparse.Namespace) -> None:
    if arguments.devices < 1:
        raise ValueError(f"--devices {arguments.devices}: at least 1 is needed")
    if arguments.json is not None:
        output.check_writable(arguments.json)
    machine.show_cpu_devices(arguments.devices)
    if arguments.devices > jax.device_count():
        raise ValueError(f"--devices {arguments.devices}: there are {jax.device_count()}")
    mesh = meshes.data_mesh(jax.devices()[: arguments.devices])
    shape = image_shape(arguments.dataset)
    options = {"keep": arguments.keep, "batch": arguments.batch}
    steps = build(arguments.network, shape, mesh=mesh, **options)
    found = [row for sharded in (False, True) for row in rows(steps, mesh, sharded=sharded)]
    print(table(found))
    if arguments.json is not None:
        output.write_json(arguments.json, found)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.traffic",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit status: 0 done, 2 wrong input.",
    )
    parser.add_argument("--network", default="vgg16", help="by its name (%(default)s)")
    parser.add_argument(
        "--dataset", default="cifar10", help="for its images' size and classes (%(default)s)"
    )
    parser.add_argument(
        "--keep", type=float, default=0.5, help="share of the channels that execute (%(default)s)"
    )
    parser.add_argument("--batch", type=int, default=64, help="of all devices (%(default)s)")
    parser.add_argument(
        "--devices", type=int, default=8, help="a CPU shows as many as are asked (%(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    arguments = parser.parse_args(argv)
    return status(lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main())
