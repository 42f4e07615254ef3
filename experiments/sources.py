"""The batches of a run, from its config."""

from ml_collections import ConfigDict

from experiments import holdout
from experiments.dataset import DataSet
from experiments.pipeline import Augment, Source, make_source
from experiments.placement import Placement


def open_source(
    config: ConfigDict,
    data: DataSet,
    steps: int,
    *,
    start_step: int,
    placement: Placement | None = None,
    searching: bool = False,
) -> Source:
    """The batches of a run, whose first ones spare what latents will be searched by.

    Args:
      config: of the run.
      data: the data set.
      steps: of the whole run.
      start_step: first step that will be asked for.
      placement: of the batches.
      searching: whether latents are still to be searched.
    """
    trained = data.train
    if searching:
        trained, _ = holdout.for_search(
            data, examples=config.search_examples, batch_size=config.batch_size
        )
    return make_source(
        trained,
        batch_size=config.batch_size,
        steps=steps,
        start_step=start_step,
        seed=config.seed,
        mean=data.mean,
        std=data.std,
        augment=augmentation(config),
        threads=config.threads,
        placement=placement or Placement(),
    )


def augmentation(config: ConfigDict) -> Augment:
    """Crop and flip of a config."""
    return Augment(config.crop, config.flip)
