"""Recalibration anew, on more and other images: the figures, the command, its table."""

import json

import numpy as np
import pytest

from dce_jax import compact
from experiments import recalibration, subject, tables
from experiments.pipeline import normalise

pytestmark = pytest.mark.one_set


@pytest.fixture(scope="module")
def augmented(lab):
    _, workdir = lab.run(method="dce", crop=1, flip=True)
    return workdir


def found(workdir, examples):
    figures = recalibration.figures(workdir, subject.read(workdir, None), examples)
    return {(each["examples"], each["augmented"]): each["accuracy"] for each in figures}


def test_the_runs_own_images_give_the_runs_own_accuracies(augmented):
    figures = found(augmented, (16, 64))
    result = json.loads((augmented / "result.json").read_text())
    assert figures[None, None] == result["test_accuracy_raw"]
    assert figures[16, True] == result["test_accuracy"]
    assert set(figures) == {(None, None), *((n, a) for n in (16, 64) for a in (True, False))}


def test_images_are_the_first_ones_plain_or_as_in_training(augmented, monkeypatch):
    seen, own = [], compact.recalibrate

    def recalibrate(module, variables, batches):
        seen.append(np.stack(list(batches)))
        return own(module, variables, seen[-1])

    monkeypatch.setattr(compact, "recalibrate", recalibrate)
    found(augmented, (16, 20))  # 20 images are two batches of eight, and four that are left out
    images = subject.read(augmented, None).data
    plain = normalise(images.train.images[:16], images.mean, images.std).reshape(2, 8, 4, 4, 1)
    assert len(seen) == 4
    for changed, same in zip(seen[:2], seen[2:], strict=True):
        np.testing.assert_allclose(same, plain, rtol=0, atol=1e-6)
        assert changed.shape == plain.shape and np.mean(np.abs(changed - plain) > 1e-3) > 0.1


def test_a_run_without_augmentation_has_one_way(lab):
    _, workdir = lab.run(method="dce")
    assert set(found(workdir, (8,))) == {(None, None), (8, False)}


def test_the_command_writes_what_its_marker_shows(augmented, tmp_path, capsys):
    path = tmp_path / "found.json"
    words = [str(augmented), str(augmented), "--examples", "8,64", "--json", str(path)]
    assert recalibration.main(words) == 0
    shown = capsys.readouterr().out
    made = json.loads(path.read_text())
    name = augmented.name
    command = f"python -m experiments.recalibration runs/{name} runs/{name} --examples 8,64"
    assert made["command"] == command and "jax" in made["versions"]
    assert [each["judged_on"] for each in made["recalibrated"]] == ["test", "test"]
    document = tmp_path / "page.md"
    document.write_text("<!-- recalibration:x found.json -->\n<!-- /recalibration:x -->\n")
    assert tables.main(["--readme", str(document)]) == 0
    lines = [line for line in document.read_text().splitlines() if line.startswith("|")]
    assert all(line in shown for line in lines) and len(lines) == 2 + 5


def test_gains_are_means_of_what_each_run_gains(tmp_path):
    def run(raw, one):
        figures = [
            {"examples": None, "augmented": None, "accuracy": raw},
            {"examples": 1024, "augmented": True, "accuracy": one},
        ]
        return {"network": "n", "method": "dce", "judged_on": "validation", "figures": figures}

    path = tmp_path / "found.json"
    path.write_text(json.dumps({"recalibrated": [run(0.5, 0.52), run(0.6, 0.61)]}))
    *_, none, some = recalibration.tables([path]).splitlines()
    assert none == "| n | dce | none |  | 55.00 ± 7.07 % (2) |  |"
    assert some == "| n | dce | 1,024 | yes | 56.50 ± 6.36 % (2) | +1.50 |"


def test_wrong_words_and_files_are_told(tmp_path, capsys):
    assert recalibration.main([str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err
    assert recalibration.main([str(tmp_path), "--examples", "0,8"]) == 2
    assert "--examples is 0: at least one image" in capsys.readouterr().err
    path = tmp_path / "other.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"other\.json holds no recalibrated models"):
        recalibration.tables([path])
