"""Formulas of the algebra, evaluated on a network."""

from collections.abc import Collection

import jax
import jax.numpy as jnp

from dce_jax.signals import curvature, reduction, scaling, sums
from dce_jax.signals.algebra import Formula
from dce_jax.signals.curvature import Curvature
from dce_jax.signals.sites import Scene
from dce_jax.types import Array, Rewards


def values(
    formulas: Collection[Formula],
    scene: Scene,
    *,
    second: Curvature | None = None,
    key: Array | None = None,
    chunk: int | None = None,
) -> dict[Formula, Rewards]:
    """Every formula's value for every channel of every group, in inference mode.

    Formulas of one base share their derivatives, so ask for many at once, and compile the caller
    where it is called often. Derivatives of activations are summed up as the backward pass meets
    them: it holds no more than an ordinary one. Those of weights take a copy of the kernels per
    example of a ``chunk`` (not the linear reductions of ``taylor``, which the layers' outputs
    give), and second derivatives a copy per class.

    Args:
      formulas: what to compute.
      scene: the network and its examples.
      second: how second derivatives are computed; None: `curvature.diagonal`.
      key: for estimates; None: a fixed one.
      chunk: examples at a time, None for all at once.

    Returns:
      Formula -> group -> float[C], at least in single precision; may be negative where
      `algebra.is_signed` says so.

    Raises:
      ValueError: a group that a formula's base does not reach, or no examples.
    """
    found: dict[Formula, Rewards] = {}
    for base in dict.fromkeys(formula.base for formula in formulas):
        asked = [formula for formula in formulas if formula.base == base]
        wanted: dict[str, set[str]] = {}
        for formula in asked:
            wanted.setdefault(formula.pointwise, set()).add(formula.reduction)
        computed = sums.of_base(
            scene,
            base,
            wanted,
            str(asked[0]),
            second=second or curvature.diagonal(),
            key=jax.random.key(0) if key is None else key,
            chunk=chunk,
        )
        counts = {
            name: scaling.counts(scene, base, name, str(asked[0]))
            for name in {formula.scaling for formula in asked}
        }
        for formula in asked:
            reduce = reduction.BY_NAME[formula.reduction]
            means = {
                group: jnp.mean(reduce(each), axis=0)
                for group, each in computed[formula.pointwise].items()
            }
            found[formula] = scaling.scaled(means, formula.scaling, counts[formula.scaling])
    return found


def value(
    formula: Formula,
    scene: Scene,
    *,
    second: Curvature | None = None,
    key: Array | None = None,
    chunk: int | None = None,
) -> Rewards:
    """One formula's value; see `values`."""
    return values([formula], scene, second=second, key=key, chunk=chunk)[formula]
