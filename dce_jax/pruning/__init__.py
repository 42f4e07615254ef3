"""Pruning as short loops: train, score, choose what goes, shrink, train on.

Every piece is a pure function of the channel map's own trees; ``docs/pruning.md`` has a whole loop.
"""

from dce_jax.pruning import costs, dead, distill, evolve, latents, oracle
from dce_jax.pruning.choose import Order, best, check_target, greedy
from dce_jax.pruning.costs import Costs
from dce_jax.pruning.distill import distilled, taught
from dce_jax.pruning.folding import fold
from dce_jax.pruning.latents import Latents, compensated
from dce_jax.pruning.shrink import Names, compose, names, shrink, whole
from dce_jax.pruning.watch import Watched, means, start, watch

__all__ = [
    "Costs",
    "Latents",
    "Names",
    "Order",
    "Watched",
    "best",
    "check_target",
    "compensated",
    "compose",
    "costs",
    "dead",
    "distill",
    "distilled",
    "evolve",
    "fold",
    "greedy",
    "latents",
    "means",
    "names",
    "oracle",
    "shrink",
    "start",
    "taught",
    "watch",
    "whole",
]
