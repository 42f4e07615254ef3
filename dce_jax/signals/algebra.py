"""Names of saliency signals: base input x pointwise x reduction x scaling.

The components are those of Persand, Anderson and Gregg, "A Taxonomy of Channel Pruning Signals in
CNNs" (arXiv 1906.04675), with the names of the authors' scripts; the table in ``docs/signals.md``
gives their formulas and ours side by side.
"""

import difflib
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

BASES = ("activations", "weights")
"""Outputs of the layers that produce a group, and the kernels of those layers."""

OTHER_BASES = ("centred", "units", "centred_units")
"""Activations less their mean; activations where a network gates them (behind its ReLU); those less
their mean."""

POINTWISE = (
    "x",
    "g",
    "taylor",
    "hessian_diag",
    "hessian_diag_approx2",
    "taylor_2nd",
    "taylor_2nd_approx2",
)
REDUCTIONS = ("sum", "l1", "l2", "abs_sum", "sqr_sum")
SCALINGS = ("none", "l1", "l2", "cardinality", "active_cardinality", "weights_removed")
OTHER_SCALINGS = ("elements",)
"""How many elements a channel has: its sum becomes their mean, as in Molchanov et al. 2017."""

Signs: TypeAlias = Collection[tuple[str, str]]
"""``(base, pointwise)`` pairs whose values are known not to be negative."""

_EVERY_BASE = (*BASES, *OTHER_BASES)
ALWAYS: frozenset[tuple[str, str]] = frozenset((b, "hessian_diag_approx2") for b in _EVERY_BASE)
"""Holds on every network: a square is not negative, and everything else may be."""

RELU = ALWAYS | {(base, "hessian_diag") for base in _EVERY_BASE}
"""Holds where logits are piecewise linear: ``h`` is then a diagonal of ``J' H J`` with the convex
loss's Hessian ``H``."""

AFTER_RELU = RELU | {("units", "x")}
"""Holds where, besides, units are read behind a ReLU."""

_SAME_IF_NOT_NEGATIVE = ("sum", "l1", "abs_sum")
_UP_TO_A_FACTOR = ("l1", "l2")


@dataclass(frozen=True)
class Formula:
    """One signal of the algebra.

    Attributes:
      base: what ``x`` is: of `BASES` or `OTHER_BASES`.
      pointwise: ``f(x, g, h)``, of `POINTWISE`.
      reduction: over the elements of a channel, per example, before the mean: of `REDUCTIONS`.
      scaling: of a group's values: of `SCALINGS` or `OTHER_SCALINGS`.
    """

    base: str
    pointwise: str
    reduction: str
    scaling: str

    def __post_init__(self) -> None:
        """Refuses a component that does not exist, with the nearest that does."""
        for part, known in _COMPONENTS.items():
            _check(part, getattr(self, part), known)

    def __str__(self) -> str:
        return ".".join((self.base, self.pointwise, self.reduction, self.scaling))


_COMPONENTS: dict[str, tuple[str, ...]] = {
    "base": _EVERY_BASE,
    "pointwise": POINTWISE,
    "reduction": REDUCTIONS,
    "scaling": (*SCALINGS, *OTHER_SCALINGS),
}


def parse(name: str) -> Formula:
    """The formula that ``base.pointwise.reduction.scaling`` names.

    Raises:
      ValueError: another number of parts, or a part that does not exist, with the nearest one.
    """
    parts = name.split(".")
    if len(parts) != len(_COMPONENTS):
        raise ValueError(
            f"signal {name!r} has {len(parts)} parts, not 4: a formula is written "
            "base.pointwise.reduction.scaling, as in activations.taylor.abs_sum.l2"
        )
    return Formula(*parts)


def canonical(formula: Formula, signs: Signs = ALWAYS) -> Formula:
    """The one spelling of all formulas that equal this one by the sign of their terms.

    Where no term is negative, ``sum f``, ``sum |f|`` and ``|sum f|`` are one number: ``sum``.

    Args:
      formula: any.
      signs: what is known of the network.
    """
    same = formula.reduction in _SAME_IF_NOT_NEGATIVE
    if same and (formula.base, formula.pointwise) in signs:
        return replace(formula, reduction="sum")
    return formula


def combinations(
    bases: Sequence[str] = BASES, scalings: Sequence[str] = SCALINGS
) -> tuple[Formula, ...]:
    """Every spelling: 210 per base, 420 with both."""
    every = itertools.product(bases, POINTWISE, REDUCTIONS, scalings)
    return tuple(itertools.starmap(Formula, every))


def formulas(
    bases: Sequence[str] = BASES, signs: Signs = ALWAYS, scalings: Sequence[str] = SCALINGS
) -> tuple[Formula, ...]:
    """Every formula once, in canonical spelling and fixed order: 396 with the defaults."""
    return tuple(dict.fromkeys(canonical(f, signs) for f in combinations(bases, scalings)))


def others() -> tuple[Formula, ...]:
    """Formulas outside the 396: of another base, or of another scaling."""
    return (*formulas(OTHER_BASES), *formulas(_EVERY_BASE, scalings=OTHER_SCALINGS))


def twin(formula: Formula) -> Formula | None:
    """Another formula with the same values on every network, although it is not the same formula.

    ``sum (-x g)^2`` is twice ``sum 1/2 x^2 g^2``, and dividing a layer by its own l1 or l2 norm
    takes the factor away again. These are the only such pairs: two per base.
    """
    if formula.scaling not in _UP_TO_A_FACTOR:
        return None
    for one, other in (_SQUARE, _HALF_SQUARE), (_HALF_SQUARE, _SQUARE):
        if (formula.pointwise, formula.reduction) == one:
            return Formula(formula.base, *other, formula.scaling)
    return None


_SQUARE = ("taylor", "l2")
_HALF_SQUARE = ("hessian_diag_approx2", "sum")


def is_signed(formula: Formula) -> bool:
    """Whether a value may be negative on some network."""
    may_be = (formula.base, formula.pointwise) not in ALWAYS
    return may_be and formula.reduction == "sum"


def _check(part: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"unknown {part} {value!r} of a signal{hint} One of {', '.join(known)}")
