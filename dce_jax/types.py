"""Letter key, array aliases and callable types shared by the whole package.

Letters, in names, comments and einsums:

- ``B`` examples of a batch
- ``C`` channels of a group at full width; ``K`` channels that execute (the budget)
- ``H``, ``W`` height and width of an image or feature map
- ``D`` input features and ``F`` output features of a layer
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax

Array: TypeAlias = jax.Array
PyTree: TypeAlias = Any
Path: TypeAlias = tuple[str, ...]

Widths: TypeAlias = Mapping[str, int]
"""Channel group -> number of channels."""

Parts: TypeAlias = Mapping[Path, Mapping[str, tuple[tuple[int, int], ...]]]
"""Path of a norm over several groups -> group -> ``(start, size)`` of each of its places."""

Selection: TypeAlias = dict[str, Array]
"""Channel group -> int32[K] indices: sorted, distinct, in range; absent groups are whole."""

Rewards: TypeAlias = dict[str, Array]
"""Channel group -> float32[K] non-negative values of the executed channels."""

Alpha: TypeAlias = float | Callable[[Array], Array]
"""Scale of the confidence radius: a number, or a schedule over the count of selections."""

Contest: TypeAlias = float | Callable[[Array], Array]
"""Share of the seats open to other arms: a number, or a schedule over the count of selections."""


class Arms(NamedTuple):
    """What a score function may know about the arms of one group.

    Attributes:
      mean_C: float32[C], mean reward of each arm, 0 where it was never played.
      plays_C: float32[C], (discounted) number of plays.
      total: float32[], (discounted) number of selections so far.
      selections: int32[], number of selections so far, never discounted.
      seated_C: bool[C], whether an arm was in its group's latest selection.
    """

    mean_C: Array
    plays_C: Array
    total: Array
    selections: Array
    seated_C: Array


ScoreFn: TypeAlias = Callable[[Array, Arms], Array]
"""(key, arms) -> float32[C]; the K largest scores are selected, equal ones by a fair draw."""


class Evidence(NamedTuple):
    """What one training step offers to a signal; every array is of the slab.

    Attributes:
      params: the slab's parameters, as the forward pass used them.
      grads: gradient of the batch-mean loss alone (no L2 term, not clipped), like ``params``.
      gates: gate gradients, group -> tuple of float[B, K], of the batch-mean loss; empty for
        signals that need none.
      model_state: what the forward pass began with: collection -> tree.
      batch: what the loss took, for signals that run the network themselves.
      key: PRNG key for signals that draw.
    """

    params: PyTree
    grads: PyTree
    gates: Mapping[str, tuple[Array, ...]]
    model_state: PyTree = None
    batch: PyTree = None
    key: Array | None = None


class UnitFn(Protocol):
    """What a signal says of each group's channels, as rewards in [0, 1]."""

    def __call__(self, values: Rewards, *, signed: bool = False) -> Rewards:
        """Group -> float32[K]; ``signed`` where a value may be negative."""


class Signal(NamedTuple):
    """A channel saliency signal.

    Attributes:
      name: how tables and configs call it.
      needs_gates: whether ``Evidence.gates`` must be filled.
      value: ``Evidence -> {group: float32[K]}``, unscaled; non-negative but where signed.
      signed: whether a value may be negative; the smallest is worth least all the same.
      own_pass: whether it runs the network itself, on ``Evidence.batch``.
    """

    name: str
    needs_gates: bool
    value: Callable[[Evidence], Rewards]
    signed: bool = False
    own_pass: bool = False


LossFn: TypeAlias = Callable[..., tuple[Array, tuple[PyTree, dict[str, Array]]]]
"""``(params, model_state, gates, batch, key) -> (mean loss, (new model_state, metrics))``."""
