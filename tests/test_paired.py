"""Paired comparisons: intervals against SciPy's, which pairs there are, what the table says."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import report_fixture as fixture
from scipy import stats

from experiments import paired, pairs, tables


def rows(method, accuracies, **changes):
    """Runs of one row: seed -> test accuracy."""
    return [
        fixture.result(method=method, seed=seed, test_accuracy=accuracy, **changes)
        for seed, accuracy in accuracies.items()
    ]


def save(folder: Path, results) -> list[str]:
    for i, result in enumerate(results):
        (folder / f"{i}.json").write_text(json.dumps(result))
    return [str(folder)]


def lines(results, method="dce") -> list[list[str]]:
    """Cells of the table's lines, from the column of the subject on."""
    text = paired.table(pairs.comparisons(results, method))
    return [[c.strip() for c in line.strip("|").split(" | ")][2:] for line in text.split("\n")[2:]]


@pytest.mark.parametrize("count", [2, 3, 5, 40])
def test_the_interval_is_that_of_the_paired_t_test(count):
    draw = np.random.default_rng(count)
    ours, theirs = draw.uniform(0.5, 0.9, (2, count))
    seeds = draw.permutation(1000)[:count].tolist()
    row = rows("dce", dict(zip(seeds, ours.tolist(), strict=True)))
    minus = rows("scratch", dict(zip(seeds, theirs.tolist(), strict=True)))
    found = pairs.compare(row, minus[::-1])
    expected = stats.ttest_rel(100 * ours, 100 * theirs).confidence_interval(0.95)
    np.testing.assert_allclose(found.interval, expected, rtol=1e-10)
    np.testing.assert_allclose(found.mean, 100 * np.mean(ours - theirs), rtol=1e-10)


def test_pairs_are_the_seeds_that_both_rows_have():
    row = rows("dce", {4: 0.9, 0: 0.8, 7: 0.1}, train_macs=300, keep=0.5)
    minus = rows("scratch", {9: 0.2, 0: 0.7, 4: 0.85}, train_macs=200, keep=0.4)
    found = pairs.compare(row, minus)
    assert found.seeds == (0, 4)
    np.testing.assert_allclose(found.differences, [10, 5])
    assert found.train_macs_ratio == 1.5 and (found.row.keep, found.minus.keep) == (0.5, 0.4)
    assert pairs.compare(row, rows("scratch", {1: 0.9})) is None


def at(widths, **changes):
    """A run of scratch at given widths, with their keep."""
    words = ",".join(f"{group}={width}" for group, width in widths.items())
    found = fixture.result(method="scratch", widths=widths, keep_requested=None, **changes)
    return found | {"config": found["config"] | {"widths": words}}


def test_runs_at_the_widths_that_each_seed_learned_share_a_row():
    learned = [{"conv1": 4, "conv2": 7}, {"conv1": 5, "conv2": 5}]
    own = [
        fixture.result(seed=seed, widths=widths, keep=0.5 + seed / 100, allocation="global")
        | {"keep_requested": 0.5, "test_accuracy": 0.9}
        for seed, widths in enumerate(learned)
    ]
    theirs = [
        at(widths, seed=seed, keep=0.5 + seed / 100, test_accuracy=0.8 + seed / 10)
        for seed, widths in enumerate(learned)
    ]
    (row,) = lines([*own, *theirs])
    assert row[:3] == ["dce 0.505", "scratch 0.505, widths=of dce", "2"]
    assert row[3].startswith("+5.00 [")
    # Another seed's widths, or hand-made ones, are settings as any other.
    swapped = [at(learned[1 - seed], seed=seed) for seed in (0, 1)]
    assert [row[2] for row in lines([*own, *swapped])] == ["1", "1"]
    assert [row[1] for row in lines([*own, *swapped])] == [
        "scratch 0.5, widths=conv1=4,conv2=7",
        "scratch 0.5, widths=conv1=5,conv2=5",
    ]


def test_every_other_row_of_the_same_task_is_taken_from_each_row_of_the_subject():
    results = [
        *rows("dce", {0: 0.9, 1: 0.9}),
        *rows("dce", {0: 0.8, 1: 0.8}, keep=0.25, train_macs=150_000_000),
        *rows("dense", {0: 0.95, 1: 0.93}, keep=1.0, train_macs=1_000_000_000),
        *rows("slimming", {1: 0.7, 2: 0.9}),
        *rows("scratch", {5: 0.7}),
        *rows("scratch", {0: 0.7, 1: 0.7}, dataset="mnist"),
        *rows("scratch", {0: 0.7, 1: 0.7}, network="vgg16"),
    ]
    assert lines(results) == [
        ["dce 0.5", "dense 1", "2", "-4.00 [-16.71, +8.71]", "0.300"],
        ["dce 0.5", "slimming 0.5", "1", "+20.00 (one pair: no interval)", "1.000"],
        ["dce 0.5", "dce 0.25", "2", "+10.00 [+10.00, +10.00]", "2.000"],
        ["dce 0.25", "dense 1", "2", "-14.00 [-26.71, -1.29]", "0.150"],
        ["dce 0.25", "slimming 0.5", "1", "+10.00 (one pair: no interval)", "0.500"],
    ]
    [(*_, difference, ratio)] = lines(results, "slimming")[:1]
    assert (difference, ratio) == ("-23.00 (one pair: no interval)", "0.300")


def test_the_subject_is_dce_or_the_last_method_of_a_table():
    for methods, subject in [
        (["dce", "dense", "taylor"], "dce"),
        (["compensated", "dense", "l1"], "compensated"),
        (["dense", "own"], "dense"),  # of methods that a table does not know nothing is claimed
        ([], "dce"),
    ]:
        assert pairs.subject([fixture.result(method=method) for method in methods]) == subject


def test_a_table_without_dce_compares_its_last_method(tmp_path, capsys):
    results = [*rows("l1", {0: 0.8, 1: 0.7}), *rows("compensated", {0: 0.9, 1: 0.9})]
    assert paired.main(save(tmp_path, results)) == 0
    assert "| compensated 0.5 | l1 0.5 |" in capsys.readouterr().out
    assert paired.main([*save(tmp_path, results), "--method", "l1"]) == 0
    assert "| l1 0.5 | compensated 0.5 |" in capsys.readouterr().out


def test_equal_differences_have_an_interval_of_no_width():
    row, minus = rows("dce", {0: 0.5, 1: 0.75}), rows("scratch", {0: 0.5, 1: 0.75})
    assert pairs.compare(row, minus).interval == (0.0, 0.0)
    assert pairs.interval([0.5]) is None
    tiny = [*rows("dce", {0: 0.5 - 1e-6}), *rows("scratch", {0: 0.5})]
    assert lines(tiny)[0][3] == "+0.00 (one pair: no interval)"


def settings(**changes):
    return fixture.result()["config"] | changes


def test_settings_that_differ_stand_beside_the_methods():
    results = [
        *rows("dce", {0: 0.9}, select_every=1, config=settings(name="a")),
        *rows("dce", {0: 0.8}, select_every=10, config=settings(name="a", alpha=1.0)),
        *rows("scratch", {0: 0.7}, config=settings(name="b", epochs=5.0, alpha=0.5)),
        *rows("random", {0: 0.7}, config=settings(name="a")),
    ]
    one, ten = "dce 0.5, alpha=0.1, select_every=1", "dce 0.5, alpha=1.0, select_every=10"
    # What only selection reads cannot set scratch apart, nor can a config file's name.
    assert [line[:2] for line in lines(results)] == [
        [f"{one}, epochs=20.0", "scratch 0.5, epochs=5.0"],
        [one, "random 0.5"],
        [one, ten],
        [f"{ten}, epochs=20.0", "scratch 0.5, epochs=5.0"],
        [ten, "random 0.5, alpha=0.1, select_every=1"],
    ]


def test_devices_are_rows_of_their_own_and_named():
    results = [
        *rows("dce", {0: 0.9, 1: 0.9}),
        *rows("scratch", {0: 0.8, 1: 0.8}),
        *rows("scratch", {0: 0.7, 1: 0.7}, device="gpu"),
    ]
    assert [line[:2] for line in lines(results)] == [
        ["dce 0.5", "scratch 0.5, device=cpu (2 cores)"],
        ["dce 0.5, device=cpu (2 cores)", "scratch 0.5, device=gpu"],
    ]


def test_an_accuracy_that_is_not_a_number_leaves_no_difference(tmp_path, capsys):
    results = [*rows("dce", {0: 0.9, 1: math.nan, 2: 0.9}), *rows("scratch", {0: 0.8, 1: 0.8})]
    results += rows("random", {0: 0.7, 2: 0.7})
    assert lines(results)[0][2:4] == ["2", "none: accuracy is NaN, seed 1"]
    assert lines(results)[1][2:4] == ["2", "+20.00 [+20.00, +20.00]"]
    file = tmp_path / "found.json"
    assert paired.main([*save(tmp_path, results), "--json", str(file)]) == 0
    first, second = json.loads(file.read_text())
    assert (first["differences"][1], first["mean"], first["interval"]) == (None, None, None)
    assert first["minus"] == {"method": "scratch", "keep": 0.5, "settings": {}}
    assert second["seeds"] == [0, 2] and second["interval"][0] == pytest.approx(20)
    # The list beside its results does not get in the way of reading them again.
    capsys.readouterr()
    assert paired.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == paired.table(pairs.comparisons(results, "dce")) + "\n"


def test_bad_input_is_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"seeds \[0, 0\] of dce"):
        pairs.comparisons([fixture.result(), fixture.result()], "dce")
    folder = save(tmp_path, rows("dce", {0: 0.9, 1: 0.9}))
    for method, message in (("dce", "no row of method 'dce' shares"), ("dc", "'dc'.*are of: dce")):
        with pytest.raises(ValueError, match=message):
            pairs.required(rows("dce", {0: 0.9}), method)
        assert paired.main([*folder, "--method", method]) == 2
        assert capsys.readouterr().err.startswith("error: nothing to compare")
    assert paired.main([str(tmp_path / "gone")]) == 2


def test_a_document_holds_the_table_between_its_markers(tmp_path):
    results = [*rows("dce", {0: 0.9, 1: 0.8}), *rows("scratch", {0: 0.8, 1: 0.8})]
    (tmp_path / "results").mkdir()
    save(tmp_path / "results", results)
    readme = tmp_path / "README.md"
    kinds = ("table", "paired")
    readme.write_text("".join(f"<!-- {k}:a results -->\n<!-- /{k}:a -->\n" for k in kinds))
    assert tables.main(["--readme", str(readme)]) == 0
    table = paired.table(pairs.comparisons(results, "dce"))
    assert f"<!-- paired:a results -->\n\n{table}\n\n<!-- /paired:a -->\n" in readme.read_text()
    assert tables.main(["--readme", str(readme), "--check"]) == 0
    save(tmp_path / "results", rows("dce", {0: 0.9, 1: 0.9}))
    assert tables.main(["--readme", str(readme), "--check"]) == 1
