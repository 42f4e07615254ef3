"""Values of a config that no run can have, refused before anything is loaded or compiled."""

import difflib
import math
from typing import get_args

from ml_collections import ConfigDict

from dce_jax import allocate, networks, saliency, scores, signals
from dce_jax.lookups import Lookup
from dce_jax.pruning import evolve
from experiments import pruners
from experiments.pruners import Pruner

METHODS = ("dce", "dense", "scratch", "subset", "random", *pruners.METHODS)
# What a training step gives away; every other signal is one of `dce_jax.signals`.
SIGNALS = (
    "norm_taylor",
    "gate_taylor",
    "batch_gate_taylor",
    "fisher",
    "weight_l1",
    "weight_l2",
    "weight_sqr",
    "norm_scale",
)
SCALES = {
    "max": allocate.by_max,
    "l2": allocate.by_l2,
    "mean": allocate.by_mean,
    "none": allocate.as_they_are,
}
REWARDS = {"max": saliency.to_unit, "rank": saliency.to_ranks}
TARGETS = ("macs", "params")
FINAL = {"best": scores.best, "random": scores.random, "worst": scores.worst}

_CHOICES = {
    "method": METHODS,
    "dtype": ("float32", "bfloat16"),
    "allocation": ("uniform", "global"),
    "scale": tuple(SCALES),
    "target": TARGETS,
    "rewards": tuple(REWARDS),
    "final": tuple(FINAL),
    "rate_over": ("steps", "macs"),
    "lookup": get_args(Lookup),
    "scan": ("auto", "on", "off"),
    "sharding": ("replicated", "sharded"),
}
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
    for field, known in {"network": tuple(networks.NETWORKS), **_CHOICES}.items():
        _one_of(field, config[field], known)
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
        _check_pruning(config)
    if config.latents:
        _check_latents(config)


def _check_pruning(config: ConfigDict) -> None:
    """Refuses what no loop of training, pruning and fine-tuning can do."""
    found = pruners.of(config)
    _check_first_round(config, found)
    if config.multiple_of == 0:
        raise ValueError(
            f"multiple_of is 0, what this device wants, but {config.method} shrinks its network "
            "round by round: give the multiple as a number (docs/hardware.md)"
        )
    if config.criterion is not None:
        signals.check_name(config.criterion, also=SIGNALS)
    if config.prune_allocation is not None:
        _one_of("prune_allocation", config.prune_allocation, ("global", "uniform"))
    if config.widths and config.prune_allocation:
        raise ValueError(
            f"prune_allocation is {config.prune_allocation}, but widths are given, which say what "
            "every group keeps: leave one of the two out"
        )
    if config.per_cost and config.penalty:
        raise ValueError(
            f"per_cost ranks by saliency per cost, which needs no penalty, but penalty is "
            f"{config.penalty}: leave one of the two out"
        )
    if config.method == "compensated":
        _check_search(config)
    if found.criterion not in pruners.FREE and not (found.watch or found.scoring):
        raise ValueError(
            f"watch is 0 and scoring is {config.scoring}: there is nothing to read the criterion "
            f"{found.criterion!r} off; give one of the two, say scoring=10 batches"
        )


def _check_first_round(config: ConfigDict, found: Pruner) -> None:
    """Refuses rounds outside of training; before it only a trained network can have one."""
    if not 0.0 <= config.prune_until < 1.0:
        raise ValueError(
            f"prune_until is {config.prune_until}: {config.method} prunes until that share of its "
            "training MACs and tunes what is left, so it must be at least 0 and below 1"
        )
    if config.prune_until == 0.0 and (not config.pretrained or found.rounds > 1 or found.watch):
        begins = repr(config.pretrained) if config.pretrained else "an untrained network"
        raise ValueError(
            f"prune_until is 0, before the first step, but {config.method} begins with {begins}, "
            f"has {found.rounds} rounds and watches {found.watch} steps: give it a pretrained "
            "network, rounds=1 and scoring instead of watch, or a prune_until above 0"
        )


def _check_search(config: ConfigDict) -> None:
    """Refuses what no search of layer latents can do."""
    if config.widths or config.prune_allocation == "uniform":
        given = "widths are given" if config.widths else "prune_allocation is uniform"
        raise ValueError(
            f"method {config.method} ranks all layers together, but {given}: leave it out, or "
            "choose method l1"
        )
    if not pruners.of(config).searches:
        return
    if config.search_examples < config.batch_size:
        raise ValueError(
            f"search_examples is {config.search_examples}: the validation split that a search "
            f"judges by would be empty; it holds whole batches of {config.batch_size} training "
            "images, so give more, or a file of learned latents"
        )
    evolve.check(pruners.rules(config))


def _check_latents(config: ConfigDict) -> None:
    """Refuses learned latents where nothing ranks layers by scores that they may compensate."""
    if config.method == "compensated":
        return
    if config.method not in ("dce", "random") or config.allocation != "global":
        raise ValueError(
            f"latents is {config.latents!r}, but method {config.method} with allocation "
            f"{config.allocation} ranks no layers by them: they are for method compensated, and "
            "for dce with allocation=global"
        )
    if config.scale != "none" or config.per_cost or not config.scoring:
        raise ValueError(
            f"latents is {config.latents!r}, learned for saliencies as they are, but scale is "
            f"{config.scale}, per_cost is {config.per_cost} and scoring is {config.scoring}: set "
            "scale=none, per_cost=False, and scoring to batches that score the whole network"
        )


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


def _one_of(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"unknown {field} {value!r}{hint} One of {', '.join(known)}")
