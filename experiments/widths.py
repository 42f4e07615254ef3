"""Which widths pay on this device: one convolution with its gradients, timed at many widths.

    python -m experiments.widths
    python -m experiments.widths --widths 24,28,31,32,33 --dtype bfloat16 --json widths.json
    python -m experiments.widths --image_size 2 --plain   # as XLA has it, even if it is slow
    python -m experiments.widths --depthwise              # of each channel alone
    python -m experiments.widths --kernel_size 1

Each contender is a step of gradient descent on a convolution of K channels to K channels, its
kernel, 3x3 unless another size is asked for, and its images. They take turns, once each per round,
on random images; what is compared are times of the same round.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax
from rich.console import Console
from rich.table import Table

from dce_jax import hardware
from dce_jax.convolve import CHANNELS_LAST, convolve
from dce_jax.types import Array
from experiments import display, machine, output, timing, variants
from experiments.arguments import list_of, status
from experiments.summary import NONE
from experiments.timing import Contender

Convolution: TypeAlias = Callable[..., Array]

_WIDTHS = "16,20,24,28,31,32,33,36,40,44,48,52,56,60,63,64,65,68,72,80,96,112,127,128,129,136,144"
_DISPATCH = 20  # steps in one `lax.scan`, where this is not a CPU
_EPILOG = """\
How to read the table: "ms / MAC" is relative to the best width's. "not measurably faster than"
names the widest convolution that this one does not beat, and the median over rounds of its time
divided by that one's, with a 95 % bootstrap interval that reaches 1.

Exit status: 0 done, 2 wrong input.
"""


class Layer(NamedTuple):
    """What one step of gradient descent changes.

    Attributes:
      kernel: [3, 3, K, K], or [3, 3, 1, K] of each channel alone; of other sides, too.
      images: [B, H, W, K]; they descend too, as a layer before would need their gradient.
    """

    kernel: Array
    images: Array


def update(convolution: Convolution, layer: Layer, data: None) -> tuple[Layer, dict[str, Array]]:
    """One step of gradient descent on a convolution's mean squared output.

    Args:
      convolution: `convolve` or `jax.lax.conv_general_dilated`.
      layer: before it.
      data: nothing; images are part of the state.

    Returns:
      The layer after it, and ``loss``, float32[].
    """
    del data
    options = {
        "dimension_numbers": CHANNELS_LAST,
        "feature_group_count": layer.images.shape[3] // layer.kernel.shape[2],
    }

    def loss(layer: Layer) -> Array:
        y = convolution(layer.images, layer.kernel, (1, 1), "SAME", **options)
        return jnp.mean(jnp.square(y.astype(jnp.float32)))

    value, grads = jax.value_and_grad(loss)(layer)
    after = jax.tree.map(lambda x, dx: x - (0.01 * dx).astype(x.dtype), layer, grads)
    return after, {"loss": value}


def contender(
    width: int,
    *,
    batch: int,
    image_size: int,
    dtype: Any,
    convolution: Convolution = convolve,
    depthwise: bool = False,
    kernel_size: int = 3,
) -> Contender:
    """A convolution of ``width`` channels to as many, ready to be timed."""
    draw = np.random.default_rng(0)
    inputs = 1 if depthwise else width
    taps = (kernel_size, kernel_size)
    kernel = draw.normal(size=(*taps, inputs, width)) / np.sqrt(kernel_size**2 * inputs)
    images = draw.normal(size=(batch, image_size, image_size, width))
    layer = Layer(jnp.asarray(kernel, dtype), jnp.asarray(images, dtype))
    dispatch = 1 if jax.default_backend() == "cpu" else _DISPATCH
    step = variants.many(partial(update, convolution), dispatch)
    call = timing.compiled(step, layer, None).call
    return Contender(f"width {width}", call, partial(jax.tree.map, jnp.copy, layer), None, dispatch)


def rows(
    widths: Sequence[int], times_RV: npt.NDArray[np.float64], *, depthwise: bool = False
) -> list[dict[str, Any]]:
    """What the JSON file says of each width.

    Args:
      widths: ascending.
      times_RV: float64[rounds, widths], ms.
      depthwise: whether MACs grow with the width, not with its square.
    """
    median_V = np.median(times_RV, axis=0)
    per_mac_V = median_V / np.asarray(widths, np.float64) ** (1 if depthwise else 2)
    found = []
    for i, beaten in enumerate(timing.overtaken(times_RV, widths)):
        row: dict[str, Any] = {
            "width": widths[i],
            "ms_median": float(median_V[i]),
            "ms_min": float(times_RV[:, i].min()),
            "ms_per_mac": float(per_mac_V[i] / per_mac_V.min()),
            "not_faster_than": None if beaten is None else widths[beaten[0]],
            "ratio": None if beaten is None else list(beaten[1]),
        }
        found.append(row)
    return found


def table(found: Sequence[dict[str, Any]], *, title: str) -> Table:
    """The rows for a terminal."""
    shown = Table(title=title, title_justify="left")
    for head in ("width", "ms", "ms / MAC", "not measurably faster than", "ratio [95 %]"):
        shown.add_column(head, justify="right")
    for row in found:
        wider = NONE if row["not_faster_than"] is None else str(row["not_faster_than"])
        ratio = NONE if row["ratio"] is None else "{:.2f} [{:.2f}, {:.2f}]".format(*row["ratio"])
        figures = (f"{row['ms_median']:.2f}", f"{row['ms_per_mac']:.2f}")
        shown.add_row(str(row["width"]), *figures, wider, ratio)
    return shown


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.widths",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--widths", type=list_of(int), default=_WIDTHS, metavar="K,L", help="(default: 16 to 144)")
    add("--batch", type=int, default=32, metavar="N", help="images (default: %(default)s)")
    add("--image_size", type=int, default=16, metavar="N", help="H = W (default: %(default)s)")
    add("--dtype", default="float32", choices=("float32", "bfloat16"), help="(default: float32)")
    add("--plain", action="store_true", help="XLA's convolution, whatever layers make of it")
    add("--depthwise", action="store_true", help="each channel alone")
    add("--kernel_size", type=int, default=3, metavar="N", help="of both sides (default: 3)")
    add("--rounds", type=int, default=15, metavar="N", help="at least (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the figures here")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    names = ("batch", "image_size", "kernel_size", "rounds")
    smallest = {name: getattr(arguments, name) for name in names}
    for name, value in {**smallest, "widths": min(arguments.widths)}.items():
        if value < 1:
            raise ValueError(f"--{name} {value}: it must be at least 1")
    if arguments.json is not None:
        output.check_writable(arguments.json)


def _run(arguments: argparse.Namespace, words: Sequence[str], console: Console) -> None:
    _check(arguments)
    begun, widths = time.perf_counter(), sorted(set(arguments.widths))
    build = partial(
        contender,
        batch=arguments.batch,
        image_size=arguments.image_size,
        dtype=arguments.dtype,
        convolution=lax.conv_general_dilated if arguments.plain else convolve,
        depthwise=arguments.depthwise,
        kernel_size=arguments.kernel_size,
    )
    with display.progress("widths", len(widths) + arguments.rounds, facts="compiling") as shown:
        contenders = []
        for done, width in enumerate(widths):
            contenders.append(build(width))
            shown.tell(done + 1, f"compiled width {width}")

        def report(rounds: int, expected: int) -> None:
            shown.tell(len(widths) + rounds, f"round {rounds} of {expected}")

        times_RV = timing.interleave(
            contenders, least=arguments.rounds, until=0.0, report=report, shortest=0.05
        )
    found = rows(widths, times_RV, depthwise=arguments.depthwise)
    size, side = (f"{n}x{n}" for n in (arguments.kernel_size, arguments.image_size))
    kind = f"{size} convolution{' of each channel' if arguments.depthwise else ''}"
    title = f"{kind}, {arguments.batch} images of {side}, {arguments.dtype}"
    console.print(table(found, title=f"{title}, {machine.device()}"))
    if arguments.json is not None:
        result = {
            **machine.facts(),
            "multiple_of": hardware.multiple_of(jax.devices()[0], arguments.dtype),
            "command": shlex.join(["python", "-m", "experiments.widths", *words]),
            "rounds": len(times_RV),
            "seconds": time.perf_counter() - begun,
            "rows": found,
        }
        output.write_json(arguments.json, result)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(words)
    return status(lambda: _run(arguments, words, Console()))


if __name__ == "__main__":
    sys.exit(main())
