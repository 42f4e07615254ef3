"""Names of the saliency signals, one a line.

python -m experiments.signals --list          the algebra: base.pointwise.reduction.scaling
python -m experiments.signals --list-extra    every other signal
"""

import argparse
import sys
from collections.abc import Sequence

from dce_jax.signals import algebra

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
    names = [str(formula) for formula in algebra.formulas()] if arguments.list else []
    print("\n".join(names))
    return 0


if __name__ == "__main__":
    sys.exit(main())
