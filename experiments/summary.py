"""The figures of one run: how numbers are written, and the table for the terminal."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from rich.console import Console
from rich.table import Table

Result: TypeAlias = Mapping[str, Any]
"""The object in a run's `result.json`."""

MIB = 2**20
NONE = "-"


def judged_on(results: Sequence[Result]) -> str:
    """Which images accuracies are of: ``"test"``, ``"validation"``, or both, as configs say."""
    found = {"validation" if run["config"].get("validation") else "test" for run in results}
    return " or ".join(sorted(found))


def asked_on(found: Mapping[str, Any]) -> str:
    """Which images a study's accuracies are of; older files do not say: the test split."""
    return str(found["subject"].get("judged_on", "test"))


def si(value: float) -> str:
    """A count with three or four digits and a prefix: 14724042 -> '14.72 M'."""
    for size, prefix in ((1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.2f}{prefix}"
    return f"{value:g}"


def percent(value: float | None, digits: int = 2) -> str:
    """A fraction as per cent: 0.9123 -> '91.23 %'; None -> a dash."""
    return NONE if value is None else f"{100 * value:.{digits}f} %"


def minutes(seconds: float) -> str:
    """Seconds as minutes: 754.2 -> '12.6 min'."""
    return f"{seconds / 60:.1f} min"


def spread(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 for one value, NaN if one of several is NaN."""
    if len(values) == 1:
        return 0.0
    # `statistics` cannot take NaN, which a run that went astray may hold.
    return math.nan if any(map(math.isnan, values)) else statistics.stdev(values)


def mean_and_spread(fractions: Sequence[float]) -> str:
    """'mean ± sample standard deviation' of fractions, in per cent; one value has no spread."""
    mean = 100 * statistics.fmean(fractions)
    if len(fractions) == 1:
        return f"{mean:.2f} %"
    return f"{mean:.2f} ± {100 * spread(fractions):.2f} %"


def interval(row: Mapping[str, Any], key: str) -> str:
    """A ratio of a benchmark's row with its 95 % interval: '1.05 [1.03, 1.08]'; null -> a dash."""
    if row[key] is None:
        return NONE
    if row.get(f"{key}_low") is None:
        return f"{row[key]:.2f}"
    return f"{row[key]:.2f} [{row[f'{key}_low']:.2f}, {row[f'{key}_high']:.2f}]"


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> str:
    """A Markdown table; the first `left` columns are aligned left, the others right."""
    rules = [":--" if i < left else "--:" for i in range(len(heads))]
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (heads, rules, *rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def step_ms(result: Result) -> tuple[float | None, float | None]:
    """Median ms per step, (exploring, committed); None where the run had no such phase."""
    times = result["step_ms_median"] or {}
    return times.get("explore"), times.get("commit")


def host(result: Result) -> list[tuple[str, str, str]]:
    """What the host does about a step (`experiments.watch`), where a result tells."""

    def ms(value: float | None) -> str:
        return NONE if value is None else f"{value:.2f} ms"

    found = []
    for key, said in (
        ("host_ms_median", "dispatching"),
        ("data_wait_ms_median", "waiting for a batch"),
        ("between_ms_median", "between two blocks"),
    ):
        times = result.get(key) or {}
        shown = " / ".join(ms(times.get(phase)) for phase in ("explore", "commit"))
        found += [(f"host per step, {said}, exploring / committed", shown, NONE)] if times else []
    return found


def wall(result: Result) -> list[tuple[str, str, str]]:
    """What training took on the clock (`experiments.watch`), where a result tells."""
    seconds = result.get("train_s")
    return [] if seconds is None else [("training, wall clock", minutes(seconds), NONE)]


def summary(result: Result) -> list[tuple[str, str, str]]:
    """The figures of one run: (quantity, compact or this run, full width or dense)."""
    times = dict(zip(("exploring", "committed"), step_ms(result), strict=True))
    peak, seconds, images = result["peak_bytes"], result["compile_s"], judged_on([result])
    return [
        (
            f"{images} accuracy, recalibrated statistics",
            percent(result["test_accuracy"]),
            percent(result["test_accuracy_full"]),
        ),
        (f"{images} accuracy, statistics as trained", percent(result["test_accuracy_raw"]), NONE),
        ("parameters", si(result["params_compact"]), si(result["params_full"])),
        ("MACs, forward, one example", si(result["macs_compact"]), si(result["macs_full"])),
        ("MACs of the whole training", si(result["train_macs"]), si(result["train_macs_dense"])),
        *(
            (f"median step, {phase}", NONE if ms is None else f"{ms:.1f} ms", NONE)
            for phase, ms in times.items()
        ),
        *host(result),
        ("memory of the largest step", NONE if peak is None else f"{peak / MIB:.1f} MiB", NONE),
        *wall(result),
        ("time to compile", NONE if seconds is None else f"{seconds:.1f} s", NONE),
        (
            "compilations",
            ", ".join(f"{name} {count}" for name, count in result["compilations"].items()) or NONE,
            NONE,
        ),
    ]


def print_result(result: Result, console: Console | None = None) -> None:
    """Prints the table of one run on the terminal.

    Args:
      result: an object with the keys of `result.json`.
      console: where to; the standard output by default.
    """
    title = f"{result['method']}: {result['network']} on {result['dataset']}, seed {result['seed']}"
    table = Table(title=title, title_justify="left", caption=result["device"])
    table.add_column("quantity")
    table.add_column("this run", justify="right", style="bold")
    table.add_column("full width", justify="right")
    for row in summary(result):
        table.add_row(*row)
    (console or Console()).print(table)
