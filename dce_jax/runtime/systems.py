"""Five systems that decide per input, under one roof: each with a number that sets what it spends.

That number, the *knob*, is an argument of every call: nothing is trained anew, nor compiled anew.
It is the price of a channel group for runtime neural pruning, the share of the network's
multiply-accumulates for L-Net, C-Net and LC-Net, and the share of channels for feature boosting and
suppression. Each system is trained over a span of it, and refuses to go outside.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dce_jax import cost
from dce_jax.runtime import fbs, lcnet, rnp, tiles
from dce_jax.runtime.chain import Chain, levels
from dce_jax.runtime.costs import Costs, table
from dce_jax.runtime.execute import inputs
from dce_jax.runtime.forward import Policy
from dce_jax.types import Array, PyTree

RNP, L, C, LC, FBS = NAMES = ("rnp", "l", "c", "lc", "fbs")

KNOBS = {RNP: "price", L: "budget", C: "budget", LC: "budget", FBS: "density"}
"""System -> what its knob is."""

SPANS = {RNP: (-0.05, -0.0005), L: (0.3, 1.0), C: (0.3, 1.0), LC: (0.3, 1.0), FBS: (0.25, 1.0)}
"""System -> the knob's span where none is asked for, from the cheapest to the dearest."""


class System(NamedTuple):
    """A network and what decides in it.

    Attributes:
      name: of `NAMES`.
      chain: the network.
      levels: per site the widths at which it may run.
      module: what decides.
      span: smallest and largest knob that it is trained for.
      costs: multiply-accumulates of the network.
      deciding: those of the decisions, per image.
      sizes: per site the channels of what comes in.
    """

    name: str
    chain: Chain
    levels: tuple[tuple[int, ...], ...]
    module: nn.Module
    span: tuple[float, float]
    costs: Costs
    deciding: float
    sizes: tuple[int, ...]


def build(
    name: str,
    chain: Chain,
    variables: PyTree,
    example: jax.ShapeDtypeStruct,
    *,
    parts: int,
    span: tuple[float, float] | None = None,
) -> System:
    """A system for a network.

    Args:
      name: of `NAMES`.
      chain: the network.
      variables: of it, or their shapes.
      example: float[1, H, W, D], one image.
      parts: at how many widths a site's channels may run; 1 for L-Net.
      span: of the knob; None: `SPANS`.

    Raises:
      ValueError: an unknown name, a span that is none, widths that a site does not have, or layers
        to be skipped in a network without shortcuts.
    """
    if name not in NAMES:
        raise ValueError(f"unknown system {name!r}: one of {', '.join(NAMES)}")
    span = _span(name, span)
    if name == L and parts != 1:
        raise ValueError(f"L-Net decides about whole layers, not among {parts} widths: parts = 1")
    if name in (RNP, C, LC, FBS) and parts < 2:
        raise ValueError(f"{name} with {parts} width has nothing to choose from: parts >= 2")
    widths = levels(chain, parts, skip=name in (L, LC))
    full = tuple(chain.width(link) for link in chain.sites)
    modules: dict[str, Callable[[], nn.Module]] = {
        RNP: lambda: rnp.Decider(len(full), parts),
        L: lambda: lcnet.Salience(full, layers=True, channels=False),
        C: lambda: lcnet.Salience(full, layers=False, channels=True),
        LC: lambda: lcnet.Salience(full, layers=True, channels=True),
        FBS: lambda: fbs.Boost(full),
    }
    sizes = tuple(each.shape[-1] for each in inputs(chain, variables, example)[1:-1])
    system = System(
        name,
        chain,
        widths,
        modules[name](),
        span,
        table(chain, widths, variables, example),
        0,
        sizes,
    )
    return system._replace(deciding=_deciding(system))


def _span(name: str, span: tuple[float, float] | None) -> tuple[float, float]:
    low, high = SPANS[name] if span is None else span
    least, most = (-math.inf, 0.0) if name == RNP else (0.0, 1.0)
    inside = least < low < high < most if name == RNP else least < low < high <= most
    if not inside:
        kind = "below 0" if name == RNP else "above 0 and at most 1"
        raise ValueError(
            f"{KNOBS[name]} from {low} to {high}: {name} needs two ends that rise, {kind}"
        )
    return float(low), float(high)


def initial(system: System, key: Array) -> PyTree:
    """Parameters of what decides.

    Args:
      system: the system.
      key: PRNG key.
    """

    def everything(module: nn.Module) -> None:
        carry = None
        for site, size in enumerate(system.sizes):
            pooled, knob = jnp.zeros((1, size)), jnp.zeros(1)
            if isinstance(module, rnp.Decider):
                _, carry = module(pooled, carry, knob, site=site)
            else:
                module(pooled, knob, site=site)

    return nn.init(everything, system.module)(key)["params"]


def policy(
    system: System,
    params: PyTree,
    knob: Array,
    *,
    key: Array | None = None,
    epsilon: Array | float = 0.0,
    noise: Array | float = 1.0,
) -> Policy:
    """What a system decides.

    Args:
      system: the system.
      params: of what decides.
      knob: float32[] or float32[B]; see `check_knob`.
      key: for the noise of training; None at inference.
      epsilon: share of random decisions of runtime neural pruning, used with a key only.
      noise: scale of the noise of L-Net, C-Net and LC-Net, used with a key only.
    """
    place = scaled(system, knob)
    module = system.module
    if isinstance(module, rnp.Decider):
        return rnp.policy(module, params, place, jnp.asarray(knob), epsilon=epsilon, key=key)
    if isinstance(module, fbs.Boost):
        return fbs.policy(module, params, system.levels, place, knob)
    assert isinstance(module, lcnet.Salience)
    return lcnet.policy(module, params, system.levels, place, key=key, noise=noise)


def scaled(system: System, knob: Array) -> Array:
    """A knob's place in its span, from -1 to 1; prices by their logarithm."""
    low, high = system.span
    knob = jnp.asarray(knob, jnp.float32)
    if system.name == RNP:
        low, high, knob = math.log(-low), math.log(-high), jnp.log(-knob)
    return 2.0 * (knob - low) / (high - low) - 1.0


def at(system: System, place: Array) -> Array:
    """The knob at a place of its span, from -1 (the cheapest) to 1."""
    low, high = system.span
    share = (jnp.asarray(place, jnp.float32) + 1.0) / 2.0
    if system.name == RNP:
        return -jnp.exp(math.log(-low) + share * (math.log(-high) - math.log(-low)))
    return low + share * (high - low)


def nested(system: System) -> bool:
    """Whether a system runs the first channels of a site, not some of an image's own choice."""

    def decide(params: PyTree, pooled: Array) -> Array | None:
        return policy(system, params, jnp.asarray(system.span[0]))(0, pooled, None)[0].order

    params = jax.eval_shape(lambda key: initial(system, key), jax.random.key(0))
    pooled = jax.ShapeDtypeStruct((1, system.sizes[0]), jnp.float32)
    return jax.eval_shape(decide, params, pooled) is None


def tiled(system: System, variables: PyTree, images: jax.ShapeDtypeStruct) -> PyTree:
    """A network's variables for `SWITCHED`: large kernels of few positions in tiles, held twice.

    Args:
      system: the system; one whose choices are not nested gets its variables back.
      variables: of the network.
      images: float[B, H, W, D], of one call; other sizes run on them too, but were not weighed.
    """
    if not nested(system):
        return variables
    seen = inputs(system.chain, variables, images)
    return tiles.tiled(system.chain, system.levels, variables, seen)


def check_knob(system: System, knob: float) -> None:
    """Refuses a knob that the system was not trained for.

    Raises:
      ValueError: it lies outside the span.
    """
    low, high = system.span
    slack = 1e-6 * (high - low)
    if not low - slack <= knob <= high + slack:
        raise ValueError(
            f"{KNOBS[system.name]} {knob:g} lies outside of what {system.name} was trained for: "
            f"choose {low:g} to {high:g}, or train it with another span"
        )


def _deciding(system: System) -> float:
    params = jax.eval_shape(lambda key: initial(system, key), jax.random.key(0))
    pooled = [jax.ShapeDtypeStruct((1, size), jnp.float32) for size in system.sizes]

    def everything(params: PyTree, pooled: list[Array]) -> list[Any]:
        decide, carry, found = policy(system, params, jnp.asarray(system.span[0])), None, []
        for site, each in enumerate(pooled):
            choice, carry, note = decide(site, each, carry)
            found.append((choice, note))
        return found

    return float(cost.macs(everything, params, pooled))
