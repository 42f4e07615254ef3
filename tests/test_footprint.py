"""What a run says of its memory before it begins."""

import jax.numpy as jnp
import pytest
import runs

from dce_jax import cost
from experiments import data, footprint, setup


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    images = runs.write_images(tmp_path_factory.mktemp("footprint") / "images.npz")

    def build(**changes):
        settings = runs.settings(images, **changes)
        return setup.build(settings, data.load(settings.dataset, data_dir=None, image_size=None))

    with runs.cheap(images.parent / "cache"):
        yield build


def parameters(run, module):
    return cost.parameters(setup.initial_variables(module, run.data, run.config)["params"])


def test_states_and_batch_are_counted_to_the_byte(built):
    run = built(method="dce")
    found = footprint.footprint(run)
    statistics = 2 * (4 + 6)  # mean and variance of two norms, and half of them in the slab
    full, thin = parameters(run, run.module), parameters(run, run.thin)
    assert found.whole == 4 * (2 * full + statistics) + 4  # the optimizer counts its steps
    assert found.training == 4 * (2 * thin + statistics // 2) + 4
    assert found.batch == 8 * (4 * 4 * 1 * 4 + 4)
    plain = footprint.footprint(built(method="scratch"))
    assert (plain.whole, plain.training, plain.kept) == (0, found.training, found.kept)
    dense = footprint.footprint(built(method="dense"))
    assert (dense.whole, dense.training) == (0, found.whole)
    assert dense.kept > found.kept
    assert footprint.footprint(built(method="l1", rounds=1)) == dense  # all channels at first


def test_less_is_kept_where_it_is_computed_again(built):
    kept = [footprint.footprint(built(method="dense", remat=on)).kept for on in (False, True)]
    assert kept[1] < kept[0]
    assert built(method="dense", remat=True).thin.remat
    assert built(method="dense").module.dtype == jnp.float32


def test_one_line_tells_all(built):
    line = footprint.line(footprint.Footprint(2**21, 2**20, 2**19, 2**22))
    assert line == (
        "memory of a step: full-width state 2.0 MiB, slab 1.0 MiB, batch 0.5 MiB, "
        "kept for the backward pass at most 4.0 MiB"
    )
    assert "step: state 1.0 MiB, batch" in footprint.line(footprint.Footprint(0, 2**20, 1, 1))
