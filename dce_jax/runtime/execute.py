"""Three ways to run a site, with the same outputs: masked, switched and in chunks.

Masked computes everything and multiplies by gates: it serves training, and saves nothing. Switched
runs one decision, of one image or shared by a batch: `jax.lax.switch` over the site's widths, so
only the chosen work runs. Chunked runs a decision per image: images are sorted by decision and cut
into chunks of equal size, each of which runs at the largest width that any of its images asks for,
narrower ones masked to their own; every image fits, and at most as many chunks as there are
further widths cost more than their images asked for. The values differ by rounding only.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from dce_jax.networks.gates import GATES, Tap, name_of, spread, tapping
from dce_jax.runtime import choice as choices
from dce_jax.runtime.chain import Chain, Link, cut, merged, variables_of
from dce_jax.runtime.choice import Choice
from dce_jax.runtime.tiles import instead, of
from dce_jax.types import Array, PyTree

STATISTICS = "batch_stats"


class Site(NamedTuple):
    """A link, and what was decided there and before it.

    Attributes:
      chain: the network.
      link: the site.
      widths: at which it may run.
      choice: what was decided; None for the first and last link.
      before: (widths, choice) of the site that its inputs come from; None where they are whole.
    """

    chain: Chain
    link: Link
    widths: tuple[int, ...] = ()
    choice: Choice | None = None
    before: tuple[tuple[int, ...], Choice] | None = None


class Execution(NamedTuple):
    """A way to run sites.

    Attributes:
      name: for people.
      run: (site, the network's variables, float[B, H, W, C]) -> float[B, H', W', C'].
      shared: whether a batch decides as one.
    """

    name: str
    run: Callable[[Site, PyTree, Array], Array]
    shared: bool


def whole(site: Site, variables: PyTree, x: Array, *, train: bool = False) -> tuple[Array, PyTree]:
    """Runs every channel of a link, masked by what was decided, if anything was.

    Args:
      site: the link.
      variables: of the network.
      x: float[B, H, W, C].
      train: normalise by the batch's statistics and update the running ones.

    Returns:
      The link's output and the network's variables.
    """
    chain, link = site.chain, site.link
    own: dict[str, Any] = variables_of(link, variables)
    options: dict[str, Any] = {}
    gated: AbstractContextManager[None] = nullcontext()
    if site.choice is not None and link.group is not None:
        gates = choices.gates(site.choice, site.widths)
        gates = jnp.broadcast_to(gates, (x.shape[0], gates.shape[1]))
        gated = tapping(_times(link.group, gates))
        share = choices.shares(site.choice, site.widths)
        if share is not None:
            options["share"] = jnp.broadcast_to(share, x.shape[:1])
    module = link.build(FrozenDict(chain.channels.full))
    found: Any
    updated = train and STATISTICS in own
    with gated:
        found = module.apply(own, x, train=train, mutable=updated and [STATISTICS], **options)
    if not updated:
        return found, variables
    y, new = found
    stats = merged(link, variables[STATISTICS], new[STATISTICS])
    return y, {**variables, STATISTICS: stats}


def _times(group: str, gates: Array) -> Tap:
    # Behind the ReLU: folded into the norm, a gate of zero would get no gradient.
    def tap(path: tuple[str, ...], parts: Mapping[str, int], y: Array) -> Array:
        del path
        return y * spread(gates.astype(y.dtype), y.ndim) if group in parts else y

    return tap


def inputs(
    chain: Chain, variables: PyTree, example: jax.ShapeDtypeStruct
) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes of what every link sees.

    Args:
      chain: the network.
      variables: of it, or their shapes.
      example: float[B, H, W, D], images.
    """
    found = [example]
    for link in chain.links[:-1]:
        y = jax.eval_shape(partial(_masked, Site(chain, link)), variables, found[-1])
        found.append(y)
    return tuple(found)


def _masked(site: Site, variables: PyTree, x: Array) -> Array:
    return whole(site, variables, x)[0]


def _switched(site: Site, variables: PyTree, x: Array) -> Array:
    assert site.choice is not None
    if site.choice.level.shape != (1,):
        raise ValueError(
            f"{site.choice.level.shape[0]} decisions at {site.link.name}, but a switch takes one: "
            "run one image at a time, share decisions, or use chunked(size)"
        )
    before = 0 if site.before is None else site.before[1].level[0]
    return _switch(site, before, site.choice.level[0], variables, x, site.choice)


def chunked(size: int, *, unrolled: bool = False) -> Execution:
    """Images sorted by decision and cut into chunks; the last one takes what is left.

    Args:
      size: images in a chunk, at least 1.
      unrolled: every chunk has a switch of its own; otherwise one switch in a loop serves all, and
        is compiled once.

    Raises:
      ValueError: no size; when it runs: larger than the batch, or channels that are not nested.
    """
    if size < 1:
        raise ValueError(f"chunks of {size} images: choose 1 or more")
    name = f"chunks of {size}" + (", unrolled" if unrolled else "")
    return Execution(name, partial(_chunked, size, unrolled), shared=False)


def _chunked(size: int, unrolled: bool, site: Site, variables: PyTree, x: Array) -> Array:
    assert site.choice is not None
    _check_chunks(size, site, x.shape[0])
    own = choices.each(site.choice, x.shape[0])
    level = own.level
    before = jnp.zeros_like(level)
    if site.before is not None:
        before = choices.each(site.before[1], x.shape[0]).level
    # The widest first; among equals those whose inputs are widest.
    order = jnp.lexsort((-before, -level))
    x, choice, before = x[order], choices.row(own, order), before[order]

    def run(carry: None, chunk: tuple[Array, Choice, Array]) -> tuple[None, Array]:
        x, mine, before = chunk
        return carry, _switch(site, before.max(), mine.level[0], variables, x, mine)

    whole, rest = divmod(x.shape[0], size)
    rows = jax.tree.map(lambda a: a[: whole * size], (x, choice, before))
    stacked = jax.tree.map(lambda a: a.reshape(whole, size, *a.shape[1:]), rows)
    _, y = jax.lax.scan(run, None, stacked, unroll=unrolled)
    y = y.reshape(whole * size, *y.shape[2:])
    if rest:
        last = jax.tree.map(lambda a: a[whole * size :], (x, choice, before))
        y = jnp.concatenate([y, run(None, last)[1]])
    return y[jnp.argsort(order)]


def _check_chunks(size: int, site: Site, batch: int) -> None:
    assert site.choice is not None
    if size > batch:
        raise ValueError(f"chunks of {size} images of a batch of {batch}: choose 1 to {batch}")
    if site.choice.order is not None:
        raise ValueError(
            f"images choose channels of their own at {site.link.name}, so no two of them can share "
            "a chunk: run them one at a time, or masked"
        )


def _switch(
    site: Site, before: Array | int, level: Array, variables: PyTree, x: Array, choice: Choice
) -> Array:
    """Runs a site at one of its widths, and at one of its inputs'."""
    inputs: Sequence[int | None] = (None,) if site.before is None else site.before[0]
    branches = [partial(_narrow, site, reads, width) for reads in inputs for width in site.widths]
    index = before * len(site.widths) + level
    orders = None if site.before is None else site.before[1].order
    return jax.lax.switch(index, branches, variables, x, choice, orders)


def _narrow(
    site: Site,
    reads: int | None,
    width: int,
    variables: PyTree,
    x: Array,
    choice: Choice,
    inputs: Array | None,
) -> Array:
    """Runs a site at fixed widths; each image is masked to its own, where they may differ."""
    chain, link = site.chain, site.link
    assert link.group is not None
    full = chain.width(link)
    orders = {link.group: _first(choice.order, width, full)}
    if reads is not None and link.reads is not None:
        orders[link.reads] = _first(inputs, reads, chain.channels.full[link.reads])
        x = _taken(x, orders[link.reads])
    options: dict[str, Any] = {}
    gates = _gates(site, choice, width, x.shape[0])
    share = choices.shares(choice, site.widths)
    if share is not None:
        options["share"] = jnp.broadcast_to(share, x.shape[:1])
    y = _run(chain, link, width, orders, variables, x, gates, **options)
    return y if link.skippable else _spread(y, choice, full)


def at_widths(
    chain: Chain, link: Link, reads: int | None, width: int, variables: PyTree, x: Array
) -> Array:
    """Runs a site at its first channels alone.

    Args:
      chain: the network.
      link: the site.
      reads: how many channels of its inputs are not zero; None: all.
      width: how many channels it computes; 0: the branch is skipped.
      variables: of the network.
      x: float[B, H, W, C].

    Returns:
      float[B, H', W', C'], C' the width where that is what the site puts out.
    """
    assert link.group is not None
    kept: dict[str, int | Array] = {link.group: width}
    if reads is not None and link.reads is not None:
        kept[link.reads], x = reads, x[..., :reads]
    return _run(chain, link, width, kept, variables, x, None)


def _run(
    chain: Chain,
    link: Link,
    width: int,
    kept: Mapping[str, int | Array],
    variables: PyTree,
    x: Array,
    gates: Array | None,
    **options: Any,
) -> Array:
    """A link at some of its channels, group -> how many or which."""
    full = chain.channels.full
    if not width:
        around: Any = link.build(FrozenDict(full))
        return cast(Array, around.apply(variables_of(link, variables), x, train=False, skip=True))
    sizes = {g: k if isinstance(k, int) else k.shape[0] for g, k in kept.items()}
    nested = all(isinstance(k, int) for k in kept.values())
    tiles = of(link, variables) if nested else None
    own: dict[str, Any] = cut(chain, link, variables, kept)
    if gates is not None and link.group is not None:
        own[GATES] = {name_of(link.group): gates.astype(x.dtype)}
    narrow: Any = link.build(FrozenDict({**full, **sizes}))
    with nullcontext() if tiles is None else instead(tiles):
        return cast(Array, narrow.apply(own, x, train=False, **options))


def _first(order: Array | None, width: int, full: int) -> int | Array:
    """The channels that run: so many of the first, or which."""
    return width if order is None or width == full else order[0, :width]


def _taken(x: Array, kept: int | Array) -> Array:
    return x[..., :kept] if isinstance(kept, int) else jnp.take(x, kept, axis=-1, mode="clip")


def _gates(site: Site, choice: Choice, width: int, batch: int) -> Array | None:
    """float[B, K] of the channels that run; None where they are all ones."""
    if choice.scale is None and choice.level.shape[0] == 1:
        return None
    gates = choices.gates(choice, site.widths)
    gates = jnp.broadcast_to(gates, (batch, gates.shape[1]))
    return _taken(gates, _first(choice.order, width, gates.shape[1]))


def _spread(y: Array, choice: Choice, full: int) -> Array:
    """Channels that ran back in their places, among zeros."""
    width = y.shape[-1]
    if width == full:
        return y
    if choice.order is None:
        return jnp.pad(y, ((0, 0), (0, 0), (0, 0), (0, full - width)))
    rank = choices.ranks(choice, full)[0]
    found = jnp.take(y, jnp.minimum(rank, width - 1), axis=-1, mode="clip")
    return jnp.where(rank < width, found, 0.0).astype(y.dtype)


MASKED = Execution("masked", _masked, shared=False)
SWITCHED = Execution("switched", _switched, shared=True)
