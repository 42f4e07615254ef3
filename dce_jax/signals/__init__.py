"""Saliency signals as an algebra: base input x pointwise x reduction x scaling.

``values([parse("activations.taylor.abs_sum.l2")], Scene(...))`` evaluates any formula on any
network with channel groups; `dce_jax.saliency` holds the signals that a training step gives away.
"""

from dce_jax.signals.algebra import Formula, canonical, combinations, formulas, is_signed, parse
from dce_jax.signals.curvature import diagonal, exact, hutchinson
from dce_jax.signals.evaluate import averages, value, values
from dce_jax.signals.rewards import check_name, names, other_names, scaled, signal, unscaled
from dce_jax.signals.sites import Scene

__all__ = [
    "Formula",
    "Scene",
    "averages",
    "canonical",
    "check_name",
    "combinations",
    "diagonal",
    "exact",
    "formulas",
    "hutchinson",
    "is_signed",
    "names",
    "other_names",
    "parse",
    "scaled",
    "signal",
    "unscaled",
    "value",
    "values",
]
