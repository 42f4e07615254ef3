"""A trained network that a study asks: read from the workdir of a finished run."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dce_jax import channel_map, compact, networks
from dce_jax.signals import Scene
from dce_jax.types import Array
from experiments import data, holdout, records
from experiments.dataset import DataSet, take
from experiments.pipeline import eval_batches, normalise
from experiments.summary import judged_on

COMPACT, RESULT = "compact", "result.json"


class Subject(NamedTuple):
    """A trained network and its data.

    Attributes:
      result: the run's ``result.json``.
      scene: the network, at the widths that it ended with; without a batch.
      data: the run's data set, cut as it was: images that it held out are the test split.
      model: the compact model that the network is.
    """

    result: dict[str, Any]
    scene: Scene
    data: DataSet
    model: compact.Compact


def read(workdir: Path, data_dir: str | None) -> Subject:
    """The network that a finished run ended with.

    Args:
      workdir: of ``experiments.train`` or ``experiments.prune``.
      data_dir: TFDS data directory, where the run's data set lies in one.

    Raises:
      FileNotFoundError: no finished run there, or no data.
      ValueError: a damaged model, or a data set of another shape.
    """
    result = records.read_result(workdir / RESULT)
    config = result["config"]
    whole = data.load(config["dataset"], data_dir=data_dir, image_size=config.get("image_size"))
    images = holdout.hold_out(
        whole, validation=config.get("validation", 0), examples=config.get("examples")
    )
    built = networks.build(config["network"], num_classes=images.num_classes)
    module, model = compact.load(workdir / COMPACT, type(built))
    state = {name: tree for name, tree in model.variables.items() if name != "params"}
    example = jax.ShapeDtypeStruct((2, *images.image_shape), jnp.float32)
    scene = Scene(module, channel_map(module, example), model.variables["params"], state)
    return Subject(result, scene, images, model)


def facts(subject: Subject) -> dict[str, Any]:
    """What results say of the network that was asked."""
    kept = ("network", "dataset", "method", "seed", "test_accuracy", "widths", "command")
    return {key: subject.result[key] for key in kept} | {
        "judged_on": judged_on([subject.result]),
        "notes": list(subject.data.notes),
    }


def batches(subject: Subject, split: str, examples: int, size: int) -> Iterator[dict[str, Array]]:
    """The first images of a split as a network sees them in inference, in full batches.

    Args:
      subject: its data.
      split: ``train`` or ``test``.
      examples: how many; rounded down to whole batches, at least one.
      size: of a batch.

    Yields:
      ``{"image": float32[B, H, W, D], "label": int32[B]}``.
    """
    whole = getattr(subject.data, split)
    size = min(size, whole.num_images)
    count = max(1, min(examples, whole.num_images) // size) * size
    scale = partial(normalise, mean=subject.data.mean, std=subject.data.std)
    for batch in eval_batches(take(whole, slice(count)), size):
        yield {"image": scale(batch["image"]), "label": jnp.asarray(batch["label"])}
