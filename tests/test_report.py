"""The figures and the page of a run."""

import json

import numpy as np
import pytest
import report_fixture as fixture
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from experiments import channel_plots, page, plots, records, report

pytestmark = pytest.mark.one_set

ROWS = fixture.layers(fixture.WIDTHS, keep=0.5, chosen=True)
CURVES = fixture.metrics(steps=200, block=20, commit=60)


def texts(figure: Figure) -> str:
    return "\n".join(
        item.get_text()
        for axes in figure.axes
        for item in (*axes.texts, axes.title, axes._left_title)
    )


def save(path, value) -> None:
    path.write_text(json.dumps(value))


# Figures


@pytest.mark.parametrize("select_every", [1, 3])
@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_shares_are_those_of_the_selections(select_every, discount):
    rng = np.random.default_rng(0)
    ran = np.array([rng.permutation(6) < 3 for _ in range(8)], dtype=float)
    plays, logged, bounds = np.zeros(6), [], [(0, 5), (5, 8)]
    for first, last in bounds:
        for selection in ran[first:last]:
            plays = discount * plays + selection
        logged.append({"step": last * select_every, "plays": {"g": plays.tolist()}})
    got = channel_plots.shares(logged, "g", select_every=select_every, discount=discount)
    for row, (first, last) in zip(got, bounds, strict=True):
        age = discount ** np.arange(last - first)[::-1]
        np.testing.assert_allclose(row, age @ ran[first:last] / age.sum(), atol=1e-12)


def test_shares_refuse_counts_that_fall():
    blocks = [{"step": 2, "plays": {"g": [2.0, 2.0]}}, {"step": 4, "plays": {"g": [1.0, 4.0]}}]
    with pytest.raises(ValueError, match=r"'g' fall .*cumulative.*given: 1\.0"):
        channel_plots.shares(blocks, "g")


def test_heat_map_shows_every_group_and_marks_the_chosen():
    blocks = fixture.channel_blocks(ROWS, blocks=90, steps_per_block=2)
    figure = channel_plots.channels_over_time(blocks, ROWS)
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title(loc="left") for axes in panels] == list(fixture.WIDTHS)
    for axes, row in zip(panels, ROWS, strict=True):
        heat = np.asarray(axes.images[0].get_array())
        assert heat.shape[0] <= channel_plots.MAX_TIME_ROWS and heat.shape[1] == row["width"]
        # 90 blocks become rows of 3: one with the first three blocks, down to the last three.
        total = 180 * row["budget"]
        assert np.isclose(heat.sum() * 6, total)
        assert axes.get_yticklabels()[-1].get_text() == "180"
        strip = axes.collections[0]
        starts = sorted(path.vertices[:, 0].min() for path in strip.get_paths())
        np.testing.assert_allclose(starts, np.array(row["chosen"]) - 0.5)
        assert to_hex(strip.get_facecolor()[0]) == plots.ORANGE.lower()


def test_heat_map_needs_blocks():
    with pytest.raises(ValueError, match="no blocks"):
        channel_plots.channels_over_time([], ROWS)


def test_means_are_sorted_and_unplayed_arms_stand_apart():
    layer = {"group": "g", "width": 4, "chosen": [2, 3]}
    block = {
        "plays": {"g": [0, 5, 5, 5]},
        "means": {"g": [0.0, 0.2, 0.9, 0.4]},
        "radius": {"g": [1e9, 0.1, 0.1, 0.1]},
    }
    axes = channel_plots.channel_means(block, [layer]).axes[0]
    _, others, chosen, unplayed = axes.collections[:4]
    np.testing.assert_allclose(np.asarray(chosen.get_offsets()), [[0, 0.9], [1, 0.4]])
    np.testing.assert_allclose(np.asarray(others.get_offsets()), [[2, 0.2]])
    np.testing.assert_allclose(np.asarray(unplayed.get_offsets()), [[3, 0.0]])
    band = np.concatenate([path.vertices for path in axes.collections[0].get_paths()])
    assert np.isclose(band[:, 1].max(), 1.0) and band[:, 0].max() < 3


def test_learning_curves_mark_the_commit_and_the_tests():
    tests = {"compact": 0.961, "raw": 0.958}
    figure = plots.learning_curves(CURVES, commit_step=60, test_accuracies=tests)
    assert "committed at step 60" in texts(figure)
    assert "96.1 %  compact" in texts(figure) and "95.8 %  raw" in texts(figure)
    low, high = figure.axes[1].get_ylim()
    first, second = (text.get_position()[1] for text in figure.axes[1].texts)
    assert abs(first - second) > 0.08 * (high - low)
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [m["loss"] for m in CURVES])


@pytest.mark.parametrize("commit_step", [None, 0, 200])
def test_learning_curves_without_a_commit_mark_none(commit_step):
    figure = plots.learning_curves(CURVES, commit_step=commit_step, test_accuracies={})
    assert "commit" not in texts(figure) and len(figure.axes[0].lines) == 1


def test_learning_curves_draw_nulls_as_gaps_and_need_metrics():
    rows = [CURVES[0] | {"loss": None, "accuracy": None}, *CURVES[1:]]
    figure = plots.learning_curves(rows, commit_step=None, test_accuracies={})
    assert np.isnan(figure.axes[0].lines[0].get_ydata()[0])
    with pytest.raises(ValueError, match="no metrics"):
        plots.learning_curves([], commit_step=None, test_accuracies={})


def test_labels_are_spread_in_order_and_stay_inside():
    heights = plots.spread([0.99, 1.0, 0.98, 0.1], gap=0.1, low=0.0, high=1.0)
    assert np.allclose(heights, [0.9, 1.0, 0.8, 0.1])


def test_layer_bars_are_the_layers_numbers():
    figure = plots.layer_costs(ROWS)
    pairs = (("width", "budget"), ("macs_full", "macs_compact"), ("params_full", "params_compact"))
    for axes, keys in zip(figure.axes, pairs, strict=True):
        for bars, key in zip(axes.containers, keys, strict=True):
            assert [bar.get_height() for bar in bars] == [row[key] for row in ROWS]


# The page


def test_report_holds_figures_table_config_and_command(tmp_path):
    run = fixture.workdir(tmp_path / "run")
    path = report.write(run)
    html = path.read_text()
    assert path == run / "report.html"
    names = {"learning_curves", "layers", "channels", "means"}
    assert {p.stem for p in (run / "plots").iterdir()} == names
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in (run / "plots").iterdir())
    assert html.count("data:image/png;base64,") == 4
    assert 'src="http' not in html and "<script" not in html
    for text in ("96.00 % test accuracy", "74.0 % fewer MACs", "74.2 % fewer parameters"):
        assert text in html
    for text in ("30.0 % of the dense", "0.10.2", "--config.alpha=0.1", "fused 1, inner 1"):
        assert text in html
    assert "a&lt;b &amp; c" in html and "a<b" not in html
    assert "NaN or infinite" not in html


@pytest.mark.parametrize("method", ["dense", "scratch", "subset"])
def test_report_says_why_it_shows_no_channels(tmp_path, method):
    html = report.write(fixture.workdir(tmp_path, method=method)).read_text()
    assert html.count("<img") == 2 and "does not choose channels" in html
    assert "exploration, before" not in html


def test_report_of_a_bandit_run_without_blocks_says_so(tmp_path):
    run = fixture.workdir(tmp_path)
    (run / "channels.jsonl").unlink()
    assert "no block of exploration was logged" in report.write(run).read_text()


def test_report_counts_bad_rewards_and_prefers_the_given_command(tmp_path):
    run = fixture.workdir(tmp_path, command=["python", "-m", "experiments.train", "--x=a b"])
    rows = records.read_lines(run / "metrics.jsonl")
    fixture.write_lines(run / "metrics.jsonl", [rows[0] | {"bad_rewards": 7}, *rows[1:]])
    html = report.write(run).read_text()
    assert "7 rewards were NaN or infinite" in html
    assert "experiments.train &#x27;--x=a b&#x27;" in html


def test_dense_headline_and_nested_config():
    line = page.headline(fixture.result(method="dense"))
    assert "at full width" in line and "120.00 k parameters" in line
    assert page.flatten({"a": {"b": 1, "c": {}}, "d": 2}) == [("a.b", 1), ("a.c", {}), ("d", 2)]


def test_report_refuses_channels_of_another_run(tmp_path):
    run = fixture.workdir(tmp_path)
    save(run / "layers.json", [ROWS[0], ROWS[1] | {"width": 99}])
    with pytest.raises(ValueError, match=r"channels.jsonl, line 1: plays .*'conv2' .*12 .*99"):
        report.write(run)
    save(run / "layers.json", [ROWS[0] | {"group": "other"}])
    with pytest.raises(ValueError, match="'other' holds nothing"):
        report.write(run)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("result.json", "{", r"result\.json is not JSON"),
        ("result.json", "[]", r"result\.json holds list"),
        ("result.json", "{}", r"result\.json has no method"),
        ("layers.json", "[]", r"layers\.json must hold a list"),
        ("layers.json", "[{}]", r"layers\.json, entry 0 has no group"),
        ("metrics.jsonl", "", r"metrics\.jsonl.* is empty"),
        ("metrics.jsonl", '{"step": 1}\n', r"line 1 has no steps"),
        ("channels.jsonl", '{"st', r"channels\.jsonl, line 1 is not JSON"),
    ],
)
def test_report_names_a_corrupt_file(tmp_path, capsys, name, content, message):
    run = fixture.workdir(tmp_path)
    (run / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        report.write(run)
    assert report.main([str(run)]) == 2
    assert name in capsys.readouterr().err


@pytest.mark.parametrize("name", ["result.json", "metrics.jsonl", "layers.json"])
def test_report_names_a_missing_file(tmp_path, name):
    run = fixture.workdir(tmp_path)
    (run / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name} does not exist.*--workdir"):
        report.write(run)
    with pytest.raises(FileNotFoundError, match="not a directory"):
        report.write(tmp_path / "nowhere")


def test_report_command_line_writes_the_page(tmp_path, capsys):
    run = fixture.workdir(tmp_path, method="scratch")
    assert report.main([str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
