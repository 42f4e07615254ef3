"""Tables of per-input execution: what is read off at equal work."""

import json

import pytest

from experiments import runtime_compare, runtime_tables


def point(share, accuracy, shuffled, rho=None):
    return {
        "macs_share": share,
        "accuracy": accuracy,
        "shuffled_accuracy": shuffled,
        "constant_accuracy": accuracy - 0.02,
        "constant_macs_share": share,
        "rank_correlation": {"rho": rho, "low": rho and rho - 0.1, "high": rho and rho + 0.1},
    }


def write(directory, name, **content):
    (directory / name).write_text(json.dumps(content))


@pytest.fixture
def results(tmp_path):
    for seed in (0, 1):
        lift = 0.01 * seed
        write(
            tmp_path,
            f"lc-{seed}.json",
            system="lc",
            network="n",
            dataset="d",
            seed=seed,
            macs_full=1000.0,
            points=[point(0.72, 0.84 + lift, 0.82, 0.3), point(0.32, 0.80 + lift, 0.76)],
        )
        for share, accuracy in ((300, 0.78), (900, 0.84)):
            write(
                tmp_path,
                f"scratch-{share}-{seed}.json",
                network="n",
                dataset="d",
                seed=seed,
                macs_compact=share,
                macs_full=1000,
                test_accuracy=accuracy,
            )
    # The same network at another width: no neighbour of these.
    wide = {"network": "n", "dataset": "d", "seed": 0, "macs_full": 4000, "macs_compact": 2000}
    write(tmp_path, "wide.json", **wide, test_accuracy=0.99)
    return tmp_path


def test_rows_are_read_off_lines_between_points(results):
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in runtime_tables.tables([results]).splitlines()[4:]
    ]
    rows = {(line[0], line[1]): line[2:] for line in lines}
    # 0.52 of 0.32..0.72 is half of the way; at 0.5: 0.80 + 0.04 * 0.45.
    assert rows["lc", "50%"][0] == "82.30 ± 0.71 % (2)"
    # Seeds 0 and 1: 0.818 and 0.828, less 0.76 + 0.06 * 0.45 = 0.787: 3.1 and 4.1.
    assert rows["lc", "50%"][1].startswith("+3.60 [-2.75, ")
    assert rows["lc", "50%"][2] == "+2.00 [+2.00, +2.00]"
    # Static at 0.5: 0.78 + 0.06 / 3 = 0.80.
    assert rows["lc", "50%"][3].startswith("+2.30 [")
    assert rows["lc", "70%"][4] == "0.30 [0.20, 0.40]" and rows["lc", "40%"][4] == "-"
    assert ("lc", "80%") not in rows  # outside of what its points span
    assert rows["static", "80%"][0] == "83.00 ± 0.00 % (2)"


def test_a_control_of_fewer_seeds_tells_how_many(results):
    for share in (300, 900):
        (results / f"scratch-{share}-1.json").unlink()
    lines = runtime_tables.tables([results]).splitlines()
    (row,) = [line.split(" | ") for line in lines if line.startswith("| lc | 50%")]
    assert row[2].endswith("(2)") and row[5] == "+1.80 (1)"
    assert not row[3].endswith(")")


def test_directories_without_results_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no result of experiments\.runtime in"):
        runtime_tables.tables([tmp_path])
    with pytest.raises(FileNotFoundError, match="does not exist: name a directory"):
        runtime_tables.tables([tmp_path / "nowhere"])


def test_outside_of_the_points_nothing_is_said():
    assert runtime_tables.at([(0.2, 0.5), (0.4, 0.7)], 0.3) == pytest.approx(0.6)
    assert runtime_tables.at([(0.2, 0.5), (0.4, 0.7)], 0.41) is None
    assert runtime_tables.at([], 0.3) is None


def test_lines_are_means_where_every_seed_has_points():
    work, accuracy = runtime_compare.mean([[(0.2, 0.5), (0.6, 0.9)], [(0.4, 0.5), (0.8, 0.7)]])
    assert (work[0], work[-1]) == (0.4, 0.6)
    assert (accuracy[0], accuracy[-1]) == pytest.approx(((0.7 + 0.5) / 2, (0.9 + 0.6) / 2))
    apart, none = runtime_compare.mean([[(0.1, 0.5), (0.2, 0.6)], [(0.4, 0.5), (0.8, 0.7)]])
    assert apart.size == none.size == 0


def test_the_comparison_prints_the_table_and_draws_every_system(results, tmp_path, capsys):
    picture = tmp_path / "compare.svg"
    assert runtime_compare.main([str(results), "--plot", str(picture)]) == 0
    assert runtime_tables.tables([results]) in capsys.readouterr().out
    figure = runtime_compare.draw([results])
    assert picture.read_text().lstrip().startswith("<?xml")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["lc (2)", "static (2)"]
    line, *dots = axes.get_lines()
    assert line.get_xdata()[0] == 0.32 and line.get_ydata()[0] == pytest.approx(0.805)
    assert list(dots[0].get_ydata()) == [0.80, 0.84]


def test_a_comparison_of_nothing_is_refused(tmp_path, capsys):
    assert runtime_compare.main([str(tmp_path)]) == 2
    assert "no result of experiments.runtime" in capsys.readouterr().err
