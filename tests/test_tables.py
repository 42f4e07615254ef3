"""Tables of results and benchmarks, and generated blocks in documents."""

import io
import json
import math
from pathlib import Path

import pytest
import report_fixture as fixture
from rich.console import Console

from experiments import markers, paired, records, report, summary, tables


def save(path, value) -> None:
    path.write_text(json.dumps(value))


def cells(table: str) -> list[list[str]]:
    return [[c.strip() for c in line.strip("|").split(" | ")] for line in table.splitlines()]


def test_result_table_pools_seeds():
    runs = [fixture.result(seed=s) for s in (2, 0, 1)] + [fixture.result(method="dense", keep=1.0)]
    heads, _, dense, dce = cells(tables.result_table(runs))
    assert "settings" not in heads
    assert dense[2:5] == ["dense", "1", "96.00 % (1)"]
    assert dce[:5] == ["digits", "vgg-digits", "dce", "0.5", "97.00 ± 1.00 % (3)"]
    assert dce[5:] == [*("95.00 ± 0.00 %", "31.00 k", "520.00 k", "0.300", "7.2 / 6.5", "20.0")]


def test_result_table_keeps_other_settings_apart():
    runs = [fixture.result(select_every=r, seed=s) for r in (1, 10) for s in (0, 1)]
    heads, _, first, second = cells(tables.result_table(runs))
    assert heads[4] == "settings"
    assert {first[4], second[4]} == {"select_every=1", "select_every=10"}
    assert "(2)" in first[5] and "(2)" in second[5]


@pytest.mark.parametrize(
    ("method", "field", "pooled"),
    [
        ("dce", "scale", True),  # its budget is uniform
        ("dce", "sparsity", True),
        ("dce", "contest", False),
        ("scratch", "contest", True),
        ("scratch", "commit", True),
        ("scratch", "learning_rate", False),
        ("slimming", "commit", True),
        ("slimming", "prune_until", False),
        ("slimming", "penalty", False),
        ("taylor", "sparsity", True),
        ("taylor", "distill", False),
        ("dce", "rounds", True),
        ("scratch", "rounds", True),
        ("slimming", "sparsity", False),
        ("slimming", "alpha", True),
        ("dense", "explore_keep", True),
    ],
)
def test_result_table_pools_over_fields_that_a_run_never_reads(method, field, pooled):
    runs = [fixture.result(method=method, seed=seed) for seed in (0, 1)]
    for run, value in zip(runs, (0.125, 0.25), strict=True):
        run["config"] = {**run["config"], field: value}
    assert len(cells(tables.result_table(runs))) == (3 if pooled else 4)


def test_result_table_names_no_setting_that_a_rival_never_reads():
    learned = fixture.result(allocation="global")
    _, _, *rows = cells(tables.result_table([fixture.result(), learned]))
    assert sorted(row[4] for row in rows) == ["allocation=global", "allocation=uniform"]


def test_result_table_shows_missing_figures_as_dashes():
    run = fixture.result(
        method="scratch", step_ms_median={"explore": None, "commit": 3.0}, peak_bytes=None
    )
    assert cells(tables.result_table([run | {"keep_requested": None}]))[2][-2:] == ["- / 3.0", "-"]


def test_result_table_has_minutes_where_a_result_knows_them():
    known, unknown = fixture.result(train_s=150.0), fixture.result(method="scratch")
    assert "training, minutes" not in tables.result_table([unknown])
    heads, _, *rows = cells(tables.result_table([known, unknown]))
    column = heads.index("training, minutes")
    assert sorted(row[column] for row in rows) == ["-", "2.5"]
    _, _, row = cells(tables.result_table([known, fixture.result(seed=1)]))
    assert row[column] == "2.5 (1 of 2)"


def test_result_table_says_where_an_accuracy_is_not_a_number():
    runs = [fixture.result(test_accuracy=math.nan), fixture.result(seed=1)]
    assert "| nan ± nan % (2) | 95.00 ± 0.00 % |" in tables.result_table(runs)


def test_result_table_refuses_a_repeated_seed_and_nothing():
    with pytest.raises(ValueError, match=r"seeds \[0, 0\] of dce on digits"):
        tables.result_table([fixture.result(), fixture.result()])
    with pytest.raises(ValueError, match="no results"):
        tables.result_table([])


def benchmark(**changes) -> dict:
    row = {
        "network": "vgg16",
        "batch": 64,
        "variant": "slab",
        "keep": 0.5,
        "select_every": 10,
        "ms_median": 293.04,
        "ms_min": 290.0,
        "ms_max": 301.5,
        "vs_narrow": 1.031,
        "vs_dense": 0.37,
        "temp_bytes": 167 * 2**20,
        "compile_s": 12.34,
    }
    return {"device": "cpu", "versions": {"jax": "0.10.2"}, "rows": [row | changes]}


def test_benchmark_table_writes_rows_and_dashes():
    table = tables.benchmark_table(benchmark())
    assert table.startswith("vgg16, batch 64, on cpu (jax 0.10.2):\n\n| variant |")
    assert "| slab | 0.5 | 10 | 293.0 [290.0, 301.5] | - | 1.03 | 0.37 | 167 | 12.3 |" in table
    ends = {"vs_narrow_low": 1.0, "vs_narrow_high": 1.06, "images_per_s": 218.4}
    table = tables.benchmark_table(benchmark(peak_vs_narrow=1.004, **ends))
    assert "| 218 | 1.03 [1.00, 1.06] | 0.37 | 167 (1.00x) |" in table
    blank = dict.fromkeys(("keep", "select_every", "vs_narrow", "temp_bytes", "compile_s"))
    table = tables.benchmark_table(benchmark(variant="dense", vs_dense=1.0, **blank))
    assert "| dense | - | - | 293.0 [290.0, 301.5] | - | - | 1.00 | - | - |" in table
    with pytest.raises(ValueError, match="no rows"):
        tables.benchmark_table(benchmark() | {"rows": []})


def test_numbers_are_short():
    assert [summary.si(n) for n in (0, 999, 14_724_042, 313.2e6)] == [
        *("0", "999", "14.72 M", "313.20 M")
    ]
    assert summary.percent(None) == "-" and summary.percent(0.5, 0) == "50 %"
    assert summary.markdown(["a"], [["x|y"]], left=1) == "| a |\n| :-- |\n| x\\|y |"


def test_print_result_shows_both_columns():
    console = Console(width=100, record=True, file=io.StringIO())
    tables.print_result(fixture.result(), console)
    text = console.export_text()
    assert "96.00 %" in text and "120.00 k" in text and "dce: vgg-digits on digits" in text


# Files and documents


def test_gather_finds_results_and_passes_over_other_files(tmp_path, monkeypatch):
    run = fixture.workdir(tmp_path / "a")
    save(tmp_path / "b.json", fixture.result(seed=1))
    save(tmp_path / "bench.json", benchmark())
    monkeypatch.chdir(tmp_path)
    found = records.gather([tmp_path, run / "result.json", Path("a")])
    assert [r["seed"] for r in found.results] == [0, 1] and len(found.benchmarks) == 1
    with pytest.raises(ValueError, match=r"layers\.json holds list"):
        records.gather([run / "layers.json"])


def test_gather_refuses_what_it_cannot_read(tmp_path):
    with pytest.raises(ValueError, match="no result and no benchmark"):
        records.gather([tmp_path])
    with pytest.raises(FileNotFoundError, match=r"gone\.json does not exist"):
        records.gather([tmp_path / "gone.json"])
    save(tmp_path / "bench.json", benchmark() | {"rows": [{}]})
    with pytest.raises(ValueError, match=r"bench\.json, row 0 has no network"):
        records.gather([tmp_path])


@pytest.fixture
def readme(tmp_path):
    (tmp_path / "results").mkdir()
    save(tmp_path / "results" / "r.json", fixture.result())
    save(tmp_path / "bench.json", benchmark())
    path = tmp_path / "README.md"
    path.write_text(
        "# Title\n\n<!-- table:digits results -->\nold\n<!-- /table:digits -->\n\nbetween\n\n"
        "```\n<!-- table:example x -->\n```\n"
        "<!-- table:steps bench.json -->\n<!-- /table:steps -->\nend\n"
    )
    return path


def test_readme_is_written_checked_and_stale(readme, capsys):
    arguments = ["--readme", str(readme)]
    before = readme.read_text()
    assert tables.main([*arguments, "--check"]) == 1 and readme.read_text() == before
    assert "write them with" in capsys.readouterr().err
    assert tables.main(arguments) == 0
    after = readme.read_text()
    assert "old" not in after and "96.00 % (1)" in after and "| slab |" in after
    assert after.startswith("# Title\n\n<!-- table:digits results -->\n\n| data set")
    assert "\n```\n<!-- table:example x -->\n```\n" in after and after.endswith("-->\nend\n")
    assert tables.main([*arguments, "--check"]) == 0
    save(readme.parent / "results" / "r.json", fixture.result(seed=1))
    assert tables.main([*arguments, "--check"]) == 1


def test_one_marker_alone_is_written_and_takes_new_paths(readme):
    arguments = ["--readme", str(readme), "--marker", "digits"]
    path = readme.parent / "my results" / "s.json"
    path.parent.mkdir()
    save(path, fixture.result(seed=1))
    assert tables.main([str(path), *arguments]) == 0
    text = readme.read_text()
    assert "<!-- table:digits 'my results/s.json' -->" in text and "97.00 % (1)" in text
    assert "| slab |" not in text
    assert tables.main([*arguments, "--check"]) == 0


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("plain", ValueError, "its tables: none"),
        ("<!-- table:a . -->\n", ValueError, "'table:a' on line 1 is not closed"),
        ("<!-- table:a -->\n<!-- /table:a -->", ValueError, "'table:a' names no files"),
        ("<!-- table:a no -->\n<!-- /table:a -->", FileNotFoundError, "does not exist"),
        ("<!-- table:a . -->\n<!-- table:b . -->\n<!-- /table:a -->", ValueError, "not closed"),
        ("<!-- table:a . -->\n<!-- /table:a -->\n" * 2, ValueError, "uses a marker twice"),
    ],
)
def test_markers_refuse(tmp_path, text, error, message):
    with pytest.raises(error, match=message):
        markers.rewrite(text, {"table": lambda _: "made"}, base=tmp_path)


def test_markers_refuse_an_unknown_name(tmp_path):
    text = "<!-- table:a . -->\n<!-- /table:a -->"
    with pytest.raises(ValueError, match="no table 'b'; its tables: a"):
        markers.rewrite(text, {"table": lambda _: "made"}, base=tmp_path, only="b")


def test_a_kind_of_marker_makes_its_own_block_and_shares_names(tmp_path):
    kinds = {"table": lambda paths: f"{len(paths)} rows", "paired": lambda _: "pairs"}
    text = "".join(f"<!-- {kind}:a . -->\n<!-- /{kind}:a -->\n" for kind in (*kinds, "other"))
    made = markers.rewrite(text, kinds, base=tmp_path, only="a", paths=[tmp_path, tmp_path])
    assert made == (
        "<!-- table:a . . -->\n\n2 rows\n\n<!-- /table:a -->\n"
        "<!-- paired:a . . -->\n\npairs\n\n<!-- /paired:a -->\n"
        "<!-- other:a . -->\n<!-- /other:a -->\n"
    )
    with pytest.raises(ValueError, match="'table:a' on line 1 is not closed"):
        markers.rewrite("<!-- table:a . -->\n<!-- /paired:a -->", kinds, base=tmp_path)


def test_tables_command_line_prints_and_refuses(tmp_path, capsys):
    run = fixture.workdir(tmp_path)
    assert tables.main([str(run)]) == 0
    assert "| digits | vgg-digits | dce |" in capsys.readouterr().out
    assert tables.main([str(tmp_path / "gone")]) == 2
    assert tables.main(["--readme", str(tmp_path / "gone.md")]) == 2
    assert "gone.md does not exist" in capsys.readouterr().err
    for wrong in ([], ["--check"], [str(run), "--readme", "x.md"]):
        with pytest.raises(SystemExit):
            tables.main(wrong)


@pytest.mark.parametrize("main", [tables.main, report.main, paired.main])
def test_help_teaches(main, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    assert "python -m experiments." in text and "Exit status" in text
