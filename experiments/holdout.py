"""Validation images cut from the training split, so that nothing is tuned on the test split."""

import numpy as np

from experiments.dataset import DataSet, Split, make_dataset, take
from experiments.encoded import Encoded


def hold_out(data: DataSet, *, validation: int, examples: int | None) -> DataSet:
    """Evaluates on training images instead of the test split, or trains on fewer.

    Which images are held out is fixed: the same for every seed, method and number of examples.

    Args:
      data: the data set.
      validation: training images to hold out; 0 keeps the test split.
      examples: how many of the rest to train on; None for all.

    Returns:
      The data set with those splits; a note says what its test split is now.

    Raises:
      ValueError: more images than there are.
    """
    if not validation and examples is None:
        return data
    count = data.train.num_images
    left = count - validation
    if left < 1:
        raise ValueError(
            f"{data.name} has {count} training images: validation={validation} leaves none to "
            f"train on; hold out at most {count - 1}"
        )
    if examples is not None and examples > left:
        raise ValueError(
            f"{data.name} has {count} training images: validation={validation} leaves {left}, and "
            f"examples={examples} of them cannot be trained on; lower one of the two"
        )
    order = np.random.default_rng(0).permutation(count)
    held = np.sort(order[:validation])
    kept = np.sort(order[validation : None if examples is None else validation + examples])
    notes = [f"trained on {len(kept)} of {count} training images"]
    if validation:
        notes.append(f"evaluated on {validation} held-out training images, not on the test split")
    train = take(data.train, kept)
    test = take(data.train, held) if validation else data.test
    said = (*data.notes, *notes)
    if isinstance(train, Split) and isinstance(test, Split):
        # The statistics of what is trained on.
        return make_dataset(
            data.name,
            train,
            test,
            num_classes=data.num_classes,
            notes=said,
            class_names=data.class_names,
        )
    return data._replace(train=train, test=test, notes=said)


def for_search(
    data: DataSet, *, examples: int, batch_size: int
) -> tuple[Split | Encoded, Split | Encoded]:
    """Cuts the images that a search judges by off the training split; fixed, as above.

    Args:
      data: the data set; its test split is not touched.
      examples: how many, rounded down to whole batches.
      batch_size: B.

    Returns:
      What is trained on until the search is over, and what it judges by.

    Raises:
      ValueError: less than a batch is left for either of the two.
    """
    there, held = data.train.num_images, examples // batch_size * batch_size
    if not held or there - held < batch_size:
        raise ValueError(
            f"search_examples={examples} of the {there} training images of {data.name} leave the "
            f"search {held} and training {max(0, there - held)} until then, in whole batches of "
            f"{batch_size}: each needs one batch at least"
        )
    order = np.random.default_rng(0).permutation(there)
    return take(data.train, np.sort(order[held:])), take(data.train, np.sort(order[:held]))
