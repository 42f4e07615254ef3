"""When a selection has settled: distances of masks, the rule, the command and its table."""

import json

import numpy as np
import pytest
import report_fixture as fixture
from hypothesis import given
from hypothesis import strategies as st

from experiments import settling, tables

PLANS = [
    {"step": step, "widths": {"conv1": a, "conv2": b}}
    for step, a, b in ((0, 4, 6), (40, 3, 9), (60, 1, 9), (80, 1, 9))
]


def block(step, means, plays=None):
    plays = {g: [1.0] * len(v) for g, v in means.items()} | (plays or {})
    radius = {g: [0.1] * len(v) for g, v in means.items()}
    return {"step": step, "plays": plays, "means": means, "radius": radius}


def explored(path, blocks, **changes):
    """A finished run of `dce` on two groups, eight and twelve channels wide, that logged this."""
    workdir = fixture.workdir(path, **changes)
    fixture.write_lines(workdir / "channels.jsonl", blocks)
    return workdir


def rising(width, best):
    """Means of a group that rise along `width` channels, but for the ones in `best`."""
    return [2.0 if i in best else i / width for i in range(width)]


def test_a_mask_holds_the_best_means_and_the_never_played_come_last():
    means = {"a": [0.3, 0.9, 0.3, 0.0], "b": [-0.5, 0.0]}
    found = settling.mask(block(1, means, {"b": [1.0, 0.0]}), {"a": 2, "b": 1})
    assert found.tolist() == [True, True, False, False, True, False]


@given(st.lists(st.floats(0, 1), max_size=12), st.integers(1, 4), st.floats(0.05, 0.95))
def test_settled_is_the_first_end_of_a_row_below_the_threshold(distances, times, threshold):
    ends = [
        i
        for i in range(times - 1, len(distances))
        if max(distances[i - times + 1 : i + 1]) < threshold
    ]
    assert settling.settled(distances, threshold, times) == (ends[0] if ends else None)


def test_a_run_is_followed_from_mask_to_mask(tmp_path):
    still = {"conv1": rising(8, ()), "conv2": rising(12, ())}
    one = still | {"conv1": rising(8, (0,))}  # one channel joins, another leaves: two of 20 differ
    logged = [block(20 * (i + 1), means) for i, means in enumerate((still, one, one, still, still))]
    found = settling.follow(explored(tmp_path / "run", logged), threshold=0.05, times=1)
    assert found["distances"] == {"40": 0.1, "60": 0.0, "80": 0.1, "100": 0.0}
    assert (found["first_mask"], found["settled_at"]) == (20, 60)
    assert settling.follow(tmp_path / "run", 0.05, 2)["settled_at"] is None
    assert settling.follow(tmp_path / "run", 0.11, 4)["settled_at"] == 100
    assert {"config", "device", "versions", "test_accuracy"} <= set(found)


def test_learned_budgets_are_followed_from_plan_to_plan(tmp_path):
    workdir = explored(tmp_path / "run", [], allocation="global", plans=PLANS)
    found = settling.follow(workdir, threshold=0.1, times=1)
    # 3 and 1 channels differ by a half of their sum, 9 and 9 by nothing; step 0 was not learned.
    assert found["distances"] == {"60": 0.25, "80": 0.0}
    assert (found["first_mask"], found["settled_at"]) == (40, 80)


def test_the_plans_of_a_real_run_are_followed(lab):
    _, workdir = lab.run(
        method="dce", steps=20, commit=0.5, block=2, select_every=2, allocation="global", plans=5
    )
    assert list(settling.follow(workdir)["distances"]) == ["4", "6", "8", "10"]


def test_the_command_writes_what_its_marker_shows(tmp_path, capsys):
    means = {"conv1": rising(8, ()), "conv2": rising(12, ())}
    logged = [block(step, means) for step in (20, 40, 60)]
    for seed, method in ((0, "dce"), (1, "dce"), (0, "random")):
        explored(tmp_path / f"{method}{seed}", logged, method=method, seed=seed)
    words = [str(tmp_path / name) for name in ("dce0", "dce1", "random0")]
    path = tmp_path / "settling.json"
    assert settling.main([*words, "--json", str(path), "--times", "2"]) == 0
    row = "| dce | 0.000 | 0.000 | 60, 60 | 96.50 ± 0.71 % (2) |"
    assert row in capsys.readouterr().out
    command = "python -m experiments.settling runs/dce0 runs/dce1 runs/random0"
    assert _json(path)["command"] == f"{command} --threshold 0.1 --times 2"
    document = tmp_path / "page.md"
    document.write_text("<!-- settling:x settling.json -->\n<!-- /settling:x -->\n")
    assert tables.main(["--readme", str(document)]) == 0
    assert row in document.read_text() and "| random | 0.000 |" in document.read_text()


def test_the_log_of_a_real_run_ends_with_the_mask_of_its_commit(lab):
    _, workdir = lab.run(method="dce", steps=20, commit=0.5, block=2, select_every=2)
    found = settling.follow(workdir)
    assert list(found["distances"]) == ["4", "6", "8", "10"]
    budget = {row["group"]: row["budget"] for row in _json(workdir / "layers.json")}
    last = json.loads((workdir / "channels.jsonl").read_text().splitlines()[-1])
    chosen = np.concatenate(
        [np.isin(np.arange(row["width"]), row["chosen"]) for row in _json(workdir / "layers.json")]
    )
    assert settling.mask(last, budget).tolist() == chosen.tolist()


def _json(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("changes", "blocks", "message"),
    [
        ({"allocation": "global", "plans": PLANS[:2]}, 2, "learned 1 budgets, and two make a dist"),
        ({}, 1, "logged 1 blocks of exploration, and two masks make a distance"),
    ],
)
def test_runs_that_cannot_be_followed_are_refused(tmp_path, changes, blocks, message):
    means = {"conv1": rising(8, ()), "conv2": rising(12, ())}
    logged = [block(20 * (i + 1), means) for i in range(blocks)]
    with pytest.raises(ValueError, match=message):
        settling.follow(explored(tmp_path / "run", logged, **changes))


def test_wrong_words_and_files_are_told(tmp_path, capsys):
    assert settling.main([str(tmp_path / "none")]) == 2
    assert "none is not a directory" in capsys.readouterr().err
    assert settling.main([str(tmp_path), "--threshold", "0"]) == 2
    assert "--threshold is 0.0" in capsys.readouterr().err
    path = tmp_path / "other.json"
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"other\.json holds no masks that settle"):
        settling.tables([path])
    runs = [{"method": "dce", "distances": {step: 0.1}} for step in ("2", "4")]
    path.write_text(json.dumps({"threshold": 0.1, "times": 5, "runs": runs}))
    with pytest.raises(ValueError, match="logged at different steps"):
        settling.tables([path])
