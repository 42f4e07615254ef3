"""Sweeps: which cells there are, which are missing, and what becomes of failed and killed ones."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import report_fixture as fixture

from experiments import cells, config, paired, pairs, pareto, records, sweep, workers
from experiments.cells import Cell
from experiments.configs import digits

# ml_collections reads config files through an importer that Python is giving up.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

CONFIG = Path(digits.__file__)
DCE, SCRATCH = Cell("vgg-digits", "dce", 0.5, 0), Cell("vgg-digits", "scratch", 0.5, 0)


def test_grid_has_each_cell_once_and_dense_for_one_keep():
    found = cells.grid(["a", "b"], ["dense", "dce"], [0.25, 0.5], [0, 1])
    assert len(found) == len(set(found)) == 2 * 2 * (1 + 2)
    assert [c.name for c in found[:4]] == [
        "a-dense-seed0",
        "a-dce-keep0.25-seed0",
        "a-dce-keep0.5-seed0",
        "a-dense-seed1",
    ]


def test_settings_are_what_the_main_job_would_make_of_the_words():
    found = cells.settings(cells.words(DCE, CONFIG, ["steps=7", "widths=conv0=3"]))
    expected = digits.get_config()
    expected.update(steps=7, widths="conv0=3")
    assert config.plain(found) == config.plain(expected)


def test_rivals_train_at_the_widths_that_a_run_learned(tmp_path):
    (tmp_path / f"{DCE.name}.json").write_text(json.dumps(fixture.result()))
    (cell,) = cells.at_learned_widths([SCRATCH], tmp_path)
    assert cell.name == "vgg-digits-scratch-learned-keep0.5-seed0"
    found = cells.settings(cells.words(cell, CONFIG, ["allocation=global"]))
    assert config.parse_widths(found.widths) == fixture.result()["widths"]
    assert found.allocation == "uniform"  # for rivals, whatever the sweep was told


def test_rivals_train_at_the_widths_that_a_pruned_network_has(tmp_path):
    pruned, widths = DCE._replace(method="taylor"), {"conv0": 5, "conv1": 7}
    for cell, changes in ((DCE, {}), (pruned, {"method": "taylor", "widths": widths})):
        result = fixture.result(**changes)
        (tmp_path / f"{cell.name}.json").write_text(json.dumps(result))
    (by_dce,) = cells.at_learned_widths([SCRATCH], tmp_path)
    (by_taylor,) = cells.at_learned_widths([SCRATCH], tmp_path, "taylor")
    assert by_taylor.name == "vgg-digits-scratch-learned-by-taylor-keep0.5-seed0"
    assert config.parse_widths(by_taylor.widths) == widths != config.parse_widths(by_dce.widths)
    base = ["--config", str(CONFIG), "--out", str(tmp_path / "out"), "--methods", "scratch"]
    words = ["--widths-of", str(tmp_path), "--widths-by", "fisher"]
    assert sweep.main([*base, *words]) == 2  # no such result
    assert sweep.main([*base, *words[:-1], "taylor", "--set", "dataset=digits", "--list"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "lerning_rate=1"], 'no config field lerning_rate.*"learning_rate"'),
        (["--set", "batch_size=x"], "config.batch_size=x: invalid literal for int"),
        (["--set", "epochs"], "--set 'epochs' is not FIELD=VALUE"),
        (["--set", "seed=3"], "--set 'seed=3': the grid sets seed, use --seeds"),
        (
            ["--set", "macs=0.25", "--keeps", "0.25,0.5", "--methods", "dce"],
            "keep0.25-seed0 and vgg-digits-dce-keep0.5-seed0 would be the same run twice: macs is",
        ),
        (
            ["--set", "widths=conv0=4", "--keeps", "0.25,0.5", "--methods", "dense,dce"],
            "same run twice: widths is 'conv0=4'",
        ),
        (["--methods", "dce,dcee"], "unknown method 'dcee'; did you mean 'dce'"),
        (["--networks", "vgg1"], "unknown network 'vgg1'"),
        (["--keeps", "0.5,1.5"], "keep is 1.5: it must be above 0 and at most 1"),
        (
            ["--widths-of", "nowhere", "--methods", "random"],
            "--widths-of is for scratch and subset",
        ),
        (
            ["--widths-of", "nowhere", "--methods", "scratch"],
            "no result nowhere/vgg-digits-dce-keep0.5-seed0.json to take widths from",
        ),
        (
            ["--label", "keep2"],
            "--label 'keep2' stands in file names between keep and seed: a word",
        ),
        (["--label", "a/b"], "--label 'a/b' stands in file names"),
        (["--label", ""], "--label '' stands in file names"),
        (["--workers", "0"], "workers is 0: at least one must run"),
        (["--config", "nowhere.py"], "No such file.*nowhere.py"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(arguments, message, tmp_path, capsys):
    base = ["--config", str(CONFIG), "--out", str(tmp_path / "out"), "--runs", str(tmp_path / "r")]
    assert sweep.main([*base, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert re.search(message, error, re.DOTALL), error
    assert not (tmp_path / "r").exists() or not list((tmp_path / "r").iterdir())


def stored(cell: Cell, **changes) -> dict:
    expected = config.portable(cells.settings(cells.words(cell, CONFIG, [])))
    made = fixture.result(method=cell.method, seed=cell.seed, keep=cell.keep)
    return {**made, "config": expected | changes}


def test_stored_results_are_not_run_again_and_those_of_other_configs_refused(tmp_path):
    (tmp_path / f"{DCE.name}.json").write_text(json.dumps(stored(DCE)))
    assert sweep.missing([DCE, SCRATCH], CONFIG, [], tmp_path) == [SCRATCH]
    (tmp_path / f"{SCRATCH.name}.json").write_text(json.dumps(stored(SCRATCH, epochs=3.0)))
    with pytest.raises(
        ValueError, match=r"(?s)scratch.*epochs: 3.0 there, 20.0 now.*another --out or --label"
    ):
        sweep.missing([DCE, SCRATCH], CONFIG, [], tmp_path)


def test_the_same_cells_with_other_settings_lie_beside_them_under_a_label(tmp_path):
    (rescaled,) = cells.labelled([SCRATCH], "rescaled")
    assert rescaled.name == "vgg-digits-scratch-keep0.5-rescaled-seed0"
    (tmp_path / f"{SCRATCH.name}.json").write_text(json.dumps(stored(SCRATCH)))
    changes = ["init_scale=0.7071"]
    assert sweep.missing([rescaled], CONFIG, changes, tmp_path) == [rescaled]
    made = stored(SCRATCH, init_scale=0.7071)
    (tmp_path / f"{rescaled.name}.json").write_text(json.dumps(made))
    assert sweep.missing([rescaled], CONFIG, changes, tmp_path) == []
    assert sweep.missing([SCRATCH], CONFIG, [], tmp_path) == []


def test_the_default_methods_are_those_of_the_main_table(tmp_path, capsys):
    base = ["--config", str(CONFIG), "--out", str(tmp_path), "--set", "dataset=digits"]
    assert sweep.main([*base, "--label", "again", "--list"]) == 0
    names = capsys.readouterr().out.split("\n", 1)[1].split()
    assert [name.split("-")[2] for name in names] == list(sweep.METHODS)
    assert all("-again-seed0" in name for name in names)


def test_a_stored_result_may_differ_in_what_its_method_never_reads(tmp_path):
    for cell in (SCRATCH, DCE):
        (tmp_path / f"{cell.name}.json").write_text(json.dumps(stored(cell, commit=0.7)))
    assert sweep.missing([SCRATCH], CONFIG, [], tmp_path) == []
    with pytest.raises(ValueError, match=r"commit: 0\.7 there, 0\.1 now"):
        sweep.missing([DCE], CONFIG, [], tmp_path)


def python(tmp_path: Path, name: str, code: str) -> workers.Job:
    workdir = tmp_path / name
    text = f"import pathlib; w = pathlib.Path({str(workdir)!r}); w.mkdir(exist_ok=True)\n{code}"
    return workers.Job(name, (sys.executable, "-c", text), tmp_path / f"{name}.log", workdir)


def test_a_failed_job_holds_up_no_other_and_leaves_its_log(tmp_path):
    jobs = [
        python(tmp_path, "bad", "print('why', flush=True); raise SystemExit(3)"),
        *(python(tmp_path, f"good{i}", "(w / 'x').write_text('')") for i in range(3)),
    ]
    seen = []
    found = workers.run(jobs, count=2, finished=seen.append)
    assert [job.name for job in found.failed] == ["bad"] and not found.interrupted
    assert sorted(job.name for job in seen) == ["good0", "good1", "good2"]
    assert jobs[0].log.read_text() == "why\n"


def test_an_interrupt_lets_running_jobs_save_and_starts_no_more(tmp_path):
    saving = (
        "import signal, sys, time\n"
        "def save(*_):\n    (w / 'saved').write_text('')\n    sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, save)\n(w / 'ready').write_text('')\ntime.sleep(60)"
    )
    jobs = [python(tmp_path, "first", saving), python(tmp_path, "second", saving)]

    def interrupt():
        while not (tmp_path / "first" / "ready").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    found = workers.run(jobs, count=1, finished=lambda _: None)
    watcher.join()
    assert found == workers.Outcome((), True)
    assert (tmp_path / "first" / "saved").exists() and not (tmp_path / "second").exists()


def test_workers_share_out_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 5, 7}, raising=False)
    assert workers.lanes(1) == [set()]
    assert workers.lanes(2) == [{0, 1}, {2, 5}]
    assert workers.lanes(6) == [set()] * 6
    monkeypatch.delattr(os, "sched_getaffinity")
    assert workers.lanes(2) == [set(), set()]


def small_sweep(tmp_path, *words):
    """Arguments of a sweep of the digits whose steps are cheap, and where its results lie."""
    out, runs = tmp_path / "out", tmp_path / "runs"
    arguments = [
        *("--config", str(CONFIG), "--out", str(out), "--runs", str(runs)),
        *("--set", "width=0.1", "--set", "batch_size=8", *words),
    ]
    return arguments, out, runs


def test_a_sweep_runs_what_is_missing_and_ends_with_table_and_picture(tmp_path, capsys):
    grid = ["--methods", "scratch", "--keeps", "0.25,0.5", "--seeds", "0"]
    arguments, out, _ = small_sweep(tmp_path, *grid, "--set", "steps=3")
    assert sweep.main([*arguments, "--list"]) == 0
    names = [f"vgg-digits-scratch-keep{keep}-seed0" for keep in (0.25, 0.5)]
    assert capsys.readouterr().out == "\n".join(["2 cells, 2 to run", *names, ""])
    assert sweep.main([*arguments, "--keeps", "0.5"]) == 0
    first = (out / f"{names[1]}.json").stat().st_mtime_ns
    capsys.readouterr()
    assert sweep.main(arguments) == 0
    assert "2 cells, 1 to run" in capsys.readouterr().out
    assert sorted(path.stem for path in out.glob("*.json")) == names
    assert (out / f"{names[1]}.json").stat().st_mtime_ns == first
    assert (out / sweep.TABLE).read_text().count("| scratch |") == 2
    assert (out / sweep.PICTURE).read_bytes().startswith(b"\x89PNG")
    assert sweep.main(arguments) == 0
    assert "2 cells, 0 to run" in capsys.readouterr().out


@pytest.mark.one_set
def test_an_interrupted_sweep_goes_on_from_its_runs_checkpoint(tmp_path):
    long = ["--set", "steps=300", "--set", "block=10", "--set", "checkpoint_blocks=1"]
    arguments, out, runs = small_sweep(tmp_path, "--methods", "scratch", *long)
    command = [sys.executable, "-m", "experiments.sweep", *arguments]
    workdir = runs / SCRATCH.name
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        while first.poll() is None and not list(workdir.glob("checkpoints/[0-9]*")):
            time.sleep(0.05)
        first.send_signal(signal.SIGINT)
        said, _ = first.communicate(timeout=120)
    assert first.returncode == sweep.INTERRUPTED and "the same command goes on" in said
    assert not list(out.glob("*.json"))
    assert sweep.main(arguments) == 0
    log = (runs / f"{SCRATCH.name}.log").read_text()
    assert re.search(r"going on after step [1-9]\d* of 300", log), log
    steps = [each["step"] for each in records.read_lines(workdir / "metrics.jsonl")]
    assert steps == sorted(set(steps)) and steps[-1] == 300
    assert json.loads((out / f"{SCRATCH.name}.json").read_text())["steps"] == 300


def test_a_failing_run_is_named_with_its_log(tmp_path, capsys, monkeypatch):
    def broken(cell, config_file, changes, runs):
        return python(runs, cell.name, "raise SystemExit(1)")

    monkeypatch.setattr(sweep, "job", broken)
    base = ["--config", str(CONFIG), "--out", str(tmp_path / "o"), "--runs", str(tmp_path / "r")]
    assert sweep.main([*base, "--methods", "dce"]) == 1
    assert f"failed: {DCE.name}, see {tmp_path / 'r' / DCE.name}.log" in capsys.readouterr().out


def test_the_table_is_followed_by_differences_where_rows_share_seeds():
    rows = [
        fixture.result(method=method, seed=seed) for method in ("dce", "dense") for seed in (0, 1)
    ]
    above, heading, below = sweep.text(rows).split("\n\n")
    assert above.startswith("| data set") and above.count("\n") == 3
    assert heading == paired.heading("dce") and below == paired.table(
        pairs.comparisons(rows, "dce")
    )
    assert "\n\n" not in sweep.text(rows[:2])


def test_picture_has_a_point_per_row_with_its_spread():
    results = [
        *(fixture.result(seed=s, keep=k) for k in (0.25, 0.5) for s in (0, 1)),
        fixture.result(method="dense", keep=1.0, macs_compact=2_000_000),
    ]
    left, right = pareto.pareto(results).axes
    points = {c.get_label(): c.lines[0].get_xydata().tolist() for c in left.containers}
    assert points == {
        "dense": [[2_000_000, 0.96]],
        "dce": [[520_000, 0.965], [520_000, 0.965]],
    }
    assert {c.get_label(): len(c.lines[0].get_xdata()) for c in right.containers} == {
        "dense": 1,
        "dce": 2,
    }
    spread = 0.01 / 2**0.5
    low, high = left.get_ylim()
    assert low < 0.96 and high > 0.965 + spread and left.get_xlim() == (0, 1.08 * 2_000_000)
    with pytest.raises(ValueError, match="no results to draw"):
        pareto.pareto([])


def test_only_what_costs_alike_moves_aside():
    results = [
        fixture.result(method="dense", macs_compact=1_000_000),
        fixture.result(method="l1", macs_compact=500_000),
        fixture.result(method="scratch", macs_compact=501_000),
        fixture.result(method="dce", macs_compact=502_000),
    ]
    lines = pareto._lines(results)
    places = dict(
        zip([line.method for line in lines], pareto._beside(lines, "macs_compact"), strict=True)
    )
    assert places["dense"] == 0 and sorted(places.values()) == [-1, 0, 0, 1]
    left, _ = pareto.pareto(results).axes
    assert left.get_xlabel().endswith("\n(equal costs are drawn side by side)")
    alone, _ = pareto.pareto(results[:2]).axes
    assert "\n" not in alone.get_xlabel()


@pytest.mark.parametrize("dearest", [100_000, 3_000_000])
def test_what_moves_aside_stays_inside_the_picture(dearest):
    methods = ["slimming", "scratch", "subset", "random", "l1", "taylor", "fisher", "dce"]
    results = [fixture.result(method=method, macs_compact=100_000) for method in methods]
    drawn = pareto.pareto([*results, fixture.result(method="dense", macs_compact=dearest)])
    drawn.canvas.draw()
    panel = drawn.axes[0]
    frame = panel.get_window_extent()
    for mark in (container.lines[0] for container in panel.containers):
        ((at, _),) = mark.get_transform().transform(mark.get_xydata())
        assert frame.x0 < at < frame.x1, mark


def test_many_lines_beside_each_other_do_not_stretch_the_axis():
    many = [fixture.result(method=f"method{number}") for number in range(90)]
    low, high = pareto.pareto(many).axes[0].get_xlim()
    assert -3 * 520_000 < low <= 0 and 520_000 < high < 3 * 520_000


def test_lines_of_one_method_are_told_apart_by_settings_other_than_the_budget():
    def run(keep, **settings):
        own = {"method": "dce", "seed": 0, "macs": keep, "epochs": 10 / keep, **settings}
        return fixture.result(keep=keep, config=own)

    rows = [run(keep, alpha=alpha) for keep in (0.25, 0.5) for alpha in (0.1, 0.2)]
    lines = pareto.pareto([*rows, run(0.75, alpha=0.1)]).axes[0].containers
    lengths = {line.get_label(): len(line.lines[0].get_xdata()) for line in lines}
    assert lengths == {"dce, alpha=0.1": 3, "dce, alpha=0.2": 2}


def test_no_two_lines_look_alike():
    methods = ["dense", "taylor", "fisher", "l1", "compensated", "scratch", "dce", "dce", "dce"]
    looks = pareto._looks(methods)
    assert len(set(looks)) == len(methods)
    assert [looks[place][0] for place in (0, 5, 6)] == [
        pareto.COLOURS[name] for name in ("dense", "scratch", "dce")
    ]
    assert {looks[place][1] for place in (0, 5, 6)} == {"o"}
    assert len(pareto._looks(["taylor"] * 50)) == 50


def test_picture_leaves_out_an_accuracy_that_is_not_a_number():
    results = [fixture.result(), fixture.result(keep=0.25, test_accuracy=math.nan)]
    low, high = pareto.pareto(results).axes[0].get_ylim()
    assert low < 0.96 < high
    nothing = pareto.pareto([fixture.result(test_accuracy=math.nan)])
    assert all(map(math.isfinite, nothing.axes[0].get_ylim()))
