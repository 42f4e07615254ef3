"""Names of the saliency signals, one a line.

python -m experiments.signals --list          the algebra: base.pointwise.reduction.scaling
python -m experiments.signals --list-extra    every other signal
"""

import argparse
import sys
from collections.abc import Sequence

from dce_jax import signals
from experiments.checks import SIGNALS

_EPILOG = """\
Any name serves as --config.signal of experiments.train. What the parts mean: docs/signals.md.

Exit status: 0 done, 2 wrong input.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.signals",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("--list", action="store_true", help="the 396 formulas of the algebra")
    either.add_argument("--list-extra", action="store_true", help="every other signal")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    print("\n".join(signals.names() if arguments.list else (*SIGNALS, *signals.other_names())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
