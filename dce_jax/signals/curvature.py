"""Diagonal second derivatives of one example's loss: three ways, of one callable type.

The loss is softmax cross-entropy of the example's logits ``z``. Its Hessian in anything ``u`` that
the logits depend on is ``J' S J + sum_k (p_k - y_k) d2 z_k / du du``: the Gauss-Newton term, with
``J = dz/du`` and ``S = diag(p) - p p'``, and a rest that is zero where logits are piecewise linear
in ``u``. They are so in the activations of one layer, and in its kernel alone, in every network of
`dce_jax.networks` (inference mode): there the diagonal is never negative.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from dce_jax.types import Array, Path

Point: TypeAlias = dict[Path, Array]
"""Path of a site or kernel -> where derivatives are taken."""

LogitsFn: TypeAlias = Callable[[Point], Array]
"""``point -> float[classes]``, of one example."""

Blocks: TypeAlias = Sequence[Sequence[Path]]
"""Paths whose random probes may be drawn together: the logits have no mixed second derivatives
there, unless they bend anyway."""

Curvature: TypeAlias = Callable[[LogitsFn, Point, Array, Array, Blocks], Point]
"""``(logits of a point, point, label int[], key, blocks) -> h``, like the point."""


def loss(logits: Array, label: Array) -> Array:
    """Softmax cross-entropy of one example: float[classes], int[] -> float[]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, label)


def diagonal(draws: int = 1) -> Curvature:
    """Gauss-Newton term by back-propagation, exact, and the rest by Hutchinson's estimate.

    The first is ``sum_k p_k (dz/du' (e_k - p))^2``, one backward pass per class (Botev et al. 2017;
    Dangel et al. 2020, DiagGGN). The second costs ``draws`` Hessian-vector products per block and
    is exactly zero where logits are piecewise linear, so ``h`` is exact on every network of this
    package; elsewhere it is an unbiased estimate.

    Args:
      draws: random vectors per block.
    """

    def value(logits_of: LogitsFn, point: Point, label: Array, key: Array, blocks: Blocks) -> Point:
        logits, pull = jax.vjp(logits_of, point)
        p = jax.nn.softmax(logits)
        classes = jnp.eye(p.size, dtype=p.dtype)
        (slopes,) = jax.vmap(pull)(jnp.sqrt(p)[:, None] * (classes - p[None, :]))
        residual = p - jax.nn.one_hot(label, p.size, dtype=p.dtype)
        bend = _by_blocks(
            lambda u: jnp.vdot(residual, logits_of(u)), point, key, blocks, draws=draws
        )
        return jax.tree.map(lambda s, b: jnp.sum(jnp.square(s), axis=0) + b, slopes, bend)

    return value


def hutchinson(draws: int) -> Curvature:
    """``mean of v * H v`` over random signs ``v`` (Hutchinson 1990): unbiased on every network.

    Its cost does not depend on the number of classes; its variance is that of the Hessian's
    entries beside the diagonal.

    Args:
      draws: number of ``v``, drawn for all paths at once.
    """

    def value(logits_of: LogitsFn, point: Point, label: Array, key: Array, blocks: Blocks) -> Point:
        del blocks
        return _by_blocks(
            lambda u: loss(logits_of(u), label), point, key, [list(point)], draws=draws
        )

    return value


def exact(batch_size: int = 64) -> Curvature:
    """One Hessian-vector product per element: for small networks, and to test the others by.

    Args:
      batch_size: products at a time.
    """

    def value(logits_of: LogitsFn, point: Point, label: Array, key: Array, blocks: Blocks) -> Point:
        del key, blocks
        flat, unravel = ravel_pytree(point)
        slope = jax.grad(lambda u: loss(logits_of(unravel(u)), label))

        def entry(index: Array) -> Array:
            unit = jnp.zeros_like(flat).at[index].set(1.0)
            return jax.jvp(slope, (flat,), (unit,))[1][index]

        return unravel(jax.lax.map(entry, jnp.arange(flat.size), batch_size=batch_size))

    return value


def _by_blocks(
    function: Callable[[Point], Array], point: Point, key: Array, blocks: Blocks, *, draws: int
) -> Point:
    """Hutchinson's estimate of a function's Hessian diagonal, each block probed alone."""
    found: Point = {}
    for index, block in enumerate(blocks):
        part = {path: point[path] for path in block}
        inside = partial(_at, function, point)
        keys = jax.random.split(jax.random.fold_in(key, index), draws)
        each = jax.vmap(partial(_probe, jax.grad(inside), part))(keys)
        found |= jax.tree.map(lambda values: jnp.mean(values, axis=0), each)
    return {path: found[path] for path in point}


def _at(function: Callable[[Point], Array], point: Mapping[Path, Array], part: Point) -> Array:
    return function({**point, **part})


def _probe(slope: Callable[[Point], Point], part: Point, key: Array) -> Point:
    flat, unravel = ravel_pytree(part)
    signs = unravel(jax.random.rademacher(key, flat.shape, flat.dtype))
    _, bent = jax.jvp(slope, (part,), (signs,))
    return jax.tree.map(jnp.multiply, signs, bent)
