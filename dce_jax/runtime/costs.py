"""Multiply-accumulates of whatever is decided: a table per site, added up per image."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from dce_jax import cost
from dce_jax.runtime.chain import Chain
from dce_jax.runtime.choice import Choice
from dce_jax.runtime.execute import MASKED, Site, at_widths, inputs
from dce_jax.types import Array, PyTree


class Costs(NamedTuple):
    """Multiply-accumulates of one image's forward pass.

    Attributes:
      sites: per site float64[widths of its inputs, its widths]; one row where inputs are whole.
      always: of the first and the last link, which always run.
      around: per site of its shortcut, which runs at every width; 0 where there is none.
      full: of the network as it is, without anything that decides.
    """

    sites: tuple[npt.NDArray[np.float64], ...]
    always: float
    around: tuple[float, ...]
    full: float


def table(
    chain: Chain, levels: Sequence[Sequence[int]], variables: PyTree, example: jax.ShapeDtypeStruct
) -> Costs:
    """Counts every site at every width, on shapes alone.

    Args:
      chain: the network.
      levels: per site its widths.
      variables: of the network, or their shapes.
      example: float[1, H, W, D], one image.
    """
    seen = inputs(chain, variables, example)
    always = sum(
        cost.macs(partial(MASKED.run, Site(chain, chain.links[end])), variables, seen[end])
        for end in (0, -1)
    )
    found, around = [], []
    for index, (link, widths) in enumerate(zip(chain.sites, levels, strict=True)):
        x = seen[index + 1]
        rows = [
            [
                cost.macs(partial(at_widths, chain, link, reads, width), variables, x)
                for width in widths
            ]
            for reads in ((None,) if link.reads is None else levels[index - 1])
        ]
        found.append(np.asarray(rows, np.float64))
        beside = partial(at_widths, chain, link, None, 0)
        around.append(float(cost.macs(beside, variables, x)) if link.skippable else 0.0)
    full = float(always + sum(each[-1, -1] for each in found))
    return Costs(tuple(found), float(always), tuple(around), full)


def share(costs: Costs, choices: Sequence[Choice], deciding: float = 0.0) -> Array:
    """Multiply-accumulates of every input, as a share of the whole network's.

    Args:
      costs: of the network.
      choices: per site.
      deciding: multiply-accumulates of the policy, per image.

    Returns:
      float32[B].
    """
    total = jnp.asarray((costs.always + deciding) / costs.full, jnp.float32)
    before = None
    for site, choice in zip(costs.sites, choices, strict=True):
        rows = jnp.zeros_like(choice.level) if site.shape[0] == 1 or before is None else before
        total = total + jnp.asarray(site / costs.full, jnp.float32)[rows, choice.level]
        before = choice.level
    return total


def chunked_share(
    costs: Costs, levels_SB: npt.NDArray[np.int32], size: int, deciding: float = 0.0
) -> float:
    """Multiply-accumulates of a batch in chunks, as a share of the whole network's for it.

    A chunk computes what the images in it that ask for most ask for, so this is more than the mean
    of `share`.

    Args:
      costs: of the network.
      levels_SB: int32[sites, B], decisions on nested channels.
      size: images in a chunk, of `execute.chunked`.
      deciding: multiply-accumulates of the policy, per image.
    """
    batch = levels_SB.shape[1]
    total = batch * (costs.always + deciding)
    before = np.zeros(batch, np.int32)
    for site, level in zip(costs.sites, levels_SB, strict=True):
        reads = before if len(site) > 1 else np.zeros_like(level)
        order = np.lexsort((-reads, -level))
        for start in range(0, batch, size):
            chunk = order[start : start + size]
            total += len(chunk) * float(site[reads[chunk].max(), level[chunk].max()])
        before = level
    return total / (batch * costs.full)
