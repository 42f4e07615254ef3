r"""Paired comparisons: one table row minus another, seed by seed.

    python -m experiments.paired experiments/results/digits
    python -m experiments.paired runs/ --method scratch --json differences.json

Two runs of one seed see the same images in the same order, so luck that both share cancels in
their difference. Each line of the table is a row of the subject (`--method`; else dce, or where
there is none the method that comes last in a table) minus another row of the same data set and
network:

  pairs       seeds that both rows have; runs of other seeds are left out
  difference  mean over the pairs, in points of test accuracy: above 0 the subject is better; in
              brackets its 95 % t interval. An interval that holds 0 decides nothing. One pair has
              no interval.
  train MACs  of the subject's pairs over the other row's: 1.000 compares at equal training cost

Settings stand beside a method where the two rows differ in them, or where a method has several
rows. Nothing corrects for many comparisons: of twenty intervals about one misses by chance.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import pairs, pooling, records
from experiments.pairs import Comparison, Row
from experiments.summary import markdown


def heading(method: str) -> str:
    """What stands above the table of a subject."""
    return (
        f"`{method}` minus each other row, seed by seed, in points of accuracy; MACs of both "
        "trainings as a ratio:"
    )


def _name(row: Row) -> str:
    return ", ".join(filter(None, [f"{row.method} {row.keep:.3g}", pooling.words(row.settings)]))


def _points(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"  # + 0.0: no minus before a zero


def _difference(comparison: Comparison) -> str:
    bad = [
        seed
        for seed, value in zip(comparison.seeds, comparison.differences, strict=True)
        if math.isnan(value)
    ]
    if bad:
        return f"none: accuracy is NaN, seed {', '.join(map(str, bad))}"
    if comparison.interval is None:
        return f"{_points(comparison.mean)} (one pair: no interval)"
    low, high = map(_points, comparison.interval)
    return f"{_points(comparison.mean)} [{low}, {high}]"


def table(found: Sequence[Comparison]) -> str:
    """A Markdown table of comparisons, one line each."""
    heads = [
        *("data set", "network", "row", "minus", "pairs"),
        *("difference, points [95 % interval]", "train MACs, ratio"),
    ]
    rows = [
        [
            *(one.dataset, one.network, _name(one.row), _name(one.minus), str(len(one.seeds))),
            *(_difference(one), f"{one.train_macs_ratio:.3f}"),
        ]
        for one in found
    ]
    return markdown(heads, rows, left=4)


def differences(paths: Sequence[Path]) -> str:
    """The table of what files and directories hold, their subject minus each other row."""
    results = records.gather(paths).results
    return table(pairs.required(results, pairs.subject(results)))


def plain(comparison: Comparison) -> dict[str, Any]:
    """A comparison as plain data for JSON, None in place of NaN."""

    def number(value: float) -> float | None:
        return None if math.isnan(value) else value

    bounds = comparison.interval
    return comparison._asdict() | {
        "row": comparison.row._asdict(),
        "minus": comparison.minus._asdict(),
        "differences": [number(value) for value in comparison.differences],
        "mean": number(comparison.mean),
        "interval": None if bounds is None or math.isnan(bounds[0]) else bounds,
    }


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.paired",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit status: 0 done, 2 wrong input.",
    )
    parser.add_argument(
        "paths", nargs="+", type=Path, help="result.json files, or directories that hold them"
    )
    parser.add_argument(
        "--method", help="the subject, from which others are taken (default dce, or the last)"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the comparisons as a JSON list"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = _arguments(argv)
    try:
        results = records.gather(arguments.paths).results
        found = pairs.required(results, arguments.method or pairs.subject(results))
        if arguments.json is not None:
            text = json.dumps([plain(one) for one in found], indent=1, allow_nan=False)
            arguments.json.write_text(text + "\n", encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
