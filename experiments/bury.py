"""A trained network without the units that are dead in it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from dce_jax import channels as maps
from dce_jax import compact, cost, masks, pruning
from dce_jax.budget import from_widths
from dce_jax.pruning import oracle
from dce_jax.pruning.choose import Kept
from dce_jax.pruning.dead import Dead
from dce_jax.pruning.folding import CannotFoldError
from dce_jax.types import Array, PyTree
from experiments.subject import Subject

Batches = Sequence[Mapping[str, Array]]


class Lean(NamedTuple):
    """The network that is left.

    Attributes:
      asked: it, and where it comes from.
      folded: whether the means of what went are in its biases.
    """

    asked: Subject
    folded: bool


def without(asked: Subject, dead: Mapping[str, Dead], batches: Batches) -> Lean:
    """Cuts out units that are zero or constant; constants are folded where they can be.

    Args:
      asked: the trained network.
      dead: what `pruning.dead.report` found in it.
      batches: training images, for what the constants are.
    """
    kept, scene = pruning.dead.survivors(dead), asked.scene
    widths = maps.module_widths(scene.module)
    narrow = {group: len(each) for group, each in kept.items()}
    trees, folds = _folded(asked, kept, batches)
    chosen = {group: jnp.asarray(each) for group, each in kept.items()}
    model = compact.extract(scene.channels, from_widths(widths, narrow), trees, chosen)
    variables = dict(model.variables)
    params = variables.pop("params")
    left = scene._replace(
        module=maps.with_widths(scene.module, narrow), params=params, model_state=variables
    )
    original = {group: asked.model.selection[group][each] for group, each in kept.items()}
    full = asked.model.budget.full
    lean = compact.Compact(model.variables, from_widths(full, narrow), original)
    return Lean(asked._replace(scene=left, model=lean), folds)


def facts(asked: Subject, batches: Batches) -> dict[str, Any]:
    """What is left of a network: widths, what it costs, and how well it does.

    Args:
      asked: the network.
      batches: the images that it is judged on.
    """
    scene = asked.scene
    variables = {"params": scene.params, **scene.model_state}
    example = batches[0]["image"][:1]
    widths = dict(maps.module_widths(scene.module))
    judged = oracle.judge(scene, batches)(masks.of({}, widths))
    return {
        "widths": widths,
        "params": cost.parameters(scene.params),
        "macs": cost.macs(lambda v, x: scene.module.apply(v, x), variables, example),
        "loss": float(judged.loss_N.mean()),
        "accuracy": float(judged.right_N.mean()),
    }


def _folded(asked: Subject, kept: Kept, batches: Batches) -> tuple[PyTree, bool]:
    scene, images = asked.scene, [batch["image"] for batch in batches]
    try:
        params, state = pruning.fold(scene, images, kept)
    except CannotFoldError:
        return {"params": scene.params, **scene.model_state}, False
    return {"params": params, **state}, True
