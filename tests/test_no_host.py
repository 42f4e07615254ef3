"""Between the first dispatch of a block and its last nothing is brought to the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from experiments import blocks, data, setup
from experiments.blocks import Exploring
from experiments.programs import Programs

ARRAY = type(jnp.zeros(()))
CONVERSIONS = ("__array__", "__float__", "__int__", "__index__", "__bool__", "tolist", "item")


def checked(convert, raises):
    def call(value, *args, **options):
        return raises(value) if isinstance(value, ARRAY) else convert(value, *args, **options)

    return call


@pytest.fixture
def on_the_device_only(monkeypatch):
    """A guard for `jax.transfer_guard`, which lets conversions pass on a CPU."""

    def refuse():
        def raises(self, *_, **__):
            raise AssertionError(f"an array of shape {self.shape} was brought to the host")

        for name in CONVERSIONS:
            monkeypatch.setattr(ARRAY, name, raises)
        # What all of them read, and what printing and iterating read.
        monkeypatch.setattr(ARRAY, "_value", property(raises))
        # NumPy takes a CPU's buffer without asking the array.
        for name in ("asarray", "array"):
            monkeypatch.setattr(np, name, checked(getattr(np, name), raises))

    yield refuse
    monkeypatch.undo()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = runs.write_images(tmp_path_factory.mktemp("host") / "images.npz")
    with runs.cheap(path.parent / "cache"):
        yield path


@pytest.mark.parametrize(
    "convert",
    [lambda x: np.asarray(x), lambda x: np.array(x), float, int, bool, repr, jax.device_get],
)
def test_the_guard_sees_every_conversion(convert, on_the_device_only):
    one = jnp.ones(()) + 1
    on_the_device_only()
    with pytest.raises(AssertionError, match="brought to the host"):
        convert(one)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("signal", ["norm_taylor", "gate_taylor"])
def test_blocks_of_steps_bring_nothing_to_the_host(every, signal, images, on_the_device_only):
    settings = runs.settings(images, select_every=every, block=6, steps=18, signal=signal)
    settings.commit = 12 / 18
    loaded = data.load(settings.dataset, data_dir=None, image_size=None)
    run, programs = setup.build(settings, loaded), Programs()
    state, _ = blocks.run_block(run, programs, blocks.start(run), 0, 6)  # compiles
    jax.block_until_ready(state)
    on_the_device_only()
    state, metrics = blocks.run_block(run, programs, state, 6, 12)
    assert isinstance(state, Exploring)
    assert metrics["loss"].shape == (6,)
    state = blocks.commit(run, state)
    state, metrics = blocks.run_block(run, programs, state, 12, 18)
    jax.block_until_ready((state, metrics))
    assert programs.counts["plain"] == 1
