"""A network run link by link, deciding on the way."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp

from dce_jax.runtime.chain import Chain, checked
from dce_jax.runtime.choice import Choice
from dce_jax.runtime.execute import MASKED, Execution, Site, whole
from dce_jax.types import Array, PyTree

Policy: TypeAlias = Callable[[int, Array, Any], tuple[Choice, Any, Any]]
"""``(index of the site, float[B, C] means over positions of what comes in, carry of the site
before or None) -> (choice, carry, note)``."""


class Outcome(NamedTuple):
    """What a run gave.

    Attributes:
      logits: float32[B, num_classes].
      choices: per site.
      notes: per site what the policy said beside its choice.
      variables: of the network, running statistics updated where it trained.
    """

    logits: Array
    choices: tuple[Choice, ...]
    notes: tuple[Any, ...]
    variables: PyTree


def run(
    chain: Chain,
    levels: tuple[tuple[int, ...], ...],
    variables: PyTree,
    x: Array,
    policy: Policy,
    execution: Execution = MASKED,
    *,
    train: bool = False,
) -> Outcome:
    """Runs a network on inputs that decide what runs.

    Args:
      chain: the network.
      levels: per site the widths at which it may run (`chain.levels`).
      variables: collection -> tree, of the network.
      x: float[B, H, W, D] images.
      policy: decides at each site.
      execution: `MASKED`, `SWITCHED` or `chunked(size)`.
      train: normalise by the batch's statistics and update the running ones; masked only.

    Raises:
      ValueError: training by another execution, widths at which the network cannot run
        (`chain.checked`), or what the execution refuses.
    """
    if train and execution is not MASKED:
        raise ValueError(f"training needs every channel's gradient: not {execution.name}, MASKED")
    levels = checked(chain, levels)
    x, variables = whole(Site(chain, chain.links[0]), variables, x, train=train)
    chosen: list[Choice] = []
    notes: list[Any] = []
    carry = None
    for index, (link, widths) in enumerate(zip(chain.sites, levels, strict=True)):
        pooled = _means(x.astype(jnp.float32))
        if execution.shared:
            pooled = pooled.mean(axis=0, keepdims=True)
        choice, carry, note = policy(index, pooled, carry)
        before = None if link.reads is None else (levels[index - 1], chosen[-1])
        site = Site(chain, link, widths, choice, before)
        if execution is MASKED:
            x, variables = whole(site, variables, x, train=train)
        else:
            x = execution.run(site, variables, x)
        chosen.append(choice)
        notes.append(note)
    logits, variables = whole(Site(chain, chain.links[-1]), variables, x, train=train)
    return Outcome(logits, tuple(chosen), tuple(notes), variables)


def _means(x: Array) -> Array:
    """Means over positions, float[B, C]; of one image as a product, faster on CPUs than a mean."""
    if x.shape[0] > 1:
        return x.mean(axis=(1, 2))
    rows = x.reshape(-1, x.shape[-1])
    return jnp.full((1, len(rows)), 1.0 / len(rows), x.dtype) @ rows


def replay(choices: tuple[Choice, ...]) -> Policy:
    """Decisions that were made before: of the same inputs, of others, or one (B = 1) for all."""

    def policy(index: int, pooled: Array, carry: None) -> tuple[Choice, None, None]:
        del pooled, carry
        return choices[index], None, None

    return policy
