"""Strict numerics for every test, silent promotions are errors; and eight devices to take from."""

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Tests of several devices take theirs from these; all others run on the first.
jax.config.update("jax_num_cpu_devices", 8)
