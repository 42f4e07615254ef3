"""Bad input to the main job: early errors that name value, limit and remedy; nothing saved lost."""

import errno
import gc
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import runs

from experiments import (
    checkpoint,
    journal,
    result,
    runtime,
    runtime_config,
    session,
    setup,
    train,
)
from experiments.session import TrainingError

pytestmark = pytest.mark.one_set

ROOT = Path(__file__).parent.parent
CHEAP = {"method": "scratch", "steps": 6, "select_every": 1, "block": 1}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """`lab.config(**changes)`: a tiny config; runs write no report."""
    root = tmp_path_factory.mktemp("bad")
    images = runs.write_images(root / "images.npz")
    with pytest.MonkeyPatch.context() as patch, runs.cheap(root / "cache"):
        patch.setattr(train.report, "write", lambda workdir: (workdir / train.PAGE).write_text(""))
        yield SimpleNamespace(
            images=images, config=lambda **changes: runs.settings(**{"dataset": images, **changes})
        )


def refused(lab, workdir, message, error=ValueError, **changes):
    with pytest.raises(error, match=message) as caught:
        train.train(lab.config(**changes), workdir)
    return str(caught.value)


# --- the command line, in a process of its own


def command(*words, cwd):
    return subprocess.run(
        [sys.executable, "-m", "experiments.train", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_unknown_config_field_names_the_nearest_one(tmp_path):
    ended = command("--config.batch_siz", "3", cwd=tmp_path)
    assert ended.returncode == train.WRONG_INPUT
    assert ended.stderr.startswith('error: no config field batch_siz. Did you mean "batch_size"')
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_bad_value_is_one_line_on_stderr_and_status_2(tmp_path):
    ended = command("--config.dataset=digist", "--config.seed=2", cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: unknown data set 'digist'; nearest names: ")
    assert "'digits'" in ended.stderr or " digits" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert (tmp_path / "runs/digits-dce-seed2/config.json").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # how ml_collections loads a file
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--config=none.py", "No such file or directory: .*none.py"),
        ("--worksdir=w", "Unknown command line flag 'worksdir'. Did you mean: workdir"),
        ("--config.batch_size=many", "flag --config.batch_size=many: .*many"),
    ],
)
def test_words_that_cannot_be_read_are_an_error(monkeypatch, tmp_path, capsys, word, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", word])
    with pytest.raises(SystemExit) as ended:
        train.parse(["train", word])
    assert ended.value.code == train.WRONG_INPUT
    told = capsys.readouterr()
    assert told.out == "" and re.match(f"error: .*{message}", told.err, re.DOTALL)


def test_help_is_no_error(tmp_path):
    ended = command("--help", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "python -m experiments.train" in ended.stdout and "--workdir" in ended.stdout


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError, 2), (OSError, 2), (ModuleNotFoundError, 2), (TrainingError, 1)],
)
@pytest.mark.parametrize("program", ["train", "runtime"])
def test_wrong_input_and_a_run_that_cannot_go_on_differ(
    lab, monkeypatch, tmp_path, capsys, program, error, status
):
    def fail(*_args):
        raise error("why")

    if program == "train":
        runs.flags(monkeypatch, lab.config(), tmp_path)
        monkeypatch.setattr(train, "train", fail)
        assert train.main(["train"]) == status
    else:
        given = SimpleNamespace(config=runtime_config.defaults(), workdir=str(tmp_path))
        monkeypatch.setattr(runtime.flags, "FLAGS", given)
        monkeypatch.setattr(runtime, "run", fail)
        assert runtime.main(["runtime"]) == status
    assert capsys.readouterr().err == "error: why\n"


# --- names, budgets


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "vgg-16"}, "unknown network 'vgg-16'; did you mean 'vgg16'"),
        ({"method": "subsets"}, "unknown method 'subsets'; did you mean 'subset'"),
        ({"signal": "fischer"}, "unknown signal 'fischer'; did you mean 'fisher'"),
        ({"dataset": "cifar11"}, "unknown data set 'cifar11'; nearest names: .*cifar10"),
        ({"optimizer": "sgdm"}, "unknown optimizer 'sgdm'; did you mean 'sgd'"),
        ({"keep": 0.0}, "keep is 0.0: it must be above 0 and at most 1"),
        ({"keep": -1.0}, "keep is -1.0: it must be above 0 and at most 1"),
        ({"keep": 1.5}, "keep is 1.5: it must be above 0 and at most 1"),
        ({"widths": "conv0=99"}, "budget 99 of group 'conv0' is outside 1..4"),
        ({"widths": "conv0=0"}, "budget 0 of group 'conv0' is outside 1..4"),
        ({"widths": "conv9=1"}, "unknown channel group 'conv9'; did you mean 'conv[01]'"),
        ({"multiple_of": 5}, "multiple_of 5 fits nowhere in group 'conv0', which has 4 channels"),
        ({"multiple_of": -1}, "multiple_of is -1: it must be at least 0"),
        ({"multiple_of": 0}, "wants multiples of 16 channels in float32, but no group has as many"),
        ({"lookup": "one-hot"}, "unknown lookup 'one-hot'; did you mean 'one_hot'"),
        ({"min_channels": -1}, "min_channels is -1: both must be >= 1"),
        ({"macs": 0.01}, r"a MACs target of 0.01 \(15 of 1,458\) cannot be met"),
        ({"batch_size": 65}, "batch_size is 65, but the training split has 64 images: choose at"),
        ({"network": "vgg-digits"}, "nothing would be left of images of 4x4 .* size is 8x8"),
        ({"width": 0.0, "network": "vgg-digits"}, "width multiplier 0.0 must be positive"),
        ({"crop": -1}, "crop is -1, but padding must be 0 pixels or more"),
        ({"idle": "catch_up"}, "idle='catch_up' needs decoupled weight decay"),
    ],
    ids=str,
)
def test_refused_before_the_first_step(lab, tmp_path, changes, message):
    refused(lab, tmp_path / "w", message, **changes)
    assert not (tmp_path / "w/checkpoints").exists()


def test_corrected_command_may_use_the_same_workdir(lab, tmp_path):
    refused(lab, tmp_path / "w", "unknown data set", dataset="imagse")
    assert train.train(lab.config(**CHEAP, stop_after=1), tmp_path / "w") is None


# --- data


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": np.arange(64) - 1}, "label -1 at index 0: labels must not be negative"),
        ({"test_labels": np.full(20, 3)}, r"test_labels: label 3 at index 0 is out of .*\(3 cl"),
        ({"train_labels": np.zeros((64, 3), int)}, r"train_labels: shape \(64, 3\) has rank 2"),
        ({"train_labels": np.zeros(64)}, "train_labels: dtype float64, but labels must be int"),
        ({"train_labels": np.arange(9)}, "9 labels for 64 images"),
        ({"train_images": np.zeros((64, 16), np.uint8)}, r"shape \(64, 16\) has rank 2"),
        ({"train_images": np.zeros((64, 4, 4, 1))}, "dtype float64, but images must be uint8"),
        ({"test_images": np.zeros((20, 8, 8, 1), np.uint8)}, "bring both to one shape"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_arrays_that_are_no_images_or_labels_are_refused(lab, tmp_path, changes, message):
    path = runs.write_images(tmp_path / "bad.npz", **changes)
    refused(lab, tmp_path / "w", message, dataset=str(path))


def test_data_that_are_not_there_say_how_to_get_them(lab, tmp_path):
    missing = str(tmp_path / "gone.npz")
    text = refused(
        lab, tmp_path / "w", "gone.npz does not exist", FileNotFoundError, dataset=missing
    )
    assert "train_images" in text
    refused(
        lab,
        tmp_path / "v",
        "python -m experiments.data prepare mnist --data_dir",
        FileNotFoundError,
        dataset="mnist",
        data_dir=str(tmp_path),
    )
    refused(lab, tmp_path / "u", "data_dir", dataset="mnist")


# --- numbers that are no numbers


def test_nan_loss_stops_and_keeps_the_last_good_checkpoint(lab, tmp_path):
    broken = {**CHEAP, "learning_rate": 1e30, "warmup": 0.5}
    text = refused(lab, tmp_path / "w", "loss is nan in steps", TrainingError, **broken)
    assert "lower learning_rate (now " in text
    known = checkpoint.steps(tmp_path / "w/checkpoints")
    assert f"the last good checkpoint, of step {known[-1]}, is kept in {tmp_path / 'w'}" in text
    run = setup.build(lab.config(**broken), train.data.load(str(lab.images), data_dir=None))
    said = []
    run, state, done = session.resume(run, train.Programs(), tmp_path / "w", said.append)
    assert done == known[-1] == int(state.loop.step)
    assert train.blocks.finite(state)
    assert said == [f"going on after step {done} of 6"]
    # Nothing changes by trying again.
    assert refused(lab, tmp_path / "w", "loss is nan", TrainingError, **broken) == text


def test_a_workdir_without_its_config_is_not_gone_on_with(lab, tmp_path):
    config = lab.config(**CHEAP, stop_after=3)
    assert train.train(config, tmp_path / "w") is None
    stored = tmp_path / "w/config.json"
    kept = stored.read_text()
    stored.unlink()
    text = refused(lab, tmp_path / "w", "not its config.json", **CHEAP, learning_rate=0.9)
    assert "put the file back, or choose another --workdir" in text
    stored.write_text(kept)
    assert train.train(lab.config(**CHEAP), tmp_path / "w") is not None


def test_fields_that_a_method_does_not_read_are_noted(tmp_path):
    words = ("--config.method=scratch", "--config.alpha=0.2", "--config.dataset=digist")
    ended = command(*words, "--config.seed=3", cwd=tmp_path)
    assert ended.stderr.startswith("note: method scratch does not read alpha\nerror: unknown data")


def test_widths_are_refused_before_the_network_is_proved(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(setup.probe, "channel_map", lambda *_: pytest.fail("proved"))
    refused(lab, tmp_path / "a", "unknown channel group 'conv9'", widths="conv9=1")
    refused(lab, tmp_path / "b", "batch_size is 65, but the training split has", batch_size=65)


def test_nan_loss_before_any_checkpoint_says_so(lab, tmp_path):
    broken = {**CHEAP, "learning_rate": 1e30, "block": 6}
    text = refused(lab, tmp_path / "w", "loss is nan in steps 1 to 6", TrainingError, **broken)
    assert "no checkpoint was written yet" in text
    config = lab.config(**CHEAP, stop_after=1)
    assert train.train(config, tmp_path / "w") is None  # a lower rate, the same workdir


def test_infinite_parameters_are_not_saved(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(train.blocks, "finite", lambda state: int(state.loop.step) < 3)
    message = "parameters or moments are not finite after step 3: lower learning_rate; the last"
    refused(lab, tmp_path / "w", message, TrainingError, **CHEAP)
    assert checkpoint.steps(tmp_path / "w/checkpoints") == [1, 2]


# --- the workdir


def test_workdir_below_a_file_is_refused(lab, tmp_path):
    (tmp_path / "file").write_text("")
    refused(lab, tmp_path / "file/w", "cannot be written .*: choose another --workdir")


def test_workdir_of_another_config_shows_the_difference(lab, tmp_path):
    train.train(lab.config(**CHEAP, stop_after=1), tmp_path / "w")
    text = refused(lab, tmp_path / "w", "was made with another config", **{**CHEAP, "seed": 5})
    assert "\n  seed: 0 there, 5 now\n" in text


def test_damaged_files_of_a_workdir_are_named(lab, tmp_path):
    train.train(lab.config(**CHEAP, stop_after=1), tmp_path / "w")
    whole = (tmp_path / "w/config.json").read_text()
    (tmp_path / "w/config.json").write_text(whole[:50])
    refused(lab, tmp_path / "w", r"config.json is damaged \(.*choose another", **CHEAP)
    (tmp_path / "w/config.json").write_text(whole)
    for text, message in (
        ('{"method": ', r"result.json is not JSON .*delete it and start"),
        ('{"method": "dce"}', "result.json has no network, dataset"),
        ("[]", "result.json holds list, not an object"),
    ):
        (tmp_path / "w/result.json").write_text(text)
        refused(lab, tmp_path / "w", message, **CHEAP)
    (tmp_path / "w/result.json").unlink()
    assert train.train(lab.config(**CHEAP), tmp_path / "w")["steps"] == 6


# Orbax leaves coroutines of a closed loop behind where it cannot read.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_truncated_checkpoint_falls_back_says_so_and_ends_identically(lab, tmp_path, capsys):
    for name, stop in (("whole", None), ("cut", 4)):
        train.train(lab.config(**CHEAP, stop_after=stop), tmp_path / name)
    for path in (tmp_path / "cut/checkpoints/4").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:20])
    capsys.readouterr()
    assert train.train(lab.config(**CHEAP), tmp_path / "cut")["steps"] == 6
    said = " ".join(capsys.readouterr().err.split())
    assert "checkpoint 4 is damaged (" in said
    assert "falling back to the one before" in said
    assert "going on after step 3 of 6" in said
    runs.same_end(tmp_path / "whole", tmp_path / "cut")
    gc.collect()


def test_no_whole_checkpoint_left_is_an_error(lab, tmp_path):
    train.train(lab.config(**CHEAP, stop_after=2), tmp_path / "w")
    for record in (tmp_path / "w/checkpoints").glob("*.json"):
        record.write_text("{")
    refused(lab, tmp_path / "w", r"no checkpoint in .* is whole \(tried steps \[1, 2\]\)", **CHEAP)


# --- a disk that is full


def failing(function, *, after, error):
    """The function, which raises from a call on."""
    calls = []

    def call(*args, **kwargs):
        calls.append(args)
        if len(calls) > after:
            raise error
        return function(*args, **kwargs)

    return call


FULL = OSError(errno.ENOSPC, "No space left on device")
TENSORSTORE = ValueError(
    "RESOURCE_EXHAUSTED: Failed writing: No space left on device [os_error_code='28']"
)
SAFETENSORS = session.SafetensorError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("module", "name", "after", "error", "kept"),
    [
        (journal, "append", 3, FULL, [1, 2, 3]),
        (journal, "write_text", 6, FULL, None),
        (checkpoint.ocp, "save", 4, TENSORSTORE, [2, 3, 4]),
        (checkpoint.ocp, "save", 0, FULL, []),
        (result, "finish", 0, SAFETENSORS, [4, 5, 6]),
        (result, "finish", 0, FULL, [4, 5, 6]),
    ],
    ids=["metrics", "record", "checkpoint", "first checkpoint", "compact model", "result"],
)
def test_full_disk_is_named_and_what_was_saved_is_kept(
    lab, tmp_path, monkeypatch, module, name, after, error, kept
):
    with monkeypatch.context() as patch:
        patch.setattr(module, name, failing(getattr(module, name), after=after, error=error))
        text = refused(
            lab, tmp_path / "w", "the disk is full. Make room and", TrainingError, **CHEAP
        )
    known = checkpoint.steps(tmp_path / "w/checkpoints")
    if kept is not None:
        assert known == kept
    last = f"of step {known[-1]}, is kept" if known else "no checkpoint was written yet"
    assert last in text
    found = train.train(lab.config(**CHEAP), tmp_path / "w")  # after making room
    assert found["compilations"] == {"plain": 1}
    assert [x["step"] for x in runs.lines(tmp_path / "w/metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_other_refusals_of_the_disk_are_told_as_they_are(lab, tmp_path, monkeypatch):
    error = OSError(errno.EROFS, "Read-only file system")
    monkeypatch.setattr(journal, "append", failing(journal.append, after=0, error=error))
    refused(lab, tmp_path / "w", "cannot be written: .*Read-only file", TrainingError, **CHEAP)
