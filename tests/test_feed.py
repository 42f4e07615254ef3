"""The benchmark of reading: its photos, what it counts, and its command line."""

import io
import json

import numpy as np
import pytest
import runs
from PIL import Image

from experiments import data, feed, pace, synthetic, views
from experiments.batches import Source

KEYS = {"threads", "step", "rate", "pipeline", "alone", "both", "waited", "overlap", "rounds"}


def test_photos_are_like_imagenets(tmp_path):
    records = list(synthetic.photos(12, classes=7, seed=1))
    sizes = [Image.open(io.BytesIO(one["image"])).size for one in records]
    assert len(set(sizes)) > 8
    assert all(min(size) >= 250 and max(size) <= 700 for size in sizes)
    assert any(w < h for w, h in sizes) and any(w > h for w, h in sizes)
    assert 80e3 < np.mean([len(one["image"]) for one in records]) < 140e3
    assert {one["label"] for one in records} <= set(range(7))
    again = list(synthetic.photos(12, classes=7, seed=1))
    assert again == records
    assert list(synthetic.photos(1, classes=7, seed=2)) != records[:1]

    root = synthetic.write(tmp_path, "imagenet2012", {"train": records, "validation": records[:1]})
    read = data.load("imagenet2012", data_dir=root, image_size=16).train
    assert [read.read(row).image for row in range(12)] == [one["image"] for one in records]
    assert views.decode(read.read(3).image).size == sizes[3]


class Clock:
    """Seconds that pass only where somebody says so."""

    def __init__(self):
        self.now, self.waited = 0.0, 0.0

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(pace, "time", made)
    return made


def slow_source(clock, waits):
    """Gives batch i after ``waits[i]`` seconds."""

    def data_at(step):
        clock.now += waits[step]
        clock.waited += waits[step]
        return step

    return Source(None, data_at, resident=False, waited=lambda: clock.waited)


def test_only_the_middle_is_timed_and_waiting_is_a_share_of_it(clock):
    source = slow_source(clock, [50.0, 50.0, 3.0, 0.0, 1.0, 0.0, 70.0, 70.0])
    found = pace.consume(source, pace.sleeping(2.0), batches=4, margin=2)
    assert found == pace.Window(seconds=4 + 4 * 2.0, waited=4 / 12)


def test_steps_that_are_under_way_are_waited_for(clock):
    def dispatched(_):
        clock.now += 1.0

        def end():
            clock.now += 10.0

        return end

    source = slow_source(clock, [0.0] * 5)
    assert pace.consume(source, dispatched, batches=3, margin=1).seconds == 3 + 10.0
    assert pace.alone(dispatched, None, batches=4) == (4 + 10.0) / 4


def one(both, *, threads=1, rate=0.5, pipeline=100.0, alone=50.0, waited=0.0):
    return {
        "threads": threads,
        "step": "sleep",
        "rate": rate,
        "pipeline": pipeline,
        "alone": alone,
        "both": both,
        "waited": waited,
    }


def test_medians_are_over_rounds_of_one_case():
    found = [one(50.0), one(40.0, waited=0.2), one(45.0, waited=0.1), one(7.0, threads=2)]
    first, second = feed.summarise(found)
    assert (first["threads"], first["both"], first["waited"]) == (1, 45.0, 0.1)
    assert first["overlap"] == 0.9
    assert [x["both"] for x in first["rounds"]] == [50.0, 40.0, 45.0]
    assert (second["threads"], second["overlap"]) == (2, 7 / 50)


def test_overlap_is_of_the_slower_one():
    (found,) = feed.summarise([one(90.0, alone=300.0)])
    assert found["overlap"] == 0.9


@pytest.fixture
def ends(monkeypatch, tmp_path):
    """The ends of all steps of a real network that a command runs."""
    found, training = [], pace.training

    def spying(*args, **kwargs):
        consumer = training(*args, **kwargs)
        return lambda batch: found.append(consumer(batch)) or found[-1]

    monkeypatch.setattr(pace, "training", spying)
    with runs.cheap(tmp_path / "cache"):
        yield found


def test_command_really_trains_and_writes_what_it_shows(tmp_path, capsys, ends):
    words = "--images 6 --batch 2 --batches 2 --rounds 2 --threads 1,2 --rates 0.5 --image_size 8"
    words = [*words.split(), "--network", "tiny", "--keep", "0.5"]
    assert feed.main([*words, "--json", str(tmp_path / "f.json")]) == 0
    losses = [float(end()["loss"]) for end in ends]
    assert len(losses) == 2 * (2 * 2 + 4 + 6)  # rounds: alone, with its warm-up, and beside reading
    assert all(np.isfinite(losses)) and len(set(losses)) == len(losses)
    found = json.loads((tmp_path / "f.json").read_text())
    assert {(x["threads"], x["step"], x["rate"]) for x in found["paces"]} == {
        (threads, *case) for threads in (1, 2) for case in (("sleep", 0.5), ("tiny", None))
    }
    for row in found["paces"]:
        assert set(row) == KEYS
        assert len(row["rounds"]) == 2
        assert row["pipeline"] > 0 and row["alone"] > 0 and row["both"] > 0
        assert 0 <= row["waited"] <= 1
    assert found["command"].startswith("python -m experiments.feed --images 6")
    assert "cpu" in found["device"] and found["versions"]["jax"]
    shown = capsys.readouterr().out
    assert "sleep, rate 0.5" in shown and "both / slower" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--batch 0", "--batch 0: it must be at least 1"),
        ("--batches 0", "--batches 0: it must"),
        ("--rounds 0", "--rounds 0: it must"),
        ("--threads 2,0", "--threads 0: it must"),
        ("--image_size 0", "--image_size 0: it must"),
        ("--images 15", "--images 15: a batch takes 16 of them"),
        ("--rates 0.5,0", "--rates 0: a rate must be above 0"),
        ("--keep 1.5", "--keep 1.5: a share of channels"),
        ("--network vgg61", "vgg61"),
        ("--json .", "."),
    ],
)
def test_what_cannot_be_measured_is_refused(words, message, capsys):
    assert feed.main(words.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said
