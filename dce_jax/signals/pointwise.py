"""Pointwise metrics: what one element of a channel is worth, from its value and derivatives.

Each is one equation of ``x`` (the element), ``g`` (first derivative of an example's loss) and ``h``
(second derivative, the Hessian's diagonal), as many as it reads, on arrays of one shape. Names and
equations are those of Persand et al. (arXiv 1906.04675), as the authors' scripts have them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from dce_jax.types import Array


class Pointwise(NamedTuple):
    """A pointwise metric.

    Attributes:
      value: ``(x, g, h) -> f``, arrays of one shape; takes only as many as ``order`` says.
      order: 0: takes ``x`` alone; 1: also ``g``; 2: also ``h``.
    """

    value: Callable[..., Array]
    order: int


def itself(x: Array) -> Array:
    """``x``."""
    return x


def gradient(x: Array, g: Array) -> Array:
    """``g = dL/dx``."""
    del x
    return g


def taylor(x: Array, g: Array) -> Array:
    """``-x g``: first-order change of the loss when ``x`` becomes 0."""
    return -x * g


def hessian_diag(x: Array, g: Array, h: Array) -> Array:
    """``1/2 x^2 h``: second-order change alone (LeCun et al. 1990, optimal brain damage)."""
    del g
    return 0.5 * jnp.square(x) * h


def hessian_diag_approx2(x: Array, g: Array) -> Array:
    """``1/2 x^2 g^2``: the same with ``g^2`` in place of ``h`` (the empirical Fisher)."""
    return 0.5 * jnp.square(x * g)


def taylor_2nd(x: Array, g: Array, h: Array) -> Array:
    """``-x g + 1/2 x^2 h``: the change of the loss to second order, diagonal terms."""
    return taylor(x, g) + hessian_diag(x, g, h)


def taylor_2nd_approx2(x: Array, g: Array) -> Array:
    """``-x g + 1/2 x^2 g^2``."""
    return taylor(x, g) + hessian_diag_approx2(x, g)


BY_NAME: dict[str, Pointwise] = {
    "x": Pointwise(itself, 0),
    "g": Pointwise(gradient, 1),
    "taylor": Pointwise(taylor, 1),
    "hessian_diag": Pointwise(hessian_diag, 2),
    "hessian_diag_approx2": Pointwise(hessian_diag_approx2, 1),
    "taylor_2nd": Pointwise(taylor_2nd, 2),
    "taylor_2nd_approx2": Pointwise(taylor_2nd_approx2, 1),
}
