"""Experiments on dce_jax: data, the main job, measurements and their reports."""
