"""Checkpoints and journals: whole or not at all, and a damaged one is passed over."""

import errno
import gc
import json
import resource
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import checkpoint, journal


def state_of(step):
    return {
        "half": jnp.full((3,), step, jnp.bfloat16),
        "key": jax.random.fold_in(jax.random.key(7), step),
        "list": [jnp.arange(step, step + 4, dtype=jnp.int32), jnp.float32(step)],
    }


TEMPLATE = jax.eval_shape(lambda: state_of(0))

# Orbax leaves coroutines of a closed loop behind where it cannot read or write.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def swept():
    yield
    gc.collect()


def restore(directory, said=None, template=TEMPLATE):
    def like(meta):
        assert meta["step"] >= 0  # the template may depend on what was stored
        return template

    return checkpoint.restore(directory, like, [].append if said is None else said.append)


def check_is(found, step):
    state, meta = found
    assert meta["step"] == step
    chex.assert_trees_all_equal_shapes_and_dtypes(state, state_of(step))
    plain, expected = ({**s, "key": jax.random.key_data(s["key"])} for s in (state, state_of(step)))
    chex.assert_trees_all_equal(plain, expected)


@pytest.fixture
def three(tmp_path):
    """Checkpoints of steps 2, 4 and 6."""
    for step in (2, 4, 6):
        checkpoint.save(tmp_path, step, state_of(step), {"phase": f"p{step}"})
    return tmp_path


def payload(directory, step):
    """The data files of a checkpoint; which of them are read is Orbax's affair."""
    return [p for p in (directory / str(step)).rglob("*") if p.is_file() and p.parent.name == "d"]


def cut_in_half(*paths):
    for path in paths:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(*paths):
    for path in paths:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))


def test_round_trip_keeps_types_keys_and_meta(three):
    found = restore(three)
    assert found[1]["phase"] == "p6"
    check_is(found, 6)


def test_nothing_there_is_none(tmp_path):
    assert restore(tmp_path / "missing") is None


def test_only_the_last_three_stay(three):
    checkpoint.save(three, 8, state_of(8), {})
    assert checkpoint.steps(three) == [4, 6, 8]
    assert sorted(p.name for p in three.iterdir()) == ["4", "4.json", "6", "6.json", "8", "8.json"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: cut_in_half(*payload(d, 6)),
        lambda d: flip_a_bit(*payload(d, 6)),
        lambda d: [path.unlink() for path in payload(d, 6)],
        lambda d: shutil.rmtree(d / "6"),
        lambda d: cut_in_half(d / "6.json"),
        lambda d: (d / "6.json").write_text("[1]"),
        lambda d: (d / "6.json").write_text('{"step": 6}'),
    ],
    ids=["truncated", "flipped", "file lost", "lost", "record cut", "record list", "record short"],
)
def test_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(three, swept, damage):
    damage(three)
    said = []
    check_is(restore(three, said), 4)
    assert len(said) == 1
    assert said[0].startswith("checkpoint 6 is damaged (")
    assert said[0].endswith("): falling back to the one before")
    checkpoint.save(three, 6, state_of(6), {})  # the steps are taken again
    check_is(restore(three), 6)


def test_checksum_alone_refuses_other_numbers(three):
    record = json.loads((three / "6.json").read_text())
    (three / "6.json").write_text(json.dumps(record | {"checksum": record["checksum"] ^ 1}))
    said = []
    check_is(restore(three, said), 4)
    assert "checksum does not match" in said[0]


def test_state_of_another_run_is_refused(three):
    other = {**TEMPLATE, "more": jax.ShapeDtypeStruct((1,), jnp.float32)}
    said = []
    with pytest.raises(ValueError, match="no checkpoint in"):
        restore(three, said, other)
    assert "other leaves" in said[0]
    wider = {**TEMPLATE, "half": jax.ShapeDtypeStruct((4,), jnp.bfloat16)}
    with pytest.raises(ValueError, match="no checkpoint in"):
        restore(three, said, wider)
    assert "a leaf has bfloat16(3,), not bfloat16(4,)" in said[-1]


def test_all_damaged_is_an_error_that_tells_the_remedy(three, swept):
    for step in (2, 4, 6):
        cut_in_half(*payload(three, step))
    said = []
    with pytest.raises(ValueError, match=r"is whole \(tried steps \[2, 4, 6\]\): remove the work"):
        restore(three, said)
    assert len(said) == 3


def test_half_written_checkpoint_is_ignored_and_written_over(three):
    # What a kill leaves: Orbax's temporary folder, a folder without its record, a half record.
    shutil.copytree(three / "6", three / "8.orbax-checkpoint-tmp")
    (three / "8.orbax-checkpoint-tmp" / "junk").write_text("x")
    shutil.copytree(three / "6", three / "10")
    shutil.rmtree(three / "10" / "state")
    (three / "10.json.part").write_text('{"step": 1')
    assert checkpoint.steps(three) == [2, 4, 6]
    check_is(restore(three), 6)
    for step in (8, 10):
        checkpoint.save(three, step, state_of(step), {})
        check_is(restore(three), step)
    names = ["10", "10.json", "6", "6.json", "8", "8.json"]
    assert sorted(p.name for p in three.iterdir()) == names


@pytest.fixture
def small_files():
    """No file may grow beyond a kilobyte: the operating system refuses, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_disk_that_refuses_is_an_oserror_and_earlier_checkpoints_stay(three, swept, small_files):
    noise = {"x": np.random.default_rng(0).random(10_000)}
    with pytest.raises(OSError, match="File too large") as caught:
        checkpoint.save(three, 8, noise, {})
    assert caught.value.errno == errno.EFBIG
    assert checkpoint.steps(three) == [2, 4, 6]
    check_is(restore(three), 6)


def test_other_errors_of_the_writer_pass_through(tmp_path, monkeypatch):
    def refuse(*args):
        raise ValueError("something else")

    monkeypatch.setattr(checkpoint.ocp, "save", refuse)
    with pytest.raises(ValueError, match="something else"):
        checkpoint.save(tmp_path, 1, state_of(1), {})


def test_journal_is_cut_back_to_a_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    journal.cut(path, 3)  # no file yet
    assert not path.exists()
    for step in (2, 4, 6):
        journal.append(path, {"step": step})
    journal.cut(path, 4)
    assert path.read_text() == '{"step": 2}\n{"step": 4}\n'
    journal.cut(path, 0)
    assert path.read_text() == ""


def test_journal_drops_a_half_written_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2}\n{"step": 4}\n{"st')
    journal.cut(path, 100)
    assert path.read_text() == '{"step": 2}\n{"step": 4}\n'


def test_json_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    journal.write(path, {"a": 1})

    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(journal.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        journal.write(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
