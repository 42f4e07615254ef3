"""Names that a config chooses between, and what they stand for."""

import difflib
from typing import get_args

from dce_jax import allocate, saliency, scores
from dce_jax.lookups import Lookup
from experiments import pruners

METHODS = ("dce", "dense", "scratch", "subset", "random", *pruners.METHODS)
# What a training step gives away; every other signal is one of `dce_jax.signals`.
SIGNALS = (
    "norm_taylor",
    "gate_taylor",
    "batch_gate_taylor",
    "fisher",
    "weight_l1",
    "weight_l2",
    "weight_sqr",
    "norm_scale",
)
SCALES = {
    "max": allocate.by_max,
    "l2": allocate.by_l2,
    "mean": allocate.by_mean,
    "none": allocate.as_they_are,
}
REWARDS = {"max": saliency.to_unit, "rank": saliency.to_ranks}
TARGETS = ("macs", "params")
FINAL = {"best": scores.best, "random": scores.random, "worst": scores.worst}

CHOICES = {
    "method": METHODS,
    "dtype": ("float32", "bfloat16"),
    "allocation": ("uniform", "global"),
    "scale": tuple(SCALES),
    "target": TARGETS,
    "rewards": tuple(REWARDS),
    "final": tuple(FINAL),
    "rate_over": ("steps", "macs"),
    "lookup": get_args(Lookup),
    "scan": ("auto", "on", "off"),
    "sharding": ("replicated", "sharded"),
}
"""Field -> its names; networks have a list of their own."""


def one_of(field: str, value: str, known: tuple[str, ...]) -> None:
    """Refuses a name that is none of those known.

    Raises:
      ValueError: field, value, the nearest known name, and all of them.
    """
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"unknown {field} {value!r}{hint} One of {', '.join(known)}")
