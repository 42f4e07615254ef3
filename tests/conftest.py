"""Strict numerics for every test, silent promotions are errors; and eight devices to take from."""

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Tests of several devices take theirs from these; all others run on the first.
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Tiny runs of the main job, each config trained once for all tests of a file."""
    import runs  # imports the experiments, which most tests do without

    with runs.lab(tmp_path_factory.mktemp("runs")) as opened:
        yield opened
