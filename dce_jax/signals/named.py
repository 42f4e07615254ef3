"""Published criteria as points of the algebra."""

from typing import NamedTuple

from dce_jax.signals.algebra import Formula, parse


class Named(NamedTuple):
    """A published criterion.

    Attributes:
      formula: the point of the algebra.
      factor: what the formula's value is multiplied by.
      source: where the criterion comes from.
    """

    formula: Formula
    factor: float
    source: str


BY_NAME: dict[str, Named] = {
    "l1_norm": Named(
        parse("weights.x.l1.none"), 1.0, "Li et al. 2017: absolute weights of a filter"
    ),
    "l2_norm": Named(
        parse("weights.x.l2.none"), 1.0, "squared Euclidean norm, as in LeGR (Chin et al. 2020)"
    ),
    "min_weight": Named(
        parse("weights.x.l2.cardinality"), 1.0, "Molchanov et al. 2017: mean squared weight"
    ),
    "molchanov_taylor": Named(
        parse("activations.taylor.abs_sum.l2"),
        1.0,
        "Molchanov et al. 2017, with their l2 norm per layer, which takes out the mean over M",
    ),
    "molchanov_taylor_mean": Named(
        parse("activations.taylor.abs_sum.elements"),
        1.0,
        "Molchanov et al. 2017, before their l2 norm: the mean over a map's M positions",
    ),
    "theis_fisher": Named(
        parse("activations.taylor.sqr_sum.none"), 0.5, "Theis et al. 2018, per feature map"
    ),
    "evci_removal": Named(
        parse("units.taylor.abs_sum.l2"),
        1.0,
        "Evci et al. 2018, removal score of the authors' later code, which scores behind the ReLU",
    ),
    "evci_mean_replacement": Named(
        parse("centred_units.taylor.abs_sum.l2"),
        1.0,
        "Evci et al. 2018, likewise: l2 norm per layer, the mean over positions out",
    ),
    "evci_mean_replacement_l1": Named(
        parse("centred.taylor.l1.none"), 1.0, "Evci 2018, the thesis' code: l1 norm, here a mean"
    ),
}
