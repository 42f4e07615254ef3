"""Saliency signals: what a channel was worth in one step, as functions of one callable type.

Every signal maps `Evidence` of a slab to non-negative numbers per executed channel; `to_unit` or
`to_ranks` scales them to [0, 1] per group, as the bandit needs. Which signal the method of Spasov
and Lio (BMVC 2019) uses is not known: the choice is this project's.
"""

import functools
import operator
from collections.abc import Callable, Iterable, Mapping

import jax.numpy as jnp

from dce_jax.types import Array, Evidence, Parts, Path, PyTree, Rewards, Signal

Norms = Mapping[str, tuple[Path, ...]]
"""Channel group -> paths of the norms that carry its reward (``reward_norms`` of a network)."""

Kernels = Mapping[str, tuple[Path, ...]]
"""Channel group -> paths of the kernels whose last axis produces it (`channels.producers`)."""


def norm_taylor(norms: Norms, parts: Parts | None = None) -> Signal:
    """Batch-level first-order Taylor, read off the norms' own gradients at no cost.

    ``|sum over norms of (gamma dL/dgamma + beta dL/dbeta)|`` is ``|sum of y dL/dy|`` over examples
    and positions at a norm's output y, and equally behind a ReLU or leaky ReLU, which are
    positively homogeneous; not behind ReLU6 or GELU. It is identically zero for a norm whose output
    meets another train-mode norm through a per-channel map: networks declare norms that do not.

    Args:
      norms: a network's ``reward_norms()``.
      parts: where groups lie on norms over concatenations, at the slab's widths
        (`dce_jax.parts.norm_parts`); such a norm cannot be read without.
    """

    def value(evidence: Evidence) -> Rewards:
        terms = functools.partial(_norm_terms, evidence)
        return {g: jnp.abs(_over_norms(terms, paths, g, parts)) for g, paths in norms.items()}

    return Signal("norm_taylor", False, value)


def gate_taylor() -> Signal:
    """Per-example first-order Taylor ``mean_b |sum of y dL_b/dy|`` (Molchanov et al. 2017).

    Read off unit gates. Under train-mode norms an example's term also holds what it did to the
    other examples through the shared statistics; with norms in inference mode it is the gradient
    of the single example's loss.
    """

    def value(evidence: Evidence) -> Rewards:
        return {g: jnp.sum(jnp.abs(_total(gates)), axis=0) for g, gates in evidence.gates.items()}

    return Signal("gate_taylor", True, value)


def batch_gate_taylor() -> Signal:
    """Batch-level Taylor read off gates: equals `norm_taylor`, for groups without a norm."""

    def value(evidence: Evidence) -> Rewards:
        return {g: jnp.abs(jnp.sum(_total(gates), axis=0)) for g, gates in evidence.gates.items()}

    return Signal("batch_gate_taylor", True, value)


def fisher() -> Signal:
    """Empirical Fisher ``1/2 mean_b (sum of y dL_b/dy)^2`` (Theis et al. 2018, per feature map)."""

    def value(evidence: Evidence) -> Rewards:
        # Gate gradients are of the batch mean: times B they are an example's own.
        return {
            g: 0.5 * gates[0].shape[0] * jnp.sum(jnp.square(_total(gates)), axis=0)
            for g, gates in evidence.gates.items()
        }

    return Signal("fisher", True, value)


def weight_l1(kernels: Kernels) -> Signal:
    """Sum of absolute weights that produce a channel (Li et al. 2017)."""
    return Signal("weight_l1", False, lambda e: _over_weights(e.params, kernels, jnp.abs))


def weight_sqr(kernels: Kernels) -> Signal:
    """Squared Euclidean norm of the weights that produce a channel (Chin et al. 2020, LeGR).

    The norms of kernels that produce one coupled group add up.
    """
    return Signal("weight_sqr", False, lambda e: _over_weights(e.params, kernels, jnp.square))


def weight_l2(kernels: Kernels) -> Signal:
    """Euclidean norm of the weights that produce a channel."""
    squared = weight_sqr(kernels)

    def value(evidence: Evidence) -> Rewards:
        return {group: jnp.sqrt(total) for group, total in squared.value(evidence).items()}

    return Signal("weight_l2", False, value)


def norm_scale(norms: Norms, parts: Parts | None = None) -> Signal:
    """``|gamma|`` of the group's norms, added up (Liu et al. 2017, network slimming).

    Args:
      norms: as for `norm_taylor`.
      parts: as for `norm_taylor`.
    """

    def scale(evidence: Evidence, path: Path) -> Array:
        return jnp.abs(at(evidence.params, (*path, "scale")))

    def value(evidence: Evidence) -> Rewards:
        terms = functools.partial(scale, evidence)
        return {g: _over_norms(terms, paths, g, parts) for g, paths in norms.items()}

    return Signal("norm_scale", False, value)


def to_unit(values: Rewards, *, signed: bool = False) -> Rewards:
    """Scales each group by its largest finite value, to float32 in [0, 1].

    An all-zero group stays zero; NaN and infinite values stay what they are, for the bandit to
    count and report. A channel alone (K = 1) has 1, whatever it is worth: a bandit that plays one
    channel at a time learns nothing from it.

    Args:
      values: group -> float[K].
      signed: values may be negative: the smallest finite one of each group becomes 0 first.
    """
    found = {group: value.astype(jnp.float32) for group, value in values.items()}
    if signed:
        found = {group: value - _least([value]) for group, value in found.items()}
    return {group: _unit(value) for group, value in found.items()}


def to_ranks(values: Rewards, *, signed: bool = False) -> Rewards:
    """Share of a group's other channels that each one beats, float32 in [0, 1]; a tie counts half.

    Spreads evenly what `to_unit` crowds near zero where one channel leads by far. Ranks say nothing
    of one group against another. A channel alone has 1; NaN and infinite values stay what they are.

    Args:
      values: group -> float[K].
      signed: values may be negative, which changes no rank.
    """
    del signed
    return {group: _ranks(value.astype(jnp.float32)) for group, value in values.items()}


def from_zero(values: Rewards) -> Rewards:
    """Takes the smallest finite value of all groups off every one.

    What signed values need before channels of several groups are ranked together: the order stays
    what it was, within groups and across.
    """
    least = _least(values.values())
    return {group: value - least for group, value in values.items()}


def check_cover(signal: Signal, values: Mapping[str, Array], groups: tuple[str, ...]) -> None:
    """Refuses a signal that has nothing to say about a contested group.

    Raises:
      ValueError: groups without a value, with the remedy.
    """
    missing = [group for group in groups if group not in values]
    if missing:
        raise ValueError(
            f"signal {signal.name!r} has no value for groups {missing}: declare their norms in the "
            "network's reward_norms(), or call dce_jax.networks.gate(self, y, group) where the "
            "group's channels are read and use a gate signal"
        )


def _unit(value_K: Array) -> Array:
    largest = jnp.max(jnp.where(jnp.isfinite(value_K), value_K, 0.0))
    return value_K / jnp.where(largest > 0, largest, 1.0)


def _ranks(value_K: Array) -> Array:
    finite_K = jnp.isfinite(value_K)
    sorted_K = jnp.sort(jnp.where(finite_K, value_K, jnp.inf))
    below_K = jnp.searchsorted(sorted_K, value_K, side="left")
    equal_K = jnp.searchsorted(sorted_K, value_K, side="right") - below_K
    beaten_K = below_K.astype(jnp.float32) + 0.5 * (equal_K - 1).astype(jnp.float32)
    others = jnp.sum(finite_K, dtype=jnp.int32) - 1
    share_K = beaten_K / jnp.maximum(others, 1).astype(jnp.float32)
    return jnp.where(finite_K, jnp.where(others > 0, share_K, 1.0), value_K)


def _least(values: Iterable[Array]) -> Array:
    smallest = [jnp.min(jnp.where(jnp.isfinite(v), v, jnp.inf)) for v in values]
    least = jnp.min(jnp.stack(smallest))
    return jnp.where(jnp.isfinite(least), least, 0.0)


def _norm_terms(evidence: Evidence, path: Path) -> Array:
    # A norm may lack one of the two vectors; its share is then another layer's to carry.
    weights, grads = at(evidence.params, path), at(evidence.grads, path)
    return _total(weights[name] * grads[name] for name in weights)


def _over_norms(
    terms: Callable[[Path], Array], paths: Iterable[Path], group: str, parts: Parts | None
) -> Array:
    """Adds up what a group's norms say, each at the places where the group lies."""
    found = []
    for path in paths:
        places = (parts or {}).get(path, {}).get(group)
        whole = terms(path)
        found += [whole] if places is None else [whole[start : start + n] for start, n in places]
    if len({term.shape for term in found}) > 1:
        raise ValueError(
            f"the norms of group {group!r} have different sizes {[t.shape[0] for t in found]}: "
            "where a norm holds several groups, pass dce_jax.parts.norm_parts(channels, widths)"
        )
    return _total(found)


def _over_weights(params: PyTree, kernels: Kernels, pointwise: Callable[[Array], Array]) -> Rewards:
    def reduce(kernel: Array) -> Array:
        return jnp.sum(pointwise(kernel), axis=tuple(range(kernel.ndim - 1)))

    return {
        group: _total(reduce(at(params, path)) for path in paths)
        for group, paths in kernels.items()
    }


def _total(terms: Iterable[Array]) -> Array:
    return functools.reduce(operator.add, terms)


def at(tree: PyTree, path: Path) -> PyTree:
    """The subtree or leaf of parameters at a path.

    Raises:
      ValueError: there is none.
    """
    for name in path:
        if name not in tree:
            raise ValueError(f"no parameter {'/'.join(path)}: {name!r} is not in {sorted(tree)}")
        tree = tree[name]
    return tree
