"""Step functions on the small networks of `nets`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import FrozenDict
from nets import IMAGES, VECTORS, MixNet, channel_map, split, variables

from dce_jax import budget, channels, forward, saliency, slab, step, training

NARROW_A = budget.Budget((("a", 4, 2), ("b", 4, 4)))


def setup(module, bud, tx, *, example=IMAGES, signal=None, gates=False, **options):
    """Pieces of a step, and the state of a dynamic run."""
    params, state = split(variables(module, example))
    thin = module.clone(widths=FrozenDict(bud.compact))
    pieces = step.pieces(
        channel_map(module, example),
        bud,
        params=params,
        model_state=state,
        tx=tx,
        loss=forward.classification_loss(thin),
        signal=signal or saliency.norm_taylor(module.reward_norms()),
        gate_shapes=forward.gate_shapes(thin, example) if gates else None,
        **options,
    )
    loop = training.start(params, state, tx, jax.random.key(1))
    return pieces, step.start_dce(pieces, loop)


def halves(module):
    return budget.from_fraction(module.widths, 0.5)


def jitted(function, *static, donate=()):
    """A step function with its static facts bound."""
    return jax.jit(functools.partial(function, *static), donate_argnums=donate)


def host(tree):
    """Arrays on the host, keys as numbers."""

    def one(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.array(jax.random.key_data(leaf) if is_key else leaf)

    return jax.tree.map(one, tree)


def dense_setup(bud=NARROW_A, **options):
    """Pieces and state of a network without convolutions, which compiles fast."""
    signal = saliency.weight_l1(channels.producers(channel_map(MixNet(), VECTORS)))
    signal = saliency.norm_taylor({"a": (("norm",),)}) if "b" not in bud.contested else signal
    tx = optax.sgd(0.05, momentum=0.9)
    return setup(MixNet(), bud, tx, example=VECTORS, signal=signal, **options)


def cut_params(found, tree, narrow):
    """Names of the parameters, and a function that gathers the first channels of any tree."""
    chosen = {g: jnp.arange(width, dtype=jnp.int32) for g, width in narrow.items()}
    names = found.names("params", tree)
    return names, lambda t, n: slab.gather(t, n, chosen, found.full)
