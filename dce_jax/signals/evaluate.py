"""Formulas of the algebra, evaluated on a network."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp

from dce_jax import means
from dce_jax.signals import curvature, reduction, scaling, sums
from dce_jax.signals.algebra import Formula
from dce_jax.signals.curvature import Curvature
from dce_jax.signals.sites import Scene
from dce_jax.types import Array, PyTree, Rewards


def values(
    formulas: Collection[Formula],
    scene: Scene,
    *,
    second: Curvature | None = None,
    key: Array | None = None,
    chunk: int | None = None,
) -> dict[Formula, Rewards]:
    """Every formula's value for every channel of every group, in inference mode.

    Formulas of one base share their derivatives, so ask for many at once, and compile the caller
    where it is called often. Derivatives of activations are summed up as the backward pass meets
    them: it holds no more than an ordinary one. Those of weights take a copy of the kernels per
    example of a ``chunk`` (not the linear reductions of ``taylor``, which the layers' outputs
    give), and second derivatives a copy per class.

    Args:
      formulas: what to compute.
      scene: the network and its examples.
      second: how second derivatives are computed; None: `curvature.diagonal`.
      key: for estimates; None: a fixed one.
      chunk: examples at a time, None for all at once.

    Returns:
      Formula -> group -> float[C], at least in single precision; may be negative where
      `algebra.is_signed` says so.

    Raises:
      ValueError: a group that a formula's base does not reach, or no examples.
    """
    found: dict[Formula, Rewards] = {}
    for base in dict.fromkeys(formula.base for formula in formulas):
        asked = [formula for formula in formulas if formula.base == base]
        wanted: dict[str, set[str]] = {}
        for formula in asked:
            wanted.setdefault(formula.pointwise, set()).add(formula.reduction)
        computed = sums.of_base(
            scene,
            base,
            wanted,
            str(asked[0]),
            second=second or curvature.diagonal(),
            key=jax.random.key(0) if key is None else key,
            chunk=chunk,
        )
        plain = {}
        for formula in asked:
            reduce = reduction.BY_NAME[formula.reduction]
            plain[unscaled(formula)] = {
                group: jnp.mean(reduce(each), axis=0)
                for group, each in computed[formula.pointwise].items()
            }
        found |= scaled(asked, scene, plain)
    return found


def averages(
    formulas: Collection[Formula],
    scene: Scene,
    batches: Sequence[Mapping[str, Array]],
    *,
    second: Curvature | None = None,
    chunk: int | None = None,
    report: Callable[[int, int], None] | None = None,
) -> dict[Formula, Rewards]:
    """Every formula's value over more examples than fit at once: their mean, then the scaling.

    ``centred`` takes each batch's own means away, and estimates draw anew for each batch.

    Args:
      formulas: what to compute.
      scene: the network; its batch is not read.
      batches: ``{"image": float[B, ...], "label": int[B]}``; a batch of another size is compiled
        for and weighs as much as its examples.
      second: as for `values`.
      chunk: as for `values`.
      report: called as ``report(done, batches)`` after every batch.

    Returns:
      Formula -> group -> float[C], as `values` of all the examples together.

    Raises:
      ValueError: as for `values`, or no batches.
    """
    plain = list(dict.fromkeys(unscaled(formula) for formula in formulas))

    @jax.jit
    def of(params: PyTree, state: PyTree, batch: Mapping[str, Array], key: Array) -> list[Rewards]:
        one = scene._replace(params=params, model_state=state, batch=batch)
        found = values(plain, one, second=second, key=key, chunk=chunk)
        return [found[formula] for formula in plain]

    def parts() -> Iterator[tuple[list[Rewards], int]]:
        for index, batch in enumerate(batches):
            key = jax.random.fold_in(jax.random.key(0), index)
            yield of(scene.params, scene.model_state, batch, key), len(batch["label"])
            if report is not None:
                report(index + 1, len(batches))

    found = dict(zip(plain, means.over(parts(), "signals"), strict=True))
    return scaled(formulas, scene._replace(batch=batches[0]), found)


def unscaled(formula: Formula) -> Formula:
    """The formula whose mean over all examples is taken before `scaled` divides it."""
    return replace(formula, scaling="none")


def scaled(
    formulas: Collection[Formula], scene: Scene, means: Mapping[Formula, Rewards]
) -> dict[Formula, Rewards]:
    """Formulas from the means of their `unscaled` ones.

    Args:
      formulas: what is asked for.
      scene: the network; its batch gives the shape of an example.
      means: of every formula's unscaled one.

    Raises:
      ValueError: a group that a formula's base does not reach.
    """
    counts: dict[tuple[str, str], dict[str, int]] = {}
    found = {}
    for formula in formulas:
        name = (formula.base, formula.scaling)
        if name not in counts:
            counts[name] = scaling.counts(scene, *name, str(formula))
        found[formula] = scaling.scaled(means[unscaled(formula)], formula.scaling, counts[name])
    return found


def value(
    formula: Formula,
    scene: Scene,
    *,
    second: Curvature | None = None,
    key: Array | None = None,
    chunk: int | None = None,
) -> Rewards:
    """One formula's value; see `values`."""
    return values([formula], scene, second=second, key=key, chunk=chunk)[formula]
