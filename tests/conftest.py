"""Strict numerics for every test, silent promotions are errors; and eight devices to take from."""

import gc
import os

import jax
import pytest

# The programs here compile for seconds and run for milliseconds: let XLA optimise less. It reads
# its flags at the first compilation. One's own flags stand: with `XLA_FLAGS= pytest` programs are
# compiled as users have them, which is how CI tests one version set.
QUICK = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if jax.__version_info__ < (0, 12):  # later versions do not know the flag, and abort
    QUICK.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(QUICK))

# A trace is many objects that live as long as it does: garbage is looked for less often.
gc.set_threshold(200_000, 20, 100)

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
