"""Values of a config that no pruning run can have."""

from ml_collections import ConfigDict

from dce_jax import signals
from dce_jax.pruning import evolve
from experiments import pruners
from experiments.choices import SIGNALS, one_of
from experiments.pruners import Pruner


def check(config: ConfigDict) -> None:
    """Refuses what no loop of training, pruning and fine-tuning can do.

    Raises:
      ValueError: naming field, value and remedy.
    """
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
        one_of("prune_allocation", config.prune_allocation, ("global", "uniform"))
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
        if config.per_cost:
            raise ValueError(
                "per_cost divides saliencies by what channels cost, but latents shift them below "
                "zero, where the cheaper channel would go first: leave it out of method compensated"
            )
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


def check_latents(config: ConfigDict) -> None:
    """Refuses learned latents where nothing ranks layers by scores that they may compensate.

    Raises:
      ValueError: naming field, value and remedy.
    """
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
