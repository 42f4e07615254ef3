"""The page of one run: figures, the final table, and what it takes to run it again.

    python -m experiments.report runs/digits-dce-seed0

writes `plots/*.png` and `report.html` into the workdir of a finished run. The page holds its images
itself, so the one file can be kept or sent. `experiments.train` does the same when it ends.
"""

import argparse
import base64
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from experiments import channel_plots, page, plots, records
from experiments.arguments import status

DPI = 110


class Run(NamedTuple):
    """The files of a finished run; `channels` is empty where the run explored no channels."""

    result: dict[str, Any]
    metrics: list[dict[str, Any]]
    layers: list[dict[str, Any]]
    channels: list[dict[str, Any]]


def read(workdir: Path) -> Run:
    """Reads and checks what the training loop wrote.

    Args:
      workdir: directory of a finished run.

    Raises:
      FileNotFoundError: not a directory, or a file is missing.
      ValueError: a file that is corrupt, or files that do not belong together.
    """
    if not workdir.is_dir():
        raise FileNotFoundError(
            f"{workdir} is not a directory: give the --workdir of a finished run"
        )
    result = records.read_result(workdir / "result.json")
    metrics = records.read_lines(workdir / "metrics.jsonl", records.METRIC_KEYS)
    if not metrics:
        raise ValueError(f"{workdir / 'metrics.jsonl'} is empty: run the training again")
    layers = records.read_layers(workdir / "layers.json")
    path = workdir / "channels.jsonl"
    channels = records.read_lines(path, records.CHANNEL_KEYS) if path.exists() else []
    for number, block in enumerate(channels, start=1):
        _check_block(block, layers, f"{path}, line {number}")
    return Run(result, metrics, layers, channels)


def _check_block(block: Mapping[str, Any], layers: Sequence[Mapping[str, Any]], where: str) -> None:
    for layer in layers:
        for key in ("plays", "means", "radius"):
            values = block[key].get(layer["group"])
            if values is None or len(values) != layer["width"]:
                found = "nothing" if values is None else f"{len(values)} numbers"
                raise ValueError(
                    f"{where}: {key} of group {layer['group']!r} holds {found}, but layers.json "
                    f"gives it {layer['width']} channels: the files are of different runs; train "
                    "again with an empty workdir"
                )


def _accuracies(result: Mapping[str, Any]) -> dict[str, float]:
    """Label -> test accuracy, for the marks beside the learning curve."""
    known = {
        "compact": result["test_accuracy"],
        "compact, as trained": result["test_accuracy_raw"],
        "all channels": result["test_accuracy_full"],
    }
    if result["method"] == "dense":
        known = {"test": result["test_accuracy"], "test, as trained": result["test_accuracy_raw"]}
    return {label: value for label, value in known.items() if value is not None}


def _common_figures(run: Run) -> dict[str, tuple[Figure, str, str]]:
    explored = any(row["phase"] == "explore" for row in run.metrics)
    grey = " The grey part is exploration, before the channels were fixed." if explored else ""
    curves = plots.learning_curves(
        run.metrics,
        commit_step=run.result["commit_step"],
        test_accuracies=_accuracies(run.result),
    )
    return {
        "learning_curves": (
            curves,
            "Learning curves",
            "Each point is the mean over a block of training batches, as augmented. Dashed lines "
            f"are accuracies on the whole test split at the end.{grey}",
        ),
        "layers": (
            plots.layer_costs(run.layers),
            "Widths and costs, before and after",
            "Grey is the network at full width, blue the one that remains. A layer's MACs and "
            "parameters fall with its own width and with the width of what feeds it.",
        ),
    }


def _channel_figures(run: Run) -> dict[str, tuple[Figure, str, str]]:
    every = max(1, int(run.result["select_every"] or 1))
    discount = float(run.result["config"].get("discount") or 1.0)
    heat = channel_plots.channels_over_time(
        run.channels, run.layers, select_every=every, discount=discount
    )
    return {
        "channels": (
            heat,
            "Which channels ran",
            "One panel per channel group, one column per channel, time downwards: the darker, the "
            "more of the selections at that time included the channel. Orange above a column "
            "marks the channels of the compact model.",
        ),
        "means": (
            channel_plots.channel_means(run.channels[-1], run.layers),
            "What the bandit knew at the end of exploration",
            "Channels from the highest mean reward to the lowest; rewards are scaled to [0, 1]. "
            "The grey band is the confidence radius, cut at the frame: where bands overlap, the "
            "order is not settled.",
        ),
    }


def _why_no_channels(method: str) -> str:
    """Why the page has no figures of channels."""
    if method in ("dce", "random"):
        return (
            "No figures of single channels: this workdir has no channels.jsonl, so no block of "
            "exploration was logged (the commit came before the first block's end)."
        )
    return (
        f"No figures of single channels: the method {method!r} does not choose channels while it "
        "trains, so there is no channels.jsonl."
    )


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def write(workdir: Path | str) -> Path:
    """Writes `plots/*.png` and `report.html` into the workdir of a finished run.

    Args:
      workdir: directory with `result.json`, `metrics.jsonl`, `layers.json` and, if the run explored
        channels, `channels.jsonl`.

    Returns:
      Path of the page.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is corrupt or of another run.
    """
    workdir = Path(workdir)
    run = read(workdir)
    drawn = _common_figures(run) | (_channel_figures(run) if run.channels else {})
    folder = workdir / "plots"
    folder.mkdir(exist_ok=True)
    figures = []
    for name, (figure, title, caption) in drawn.items():
        data = _png(figure)
        (folder / f"{name}.png").write_bytes(data)
        figures.append(page.Picture(title, caption, base64.b64encode(data).decode("ascii")))
    bad = sum(row["bad_rewards"] or 0 for row in run.metrics)
    notes = [] if run.channels else [_why_no_channels(run.result["method"])]
    if bad:
        notes.append(f"{bad:,} rewards were NaN or infinite; each counted as a play with reward 0.")
    path = workdir / "report.html"
    path.write_text(page.render(run.result, figures, notes=notes), encoding="utf-8")
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit status: 0 done, 2 wrong input.",
    )
    parser.add_argument("workdir", type=Path, help="workdir of a finished run of experiments.train")
    arguments = parser.parse_args(argv)
    return status(lambda: print(write(arguments.workdir)))


if __name__ == "__main__":
    sys.exit(main())
