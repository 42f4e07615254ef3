"""Any signal by its name, as the bandit, a scoring pass or a pruning loop takes it."""

import difflib
from collections.abc import Callable, Collection

import flax.linen as nn
import jax

from dce_jax.channels import ChannelMap
from dce_jax.signals import algebra, evaluate, extra, named, sites
from dce_jax.signals.curvature import Curvature
from dce_jax.signals.sites import Scene
from dce_jax.types import Array, Evidence, Rewards, Signal


def names() -> tuple[str, ...]:
    """The algebra, 396 names in fixed order."""
    return tuple(str(formula) for formula in algebra.formulas())


def other_names() -> tuple[str, ...]:
    """Published criteria, what is no point of the algebra, and the formulas outside the 396."""
    return (*named.BY_NAME, *extra.BY_NAME, *map(str, algebra.others()))


def check_name(name: str, also: Collection[str] = ()) -> None:
    """Refuses a name that means no signal.

    Args:
      name: what was asked for.
      also: names that mean something elsewhere.

    Raises:
      ValueError: with the nearest name that means something.
    """
    known = (*also, *named.BY_NAME, *extra.BY_NAME)
    if name in known:
        return
    if name.count(".") == 3:
        algebra.parse(name)
        return
    near = difflib.get_close_matches(name, (*known, *names()), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(
        f"unknown signal {name!r}{hint} `python -m experiments.signals --list` and `--list-extra` "
        "print every name"
    )


def signal(
    name: str,
    module: nn.Module,
    channels: ChannelMap,
    *,
    second: Curvature | None = None,
    chunk: int | None = None,
) -> Signal:
    """A signal by name, computed by inference passes of its own over the step's batch.

    The network runs again, beside the training step: about once more for a first-order signal,
    once more per class for one that takes second derivatives.

    Args:
      name: of the algebra, a published criterion, or an extra (`names`, `other_names`).
      module: the network at the widths of the evidence's parameters.
      channels: the map of the full-width network.
      second: how second derivatives are computed; None: `curvature.diagonal`.
      chunk: examples at a time, None for all at once.

    Raises:
      ValueError: an unknown name, or a group that nothing of the signal's base belongs to.
    """
    check_name(name)
    value, signed = _lookup(name, second, chunk)
    base = (named.BY_NAME[name].formula.base if name in named.BY_NAME else name).split(".")[0]
    if base not in (*sites.GATED, "random"):
        sites.kernels(channels, name)

    def of(evidence: Evidence) -> Rewards:
        state, key = evidence.model_state or {}, evidence.key
        scene = Scene(module, channels, evidence.params, state, evidence.batch)
        return value(scene, jax.random.key(0) if key is None else key)

    return Signal(name, False, of, signed=signed, own_pass=True)


def unscaled(name: str) -> str:
    """The signal whose mean over batches is to be taken before `scaled` gives what was asked for.

    The l2 norm of a mean is not the mean of l2 norms, so a formula's scaling has to wait until all
    examples are in. Other signals, and formulas that are not scaled, stay as they are.
    """
    found = _named(name)
    if found is None or found.formula.scaling == "none":
        return name
    return str(evaluate.unscaled(found.formula))


def scaled(name: str, scene: Scene, means: Rewards) -> Rewards:
    """A signal from the means of its `unscaled` one.

    Args:
      name: of the signal that was asked for.
      scene: the network; its batch gives the shape of an example.
      means: group -> float[C], over all examples.

    Returns:
      Group -> float[C].

    Raises:
      ValueError: a group that nothing of the signal's base belongs to.
    """
    found = _named(name)
    if found is None or unscaled(name) == name:
        return means
    plain = {evaluate.unscaled(found.formula): means}
    values = evaluate.scaled([found.formula], scene, plain)[found.formula]
    return {group: each * found.factor for group, each in values.items()}


def _named(name: str) -> named.Named | None:
    """The formula that a name stands for, None where it is no formula."""
    if name in named.BY_NAME:
        return named.BY_NAME[name]
    if name.count(".") != 3:
        return None
    return named.Named(algebra.parse(name), 1.0, "")


def _lookup(
    name: str, second: Curvature | None, chunk: int | None
) -> tuple[Callable[[Scene, Array], Rewards], bool]:
    """The signal's function, and whether its values may be negative."""
    if name in extra.BY_NAME:
        found, signed = extra.BY_NAME[name]
        return lambda scene, key: found(scene, key, name), signed
    formula, factor, _ = _named(name) or named.Named(algebra.parse(name), 1.0, "")

    def value(scene: Scene, key: Array) -> Rewards:
        values = evaluate.value(formula, scene, second=second, key=key, chunk=chunk)
        return {group: each * factor for group, each in values.items()}

    return value, algebra.is_signed(formula)
