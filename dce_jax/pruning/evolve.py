"""Regularised (aging) evolution of layer latents, one evaluation at a time.

A search is what it tried and what that was worth: the population is the last so many candidates, so
that every new one replaces the oldest, however good (Real et al. 2019). The randomness of
evaluation ``i`` comes from ``(seed, i)`` alone: stored losses, or the state itself, continue a
search as if it had never stopped.

Constants are those of LeGR's search (Chin et al. 2020, arXiv 1904.12368): 64 candidates, of which
the first 63 are random and the last is the identity; tournaments of 16; a tenth of the layers
mutated; 400 evaluations; ``alpha *= exp(N(0, 1 - i / (1.25 * 400)))``, ``kappa += N(0, s)``, with
``s`` the standard deviation of the layer's own saliencies. What the search of the additive form
(arXiv 1810.00518) was set to was not found: here it is this one with alpha = 1. Ours besides:
contestants and mutated layers are drawn without replacement, at least one layer mutates, the best
candidate of all is the result, and of equally good ones the first.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from dce_jax.pruning.latents import Latents, identity


class Rules(NamedTuple):
    """How a search is run.

    Attributes:
      population: candidates that may become parents.
      tournament: of them that compete for it.
      evaluations: candidates in all.
      mutated: share of the groups that differ from the parent's.
      affine: whether scales are searched too, or shifts alone.
      seed: of all randomness.
    """

    population: int = 64
    tournament: int = 16
    evaluations: int = 400
    mutated: float = 0.1
    affine: bool = True
    seed: int = 0


class Search(NamedTuple):
    """Where a search stands.

    Attributes:
      tried: candidates, the oldest first.
      losses: what each was worth; less is better.
    """

    tried: tuple[Latents, ...] = ()
    losses: tuple[float, ...] = ()


def check(rules: Rules) -> None:
    """Refuses rules that no search can follow.

    Raises:
      ValueError: naming the numbers.
    """
    if not 1 <= rules.tournament <= rules.population <= rules.evaluations:
        raise ValueError(
            f"a search has tournament {rules.tournament}, population {rules.population} and "
            f"evaluations {rules.evaluations}: each must be at least the one before, from 1"
        )
    if not 0.0 < rules.mutated <= 1.0:
        raise ValueError(f"mutated is {rules.mutated}: it is a share of the groups, above 0 to 1")


def advance(
    rules: Rules,
    spreads: Mapping[str, float],
    fitness: Callable[[Latents], float],
    search: Search,
) -> Search:
    """One evaluation more.

    Args:
      rules: of the search.
      spreads: group -> unit of its shifts (`latents.spreads`).
      fitness: what a candidate is worth, less is better: the loss of the network pruned by it.
      search: what was tried so far.

    Raises:
      ValueError: a loss that is not a number.
    """
    latents = candidate(rules, spreads, search)
    return told(search, latents, fitness(latents))


def told(search: Search, latents: Latents, loss: float) -> Search:
    """The search that knows what one more candidate was worth.

    Raises:
      ValueError: a loss that is not a number.
    """
    if np.isnan(loss):
        raise ValueError(
            f"candidate {len(search.tried)} of the search has loss {loss}: the network gives "
            "numbers no more; lower the learning rate of what was trained before"
        )
    return Search((*search.tried, latents), (*search.losses, float(loss)))


def resumed(rules: Rules, spreads: Mapping[str, float], losses: tuple[float, ...]) -> Search:
    """The search of which only the losses were kept: its candidates are derived again."""
    search = Search()
    for loss in losses:
        search = told(search, candidate(rules, spreads, search), loss)
    return search


def best(search: Search) -> Latents:
    """The candidate of the least loss.

    Raises:
      ValueError: nothing was tried.
    """
    if not search.tried:
        raise ValueError("nothing was tried, so no candidate is the best: evaluate some")
    return search.tried[int(np.argmin(search.losses))]


def candidate(rules: Rules, spreads: Mapping[str, float], search: Search) -> Latents:
    """What is tried next: at first random latents and the identity, then a winner's mutation.

    Args:
      rules: of the search.
      spreads: group -> unit of its shifts.
      search: what was tried so far.

    Raises:
      ValueError: rules that no search can follow.
    """
    check(rules)
    index, groups = len(search.tried), list(spreads)
    draw = np.random.default_rng((rules.seed, index))
    if index == rules.population - 1:
        return identity(groups)
    if index < rules.population:
        return _mutated(draw, identity(groups), groups, spreads, 1.0, affine=rules.affine)
    alive = (
        index - rules.population + draw.choice(rules.population, rules.tournament, replace=False)
    )
    winner = min(sorted(alive.tolist()), key=lambda place: search.losses[place])
    count = max(1, int(rules.mutated * len(groups)))
    changed = [groups[place] for place in draw.choice(len(groups), count, replace=False)]
    step = 1.0 - index / (1.25 * rules.evaluations)
    return _mutated(draw, search.tried[winner], changed, spreads, step, affine=rules.affine)


def _mutated(
    draw: np.random.Generator,
    parent: Latents,
    changed: list[str],
    spreads: Mapping[str, float],
    step: float,
    *,
    affine: bool,
) -> Latents:
    scale, shift = dict(parent.scale), dict(parent.shift)
    for group in changed:
        if affine:
            scale[group] *= float(np.exp(draw.normal(0.0, step)))
        shift[group] += float(draw.normal(0.0, spreads[group]))
    return Latents(scale, shift)
