"""Data sets by name, and the command that prepares them.

``load`` reads the bundled digits, any prepared TFDS image classification set, an ``.npz`` file or
a folder of class folders; all but TFDS sets whose image sizes differ are held in memory.
``python -m experiments.data prepare NAME --data_dir DIR`` downloads and prepares a TFDS set.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import arguments
from experiments.dataset import DataSet, Split
from experiments.prepare import prepare
from experiments.readers import is_image_folder, read_digits, read_folder, read_npz
from experiments.tfds_names import is_known
from experiments.tfds_reader import read_tfds

__all__ = ["DataSet", "Split", "load", "main"]

_EPILOG = """\
examples:
  python -m experiments.data prepare cifar10 --data_dir ~/tfds
  python -m experiments.train --config.dataset=cifar10 --config.data_dir=~/tfds

What happens: a virtual environment is made in DIR/.prepare-venv, TensorFlow and TFDS are
installed there (about 2 GB), and TFDS downloads NAME and writes it as array_record files to
DIR/NAME. The installed jax is not touched, and reading the files needs no TensorFlow. Interrupted,
the same command goes on. Exit status: 0 done, 1 a download or an installation failed, 2 wrong
input.
"""


def load(name: str, *, data_dir: str | None, image_size: int | None = None) -> DataSet:
    """Reads a data set, into host memory unless its image sizes differ.

    A folder called like a TFDS set is taken for the set: write ``./mnist`` for the folder.

    Args:
      name: ``digits``; a TFDS name (``cifar10``, ``cifar100``, ``svhn_cropped``, ``mnist``, ...);
        a path that ends in ``.npz``; or a folder with ``train/CLASS/*`` and ``test/CLASS/*``.
      data_dir: TFDS data directory; only TFDS sets need one.
      image_size: side of the square windows that a TFDS set's images are cut to where their sizes
        differ; for all others None.

    Returns:
      The data set.

    Raises:
      FileNotFoundError: not prepared (with the command that prepares it), or no such file.
      ValueError: unknown name (with the nearest ones), no data directory, bad contents, or an image
        size where nothing is cut.
      ModuleNotFoundError: an optional package is missing, with what to install.
    """
    folder = is_image_folder(Path(name).expanduser()) and not is_known(name, data_dir)
    if not (name == "digits" or name.endswith(".npz") or folder):
        return read_tfds(name, data_dir=data_dir, image_size=image_size)
    if image_size is not None:
        raise ValueError(
            f"image_size is {image_size}, but {name} is read as it is: only TFDS sets whose image "
            "sizes differ are cut to one; leave image_size out"
        )
    if name == "digits":
        return read_digits()
    return read_npz(name) if name.endswith(".npz") else read_folder(name)


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m experiments.data",
        description="Data sets of the experiments.",
        epilog=_EPILOG,
        formatter_class=raw,
    )
    verbs = parser.add_subparsers(required=True, metavar="prepare")
    verb = verbs.add_parser(
        "prepare",
        help="download and prepare a TFDS data set, in an environment of its own",
        description="Download and prepare a TFDS data set, in an environment of its own.",
        epilog=_EPILOG,
        formatter_class=raw,
    )
    verb.add_argument("name", metavar="NAME", help="TFDS name: cifar10, cifar100, mnist, ...")
    verb.add_argument("--data_dir", metavar="DIR", required=True, help="TFDS data directory")
    verb.add_argument(
        "--python",
        metavar="PATH",
        default=sys.executable,
        help="interpreter for the environment, if TensorFlow has no release for this one",
    )
    verb.add_argument("--dry_run", action="store_true", help="only print the commands")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: ``prepare NAME --data_dir DIR [--python PATH] [--dry_run]``.

    Args:
      argv: arguments without the program's name; None takes the process's own.

    Returns:
      The exit status: 0; with one line on stderr 1 if preparing failed, 2 if the input is wrong.
    """
    args = _parser().parse_args(argv)
    asked = {"data_dir": args.data_dir, "python": args.python, "dry_run": args.dry_run}
    try:
        return arguments.status(lambda: print(prepare(args.name, **asked)))
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
