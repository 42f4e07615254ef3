"""Values of a config that no run can have, refused before anything is loaded or compiled."""

import math

from ml_collections import ConfigDict

from dce_jax import networks, signals
from experiments import pruners, pruning_checks
from experiments.choices import CHOICES, SIGNALS, one_of

_SMALLEST = {
    "batch_size": 1,
    "select_every": 1,
    "block": 1,
    "checkpoint_blocks": 1,
    "plans": 1,
    "recalibration_examples": 1,
    "seed": 0,
    "validation": 0,
    "scoring": 0,
    "devices": 0,
    "multiple_of": 0,
    "examples": 1,
    "image_size": 1,
    "threads": 1,
    "steps": 1,
    "rounds": 1,
    "search_evaluations": 1,
    "search_population": 1,
    "watch": 0,
}
_FRACTIONS = ("keep", "macs", "discount", "explore_keep", "grow")
_SHARES = {"commit": "steps", "warmup": "steps", "floor": "channels", "contest": "seats"}
_SHARES |= {"prune_dense": "time", "distill": "loss"}
_NOT_NEGATIVE = (
    "learning_rate",
    "weight_decay",
    "alpha",
    "alpha_end",
    "width",
    "sparsity",
    "penalty",
)


def check(config: ConfigDict) -> None:
    """Refuses single values, then values that exclude each other.

    Raises:
      ValueError: naming field, value, limit and, for names, the nearest known one.
    """
    for field, known in {"network": tuple(networks.NETWORKS), **CHOICES}.items():
        one_of(field, config[field], known)
    signals.check_name(config.signal, also=SIGNALS)
    for field, value in config.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{field} is {value}: it must be finite")
    for field, smallest in _SMALLEST.items():
        if config[field] is not None and config[field] < smallest:
            raise ValueError(f"{field} is {config[field]}: it must be at least {smallest}")
    for field in _FRACTIONS:
        if config[field] is not None and not 0.0 < config[field] <= 1.0:
            raise ValueError(f"{field} is {config[field]}: it must be above 0 and at most 1")
    for field, whole in _SHARES.items():
        if not 0.0 <= config[field] <= 1.0:
            raise ValueError(f"{field} is {config[field]}: it is a share of the {whole}, 0 to 1")
    for field in _NOT_NEGATIVE:
        if config[field] is not None and config[field] < 0:
            raise ValueError(f"{field} is {config[field]}: it must not be negative")
    # Epochs do not matter where steps are given.
    for field in ("init_scale",) if config.steps is not None else ("init_scale", "epochs"):
        if config[field] <= 0:
            raise ValueError(f"{field} is {config[field]}: it must be positive")
    if config.warmup == 1.0:
        raise ValueError("warmup is 1.0: nothing would be left to train at the full rate; below 1")
    _check_images(config)
    _check_budget(config)
    if config.pretrained:
        _check_pretrained(config)


def _check_pretrained(config: ConfigDict) -> None:
    """Refuses what is for networks that begin anew."""
    if config.method == "scratch":
        raise ValueError(
            f"pretrained is {config.pretrained!r}, but method scratch trains the narrow network "
            "from scratch: leave pretrained out, or choose subset or a pruning method"
        )
    if config.init_scale != 1.0:
        raise ValueError(
            f"init_scale is {config.init_scale}, but the network begins with the weights of "
            f"{config.pretrained!r}: leave one of the two out"
        )


def _check_images(config: ConfigDict) -> None:
    if config.image_size is not None and config.crop:
        raise ValueError(
            f"crop is {config.crop}, but image_size {config.image_size} cuts images at random "
            "already: use crop 0"
        )


def _check_budget(config: ConfigDict) -> None:
    """Refuses ways to a budget that exclude each other."""
    if config.widths and config.macs is not None:
        raise ValueError(
            f"macs is {config.macs} and widths {config.widths!r}: both say what executes; leave "
            "one of the two out"
        )
    if config.widths and config.whole:
        raise ValueError(
            f"whole is {config.whole!r} and widths {config.widths!r}: groups that widths do not "
            "name are whole already; leave one of the two out"
        )
    if config.allocation == "global" and (config.widths or config.method in ("scratch", "subset")):
        raise ValueError(
            "allocation is global, learned while a run explores, but "
            + ("widths are given" if config.widths else f"method {config.method} never explores")
            + ": use allocation=uniform, or --config.widths of a run that learned them"
        )
    if config.allocation == "global" and config.rewards == "rank" and not config.scoring:
        raise ValueError(
            "rewards are ranks, which say nothing of one layer against another, but allocation is "
            "global: use rewards=max, or score the whole network (scoring=20)"
        )
    for field in ("explore_keep", "scoring"):
        asked = config[field] and not (field == "scoring" and pruners.prunes(config))
        if asked and config.method not in ("dce", "random"):
            raise ValueError(
                f"{field} is {config[field]}, but method {config.method} has no bandit that "
                "explores: it is for dce and random"
            )
    if config.grow < 1.0 and config.method in ("dce", "random"):
        _check_growth(config)
    if pruners.prunes(config):
        pruning_checks.check(config)
    if config.latents:
        pruning_checks.check_latents(config)


def _check_growth(config: ConfigDict) -> None:
    """Refuses what a network that grows at its commit cannot do."""
    if config.explore_keep is not None:
        raise ValueError(
            f"grow is {config.grow} and explore_keep {config.explore_keep}: both say what executes "
            "until the commit; set grow to 1, or leave explore_keep out"
        )
    if config.commit >= 1.0:
        raise ValueError(
            f"grow is {config.grow}, but commit is {config.commit}: a network that never commits "
            "never grows; lower commit, or set grow to 1"
        )
    if config.allocation == "global" and not config.scoring:
        raise ValueError(
            f"grow is {config.grow} with allocation=global: channels that never executed have no "
            "mean to be compared by; give scoring, say 20 batches, or set grow to 1"
        )
