"""Random masks for the benchmark's rival: a masked step, which costs what a dense one does."""

import jax.numpy as jnp
import numpy as np

from dce_jax import masks
from dce_jax.budget import Budget
from dce_jax.types import Array


def random_masks(budget: Budget) -> dict[str, Array]:
    """Group -> float32[C] with K ones in random places."""
    draw = np.random.default_rng(1)
    kept = {group: draw.permutation(width)[:chosen] for group, width, chosen in budget.entries}
    return {group: jnp.asarray(mask) for group, mask in masks.of(kept, budget.full).items()}
