"""The rival that trains dense first: network slimming (Liu et al. 2017) at equal training MACs."""

import flax.linen as nn
import jax.numpy as jnp

from dce_jax import saliency
from dce_jax.types import Array, LossFn, PyTree


def penalised(loss: LossFn, module: nn.Module, strength: float) -> LossFn:
    """A loss with an L1 penalty on the scales of the norms that carry the groups' rewards.

    Args:
      loss: of the full-width network.
      module: the network; its ``reward_norms()`` name the norms.
      strength: the factor lambda of the paper's equation 1.

    Raises:
      ValueError: the network declares no norms.
    """
    declared = getattr(module, "reward_norms", None)
    if declared is None:
        raise ValueError(
            f"slimming prunes by the scales of norms, but {type(module).__name__} declares none in "
            "reward_norms(): declare them"
        )
    paths = sorted({path for group in declared().values() for path in group})

    def total(
        params: PyTree, model_state: PyTree, gates: PyTree, batch: PyTree, key: Array
    ) -> tuple[Array, tuple[PyTree, dict[str, Array]]]:
        value, rest = loss(params, model_state, gates, batch, key)
        scales = [saliency.at(params, (*path, "scale")) for path in paths]
        return value + strength * sum(jnp.sum(jnp.abs(scale)) for scale in scales), rest

    return total
